"""The order of samples: every row once an epoch, the same at any world size, never changed silently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.engine.streams import Plan, SampleRandom, default_geometry, keyed_order
from tenfold.errors import InputError

GOLDEN = [
    [644, 643, 717, 102, 545, 548, 910, 919],
    [980, 989, 216, 74, 835, 150, 295, 316],
    [594, 485, 359, 145, 360, 277, 61, 575],
    [287, 203, 374],
    [579, 929, 959, 161],
    0.07875095541078991,
]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    n = draw(st.integers(1, 700))
    return Plan(
        seed=draw(st.integers(0, 1000)),
        digest=draw(st.sampled_from(["sha256:a", "sha256:b"])),
        n=n,
        batch=draw(st.integers(1, n)),
        streams=draw(st.sampled_from([1, 2, 7, 64])),
        block=draw(st.sampled_from([0, 1, 3, 16])),
        window=draw(st.sampled_from([0, 1, 5, 48])),
    )


def epoch_rows(plan: Plan, epoch: int) -> np.ndarray:
    return np.concatenate([plan.rows(epoch, step) for step in range(plan.steps_per_epoch)])


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 5))
def test_every_row_comes_once_an_epoch_but_the_last_few(plan: Plan, epoch: int) -> None:
    rows = epoch_rows(plan, epoch)
    assert len(rows) == plan.n - plan.n % plan.batch
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < plan.n


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 3), st.data())
def test_ranks_joined_are_the_batch_at_any_world_size(plan: Plan, epoch: int, data: st.DataObject) -> None:
    worlds = [w for w in range(1, min(plan.batch, 64) + 1) if plan.batch % w == 0]
    world = data.draw(st.sampled_from(worlds))
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    shares = [plan.rows(epoch, step, plan.slots(rank, world)) for rank in range(world)]
    assert np.array_equal(np.concatenate(shares), plan.rows(epoch, step))


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 3))
def test_windows_partition_each_stream(plan: Plan, epoch: int) -> None:
    rows = []
    for stream in range(plan.streams):
        length = plan.stream_length(stream)
        places = np.arange(length)
        windows = plan.window_of(np.full(length, stream), places)
        for window in np.unique(windows):
            first, last = plan.window_bounds(stream, int(window))
            assert np.array_equal(places[windows == window], np.arange(first, last))
            assert last - first <= plan.window
            rows.append(plan.window_rows(epoch, stream, int(window)))
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(plan.n))


def test_seed_digest_n_and_epoch_change_the_order() -> None:
    base = {"seed": 1, "digest": "sha256:a", "n": 4096, "batch": 64}
    rows = epoch_rows(Plan(**base), 0)
    others = [
        epoch_rows(Plan(**base | {"seed": 2}), 0),
        epoch_rows(Plan(**base | {"digest": "sha256:b"}), 0),
        epoch_rows(Plan(**base | {"n": 4097}), 0),
        epoch_rows(Plan(**base), 1),
    ]
    for other in others:
        assert np.mean(rows == other) < 0.01


def test_the_dropped_rows_differ_between_epochs() -> None:
    plan = Plan(seed=0, digest="d", n=1000, batch=96)
    dropped = [frozenset(set(range(1000)) - set(epoch_rows(plan, e).tolist())) for e in range(6)]
    assert all(len(d) == 1000 % 96 for d in dropped)
    assert len(set(dropped)) == 6


def test_a_global_step_splits_into_epoch_and_step() -> None:
    plan = Plan(seed=0, digest="d", n=100, batch=32)
    assert plan.steps_per_epoch == 3
    assert [plan.at(s) for s in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]


@pytest.mark.parametrize(("batch", "world"), [(64, 2), (64, 8), (256, 8), (32, 4), (512, 64)])
def test_a_rank_reads_its_own_streams_only(batch: int, world: int) -> None:
    plan = Plan(seed=0, digest="d", n=20_000, batch=batch)
    seen = [
        {int(s) for step in range(8) for s in plan.positions(step, plan.slots(rank, world))[0]} for rank in range(world)
    ]
    assert sum(map(len, seen)) == len(set.union(*seen)) == plan.streams


def test_reading_is_in_contiguous_blocks() -> None:
    plan = Plan(seed=3, digest="d", n=100_000, batch=64)
    for stream in (0, 17, 63):
        rows = np.sort(plan.window_rows(0, stream, 1))
        runs = 1 + int((np.diff(rows) != 1).sum())
        assert runs <= -(-len(rows) // plan.block) + 1


def test_neighbours_in_rank_order_do_not_stay_neighbours() -> None:
    """The table is in random order already, so this is about epochs differing, not about undoing an order."""
    plan = Plan(seed=5, digest="d", n=50_000, batch=64)
    where = np.empty(plan.n, np.int64)
    batch_of = [np.empty(plan.n, np.int64) for _ in range(2)]
    for epoch in range(2):
        rows = epoch_rows(plan, epoch)
        batch_of[epoch][:] = -1
        batch_of[epoch][rows] = np.arange(len(rows)) // plan.batch
        where[rows] = np.arange(len(rows))
    together = np.mean(batch_of[0][:-1] == batch_of[0][1:])
    assert together < 0.02  # neighbours in one batch; 0.0013 by pure chance
    # Pairs that shared a batch in one epoch share one in the next about as seldom as any pair.
    rows = epoch_rows(plan, 0).reshape(-1, plan.batch)
    again = np.mean([np.mean(batch_of[1][a] == batch_of[1][b]) for a, b in zip(rows.T[:-1], rows.T[1:], strict=True)])
    assert again < 0.005
    # Two neighbours come a third of a window apart on average, and all streams are read between the places of one.
    assert np.abs(np.diff(where)).mean() > plan.window * plan.streams / 4 > 30 * plan.batch


def test_golden_order() -> None:
    """These numbers are a promise: a run that resumes after an upgrade reads on in the same order."""
    plan = Plan(seed=7, digest="sha256:golden", n=1000, batch=8, streams=4, block=10, window=40)
    assert plan.rows(0, 0).tolist() == GOLDEN[0]
    assert plan.rows(0, 124).tolist() == GOLDEN[1]
    assert plan.rows(3, 60).tolist() == GOLDEN[2]
    assert [plan.replacement(0, 1, 2, a) for a in (1, 2, 3)] == GOLDEN[3]
    random = plan.sample_random(1, 2, 3)
    assert [random.below(1000) for _ in range(4)] == GOLDEN[4]
    assert random.random() == pytest.approx(GOLDEN[5], abs=0)


def test_defaults_bound_memory_and_fit_small_corpora() -> None:
    for n, record in [(300_000_000, 20_000), (50_000, 2_500), (1_851, 2_500), (5, 100), (10**6, 300_000_000)]:
        block, window = default_geometry(n, 64, record)
        assert 1 <= block <= window <= -(-n // 64)
        assert window * 64 * record <= 200 << 20 or window <= 4
    plan = Plan(seed=0, digest="d", n=5, batch=2)
    assert sorted(epoch_rows(plan, 0).tolist() + [r for r in range(5) if r not in epoch_rows(plan, 0)]) == [*range(5)]


def test_a_plan_survives_its_json() -> None:
    plan = Plan(seed=1, digest="d", n=1000, batch=10)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: Plan(seed=0, digest="d", n=5, batch=6), "batch = 6"),
        (lambda: Plan(seed=0, digest="d", n=9, batch=6).slots(0, 4), "batch = 6"),
        (lambda: Plan(seed=0, digest="d", n=9, batch=6).slots(2, 2), "rank = 2"),
        (lambda: Plan(seed=0, digest="d", n=9, batch=6).rows(0, 1), "step = 1"),
        (lambda: Plan(seed=0, digest="d", n=9, batch=6).rows(0, 0, range(7)), "slots"),
        (lambda: default_geometry(0, 64, 1), "n = 0"),
    ],
)
def test_errors_name_the_field(call: object, named: str) -> None:
    with pytest.raises(InputError, match=named):
        call()  # type: ignore[operator]


def test_sample_randomness_is_uniform_and_keyed() -> None:
    plan = Plan(seed=0, digest="d", n=10_000, batch=100)
    draws = np.array([[plan.sample_random(e, s, k).random() for k in range(100)] for e in (0, 1) for s in range(50)])
    assert len(np.unique(draws)) == draws.size
    assert abs(draws.mean() - 0.5) < 0.02
    counts = np.bincount([SampleRandom(k).below(7) for k in range(7000)], minlength=7)
    assert counts.min() > 850
    assert plan.sample_random(0, 0, 0).generator().random() == plan.sample_random(0, 0, 0).generator().random()


def test_keyed_orders_are_permutations_without_bias() -> None:
    first = np.bincount([keyed_order(key * 7919, 0, 10)[0] for key in range(5000)], minlength=10)
    assert first.sum() == 5000
    assert 400 < first.min() <= first.max() < 600
    assert sorted(keyed_order(3, 5, 100).tolist()) == list(range(100))
