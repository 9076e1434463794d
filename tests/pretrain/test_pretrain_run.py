"""Pretraining survives what happens to it: kill -9 at any moment, SIGTERM, other world sizes, losses that diverge."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import Ranks
from small_corpus import make_corpus

from tenfold.corpus.table import Corpus
from tenfold.engine.checkpoint import latest, list_checkpoints, load_trunk, load_weights
from tenfold.engine.distributed import World, is_peer_lost
from tenfold.engine.exits import PEER_LOST, run_rank
from tenfold.engine.steplog import read_steps
from tenfold.errors import InputError
from tenfold.nets.precision import has_bf16
from tenfold.nets.trunk import Trunk
from tenfold.pretrain import run as rank_entry
from tenfold.pretrain.config import PretrainRecipe
from tenfold.pretrain.folder import describe, finished, hold, open_folder, read_folder
from tenfold.pretrain.learner import PretrainLearner
from tenfold.recipes.overrides import override
from tenfold.recipes.pretrain import recipe as named

STEPS = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(str(tmp_path_factory.mktemp("corpus")), 500)


def recipe(*settings: str) -> PretrainRecipe:
    short = ["batch=24", f'length={{"steps": {STEPS}, "images_per_step": 24}}', "checkpoint.every=7", "trunk.width=0.5"]
    return override(named("cifar10n"), [*short, *settings])


def prepare(folder: Path | str, corpus: Corpus, world: int, *settings: str) -> str:
    run = describe(recipe(*settings), corpus, None, ranks=world, threads=1)
    open_folder(str(folder), run)
    return str(folder)


def _rank(uri: str) -> None:
    """A rank as main() runs it, which also writes down what it was shown (where the run is on files)."""
    if uri.startswith("s3://"):
        run_rank(lambda: void(rank_entry.pretrain_rank(uri, device="cpu")), is_peer_lost)
    loss = PretrainLearner.loss

    def noting(self: PretrainLearner, step: int, batch: Any) -> torch.Tensor:
        with open(f"{uri}/shown-{self.world.rank}.txt", "a") as file:
            file.write(f"{step} {' '.join(batch.ids)}\n")
        return loss(self, step, batch)

    PretrainLearner.loss = noting  # type: ignore[method-assign]
    run_rank(lambda: void(rank_entry.pretrain_rank(uri, device="cpu")), is_peer_lost)


def void(_: object) -> None:
    return None


def train(uri: str, world: int) -> None:
    """One start, to the end."""
    ranks = Ranks(world, Path(uri), _rank, uri)
    assert ranks.wait() == [0] * world, ranks.log.read_text()


def train_until(uri: str, world: int, steps: int, pause: float = 0.0) -> Ranks:
    """A start of which `steps` steps have come into the log."""
    ranks = Ranks(world, Path(uri), _rank, uri)
    deadline = time.monotonic() + 120
    while len(read_steps(f"{uri}/losses")) < steps and time.monotonic() < deadline:
        if not all(process.is_alive() for process in ranks.processes):
            break
        time.sleep(0.005)
    time.sleep(pause)
    return ranks


def shown(uri: str) -> dict[int, list[str]]:
    """Ids of each step, in order of rank. A step that came twice (after a kill) was shown the same twice."""
    steps: dict[int, dict[int, list[str]]] = {}
    for path in Path(uri).glob("shown-*.txt"):
        for line in path.read_text().splitlines():
            step, *ids = line.split()
            by_rank = steps.setdefault(int(step), {})
            assert by_rank.setdefault(int(path.stem.removeprefix("shown-")), ids) == ids
    return {step: [i for _, ids in sorted(by_rank.items()) for i in ids] for step, by_rank in sorted(steps.items())}


def end_of(uri: str) -> str:
    newest = latest(f"{uri}/checkpoints")
    assert newest is not None
    assert newest.step == STEPS
    return newest.digest


def test_the_monitor_looks_and_changes_nothing(uninterrupted: str, corpus: Corpus, tmp_path: Path) -> None:
    test = make_corpus(str(tmp_path / "test"), 61, seed=1)
    chosen = recipe("monitor.every=16", "monitor.probe=true")
    run = describe(chosen, corpus, None, ranks=2, threads=1, monitor=test)
    uri = str(tmp_path / "run")
    open_folder(uri, run)
    train_until(uri, 2, 20).kill()
    train(uri, 2)
    assert read_steps(f"{uri}/losses") == read_steps(f"{uninterrupted}/losses")
    looks = read_steps(f"{uri}/monitor")
    assert list(looks) == [16, 32, 40]
    assert looks[40]["map_low"] <= looks[40]["map"] <= looks[40]["map_high"]
    assert looks[40]["map"] > looks[16]["map"]
    result = json.loads(Path(uri, "result.json").read_text())
    assert result["monitor"]["monitor/map"] == looks[40]["map"]
    assert result["monitor"]["probe/accuracy"] > 0.2  # 9 classes


@pytest.fixture(scope="module")
def uninterrupted(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = prepare(tmp_path_factory.mktemp("uninterrupted"), corpus, 2)
    train(uri, 2)
    return uri


def test_it_learns_and_tells(uninterrupted: str, corpus: Corpus) -> None:
    losses = [values["loss"] for values in read_steps(f"{uninterrupted}/losses").values()]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    line = json.loads(next(Path(uninterrupted, "losses").iterdir()).read_text().splitlines()[0])
    assert float.fromhex(line["hex"]) == line["loss"] == losses[0]
    newest = latest(f"{uninterrupted}/checkpoints")
    assert newest is not None
    facts = newest.manifest.facts
    assert (facts["step"], facts["images"], facts["world"], facts["n"]) == (STEPS, STEPS * 24, 2, 500)
    assert facts["epoch"] == STEPS * 24 / 500
    assert newest.manifest.inputs == [corpus.digest]
    assert newest.manifest.recipe == recipe().model_dump(mode="json")
    assert [c.step for c in list_checkpoints(f"{uninterrupted}/checkpoints")] == [35, 40]
    trunk = Trunk(recipe().trunk)
    trunk.load(load_trunk(uninterrupted))
    events = [json.loads(text)["event"] for text in Path(uninterrupted, "telemetry.jsonl").read_text().splitlines()]
    assert events[0] == "start"
    assert events[-1] == "end"
    assert events.count("checkpoint") >= 3


def kill_and_go_on(uri: str, seed: int, kills: int) -> list[str]:
    """Start, kill -9 one or all ranks at a random moment, again and again; then train to the end."""
    rng = random.Random(seed)
    story = []
    for _ in range(kills):
        done = len(read_steps(f"{uri}/losses"))
        ranks = train_until(uri, 2, rng.randint(0, STEPS - 2), rng.random() * 0.15)
        victims = rng.choice([(0,), (1,), (0, 1)])
        ranks.kill(*victims)
        time.sleep(0.1)
        for process in ranks.processes:
            process.terminate()  # as torchrun does to the others
        codes = ranks.wait(60)
        story.append(f"from {done}: killed {victims} at {len(read_steps(f'{uri}/losses'))} -> {codes}")
        for rank, code in enumerate(codes):
            # A kill may also come after the end, or before the others can notice on their own.
            expected = (-signal.SIGKILL, 0) if rank in victims else (PEER_LOST, -signal.SIGTERM, 0)
            assert code in expected, ranks.log.read_text()
    train(uri, 2)
    return story


def check_same(uri: str, whole: str, story: list[str]) -> None:
    assert read_steps(f"{uri}/losses") == read_steps(f"{whole}/losses"), story
    hexes = [
        sorted(line for path in Path(run, "losses").iterdir() for line in path.read_text().splitlines())
        for run in (uri, whole)
    ]
    assert hexes[0] == hexes[1], story
    assert end_of(uri) == end_of(whole), story  # weights and optimizer state, bit for bit
    assert shown(uri) == shown(whole), story


def test_killed_at_random_moments_it_goes_on_bit_for_bit(uninterrupted: str, corpus: Corpus, tmp_path: Path) -> None:
    uri = prepare(tmp_path / "run", corpus, 2)
    story = kill_and_go_on(uri, seed=int.from_bytes(os.urandom(4)), kills=2)
    check_same(uri, uninterrupted, story)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(8))
def test_killed_many_times_it_goes_on_bit_for_bit(
    uninterrupted: str, corpus: Corpus, tmp_path: Path, seed: int
) -> None:
    uri = prepare(tmp_path / "run", corpus, 2)
    story = kill_and_go_on(uri, seed, kills=5)
    check_same(uri, uninterrupted, story)


def test_sigterm_saves_and_the_run_goes_on(uninterrupted: str, corpus: Corpus, tmp_path: Path) -> None:
    uri = prepare(tmp_path / "run", corpus, 2)
    ranks = train_until(uri, 2, 10)
    for process in ranks.processes:
        process.terminate()
    assert ranks.wait() == [75, 75], ranks.log.read_text()
    newest = latest(f"{uri}/checkpoints")
    assert newest is not None
    assert newest.step == len(read_steps(f"{uri}/losses")) >= 10
    assert newest.step % 7  # not one of the regular ones (of which 14, 21, 28 and 35 could follow)
    train(uri, 2)
    check_same(uri, uninterrupted, [f"SIGTERM after {newest.step}"])


def test_on_minio_as_on_files(uninterrupted: str, corpus: Corpus, tmp_path: Path, minio) -> None:  # type: ignore[no-untyped-def]
    there = make_corpus(minio.uri("corpus"), 500)
    assert there.digest == corpus.digest
    uri = prepare(minio.uri("run"), there, 2)
    ranks = Ranks(2, tmp_path, _rank, uri)
    while not list_checkpoints(f"{uri}/checkpoints"):
        assert all(process.is_alive() for process in ranks.processes), ranks.log.read_text()
        time.sleep(0.02)
    ranks.kill()
    ranks.wait()
    ranks = Ranks(2, tmp_path, _rank, uri)
    assert ranks.wait() == [0, 0], ranks.log.read_text()
    assert read_steps(f"{uri}/losses") == read_steps(f"{uninterrupted}/losses")
    assert end_of(uri) == end_of(uninterrupted)
    settings = read_folder(uri)
    assert settings is not None
    assert finished(uri, settings) is not None


def test_another_world_size_continues_the_sequence(uninterrupted: str, corpus: Corpus, tmp_path: Path) -> None:
    """Batch norm sees other shares of the batch, so losses are close, not equal; the images are the same."""
    uri = prepare(tmp_path / "run", corpus, 2)
    ranks = train_until(uri, 2, 22)
    ranks.kill()
    ranks.wait()
    for path in Path(uri).glob("shown-*.txt"):
        path.unlink()
    start = latest(f"{uri}/checkpoints")
    assert start is not None
    prepare(Path(uri), corpus, 1)
    train(uri, 1)
    theirs = shown(uninterrupted)
    assert shown(uri) == {step: theirs[step] for step in range(start.step, STEPS)}
    a, b = (np.array([v["loss"] for v in read_steps(f"{run}/losses").values()]) for run in (uri, uninterrupted))
    assert np.array_equal(a[: start.step], b[: start.step])
    assert np.abs(a - b).max() < 0.1 * b.mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.name=momentum", "optimizer.learning_rate=0.01"),
        ("head.fused=false",),
        ("head.loss=softmax", "head.prior=null"),
        pytest.param(
            ("precision=bf16",),
            marks=pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this CPU does not multiply bf16"),
        ),
    ],
    ids=lambda settings: settings[0],
)
def test_three_ranks_and_other_settings_go_on_bit_for_bit(
    corpus: Corpus, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    whole, uri = (prepare(tmp_path / name, corpus, 3, *settings) for name in ("whole", "killed"))
    train(whole, 3)
    ranks = train_until(uri, 3, 17)
    ranks.kill()
    ranks.wait()
    train(uri, 3)
    check_same(uri, whole, [])


DIVERGING = ("optimizer.name=momentum", "optimizer.learning_rate=100", "schedule.kind=constant", "schedule.warm_up=0")


def test_a_loss_that_is_no_number_stops_with_names(corpus: Corpus, tmp_path: Path) -> None:
    uri = prepare(tmp_path / "run", corpus, 2, "head.init_std=1e38")
    ranks = Ranks(2, Path(uri), _rank, uri)
    assert ranks.wait() == [5, 5], ranks.log.read_text()
    failure = json.loads(Path(uri, "failure.json").read_text())
    assert len(failure["samples"]) == 24
    assert set(failure["samples"]) == set(shown(uri)[failure["step"]])
    assert f"at step {failure['step']}; its samples: {failure['samples'][0]}" in ranks.log.read_text()
    assert latest(f"{uri}/checkpoints") is None


def test_no_checkpoint_of_a_diverging_run_is_bad(corpus: Corpus, tmp_path: Path) -> None:
    uri = prepare(tmp_path / "run", corpus, 2, *DIVERGING, "checkpoint.every=1")
    ranks = Ranks(2, Path(uri), _rank, uri)
    assert ranks.wait() == [5, 5], ranks.log.read_text()
    newest = latest(f"{uri}/checkpoints")
    assert newest is not None
    assert all(tensor.isfinite().all() for tensor in load_weights(newest.uri).values())
    assert f"checkpoint of step {newest.step} is good" in ranks.log.read_text()


def test_two_trainings_in_one_folder_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    uri = prepare(tmp_path / "run", corpus, 1)
    with hold(uri):
        ranks = Ranks(1, Path(uri), _rank, uri)
        assert ranks.wait() == [2]
    assert "is being trained by another process" in ranks.log.read_text()


def test_other_settings_are_refused_by_name(uninterrupted: str, corpus: Corpus) -> None:
    folder = Path(uninterrupted)
    for setting, said in {
        "optimizer.learning_rate=0.002": "recipe.optimizer.learning_rate: 0.001 there, 0.002 asked",
        "seed=5": "recipe.seed: 0 there, 5 asked",
        "trunk.width=1": "recipe.trunk.width: 0.5 there, 1.0 asked",
    }.items():
        with pytest.raises(InputError) as caught:
            prepare(folder, corpus, 2, setting)
        assert said in caught.value.message
    with pytest.raises(InputError, match="n: 500 there, 400 asked"):
        open_folder(uninterrupted, describe(recipe(), corpus, 400, ranks=2, threads=1))
    before = read_folder(uninterrupted)
    prepare(folder, corpus, 1, "checkpoint.every=3", "monitor.every=2")  # how it runs and saves may change
    after = read_folder(uninterrupted)
    assert before is not None
    assert after is not None
    assert (after.ranks, after.recipe.checkpoint.every, after.plan) == (1, 3, before.plan)
    assert finished(uninterrupted, after) is not None
    prepare(folder, corpus, 2)


def test_what_does_not_fit_is_refused_before_anything_starts(corpus: Corpus, tmp_path: Path) -> None:
    for settings, ranks, said in (
        (("classes=5",), 1, "the recipe has 5 classes, the corpus 12"),
        ((), 5, "batch = 24 cannot be shared equally by 5 ranks"),
        (("batch=600",), 1, "fewer than a global batch of 600"),
        (("batch=26",), 13, "12 classes cannot be split over 13 shards"),
    ):
        with pytest.raises(InputError, match=said):
            describe(recipe(*settings), corpus, None, ranks=ranks, threads=1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files, but no run"):
        prepare(tmp_path, corpus, 1)


def test_a_changed_corpus_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    uri = prepare(tmp_path / "run", corpus, 1)
    settings = json.loads(Path(uri, "run.json").read_text())
    Path(uri, "run.json").write_text(json.dumps({**settings, "corpus_digest": "sha256:" + "1" * 64}))
    with pytest.raises(InputError, match="has changed since the run began"):
        rank_entry.pretrain_rank(uri, device="cpu")


def test_a_run_starts_from_another_s_trunk(uninterrupted: str, corpus: Corpus, tmp_path: Path) -> None:
    setting = f'init={{"kind": "checkpoint", "uri": "{uninterrupted}"}}'
    digest = end_of(uninterrupted)
    chosen = recipe(setting)
    run = describe(chosen, corpus, None, ranks=1, threads=1, init_digest=digest)
    weights = rank_entry.initial_weights(run)
    assert weights is not None
    learner = PretrainLearner(chosen, run.classes, run.n, World())
    learner.trunk.load(weights)
    theirs = load_trunk(uninterrupted)
    mine = {name.removeprefix("trunk."): t for name, t in learner.state().items() if name.startswith("trunk.")}
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert run.inputs == [corpus.digest, digest]
    with pytest.raises(InputError, match="has changed since the run began"):
        rank_entry.initial_weights(run.model_copy(update={"init_digest": "sha256:" + "1" * 64}))
