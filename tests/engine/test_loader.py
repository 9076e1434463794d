"""The loader: the same batches whoever reads them, from files and MinIO; bad rows, failures, clean ends."""

from __future__ import annotations

import gc
import hashlib
import io
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold import storage
from tenfold.corpus.table import IMAGES
from tenfold.engine.batches import Batch, LabelledImages, Place, Samples
from tenfold.engine.images import BadRowError, CropTransform, PadTransform
from tenfold.engine.loader import BadRow, Loader
from tenfold.engine.records import Reader, Record, Window
from tenfold.engine.streams import Plan, SampleRandom
from tenfold.errors import InputError, StorageError

N = 331
DAMAGED = (7, 100, 205)  # rows of the damaged table


def picture(seed: int, width: int, height: int, form: str = "PNG") -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(file, form)
    return file.getvalue()


def write_table(uri: str, n: int, damaged: tuple[int, ...] = (), extra: int = 0) -> lance.LanceDataset:
    """A table in the corpus schema: row i has the labels i mod 10 (and 10 + i mod 3 for even i)."""
    labels = [[i % 10, *([10 + i % 3] if i % 2 == 0 else [])] for i in range(n)]
    images = [picture(i, 16 + i % 5, 16, "PNG" if i % 3 else "JPEG") for i in range(n)]
    for row in damaged:
        images[row] = images[row][: len(images[row]) // 2]
    columns = {
        "id": [hashlib.sha256(str(i).encode()).hexdigest() for i in range(n)],
        "rank": np.arange(n, dtype=np.uint64),
        "image": images,
        "width": [16 + i % 5 for i in range(n)],
        "height": [16] * n,
        "labels": labels,
        "votes": [[float(k) for k in row] for row in labels],
        "source": ["test"] * n,
        "flags": [0] * n,
    }
    table = pa.table([pa.array(columns[f.name], f.type) for f in IMAGES], schema=IMAGES)
    return lance.write_dataset(
        table, uri, max_rows_per_file=100 + extra, storage_options=storage.lance_options(uri) or None
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> lance.LanceDataset:
    return write_table(str(tmp_path_factory.mktemp("t") / "images.lance"), N)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> lance.LanceDataset:
    return write_table(str(tmp_path_factory.mktemp("d") / "images.lance"), N, DAMAGED)


def plan_of(batch: int = 24, n: int = N, **settings: Any) -> Plan:
    return Plan(**{"seed": 3, "digest": "sha256:test", "n": n, "batch": batch, "streams": 16} | settings)


FORM = LabelledImages(PadTransform(side=16, pad=2), votes=True)


def content(batch: Batch) -> list[tuple[Any, ...]]:
    """A batch as one comparable value a sample."""
    o = batch.offsets.tolist()
    assert batch.votes is not None
    return [
        (
            int(batch.rows[i]),
            batch.ids[i],
            batch.images[i].numpy().tobytes(),
            tuple(batch.labels[o[i] : o[i + 1]].tolist()),
            tuple(batch.votes[o[i] : o[i + 1]].tolist()),
        )
        for i in range(len(batch.ids))
    ]


def read(table: lance.LanceDataset, plan: Plan, **settings: Any) -> list[list[tuple[Any, ...]]]:
    form = settings.pop("form", FORM)
    return [content(batch) for _, batch in Loader(table, plan, form, **settings)]


def joined(parts: Iterable[list[Any]]) -> list[Any]:
    """Shares of the ranks, in rank order, as one batch."""
    return [sample for part in parts for sample in part]


def test_batches_hold_what_the_table_holds(table: lance.LanceDataset) -> None:
    plan = plan_of()
    for step, batch in Loader(table, plan, FORM, stop_step=plan.steps_per_epoch + 2, workers=2):
        epoch, inside = plan.at(step)
        assert batch.place == Place(step, epoch, inside, range(24))
        assert batch.rows.tolist() == plan.rows(epoch, inside).tolist()
        assert batch.images.shape == (24, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.offsets.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
        for i, (row, id_, _, labels, votes) in enumerate(content(batch)):
            assert labels == ((row % 10, 10 + row % 3) if row % 2 == 0 else (row % 10,))
            assert votes == tuple(map(float, labels))
            assert id_ == hashlib.sha256(str(row).encode()).hexdigest()
            expected = np.zeros((16, 16, 3), np.uint8)
            FORM.transform.apply(_image(table, row), plan.sample_random(epoch, inside, i), expected)
            assert np.array_equal(batch.images[i].permute(1, 2, 0).numpy(), expected)


def _image(table: lance.LanceDataset, row: int) -> bytes:
    data: bytes = table.take([row], columns=["image"])["image"][0].as_py()
    return data


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 9),
    st.sampled_from([(24, 1), (24, 2), (24, 3), (24, 8), (24, 24), (40, 4), (1, 1), (120, 2)]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(120, N),
)
def test_ranks_joined_are_the_same_at_any_world_size_and_worker_count(
    table: lance.LanceDataset, seed: int, shape: tuple[int, int], workers: int, prefetch: int, n: int
) -> None:
    batch, world = shape
    plan = plan_of(batch, n, seed=seed)
    stop = min(plan.steps_per_epoch + 3, 8)
    alone = read(table, plan, stop_step=stop, workers=1)
    shares = [
        read(table, plan, rank=rank, world=world, stop_step=stop, workers=workers, prefetch=prefetch)
        for rank in range(world)
    ]
    assert [joined(parts) for parts in zip(*shares, strict=True)] == alone
    assert max(row for step in alone for row, *_ in step) < n


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 30), st.sampled_from([1, 2, 4]), st.sampled_from([1, 3, 6]))
def test_resuming_at_another_world_size_goes_on_in_the_same_sequence(
    table: lance.LanceDataset, cut: int, before: int, after: int
) -> None:
    plan, stop = plan_of(), 32  # more than two epochs of 13 steps
    whole = read(table, plan, stop_step=stop)
    first = [read(table, plan, rank=r, world=before, stop_step=cut) for r in range(before)] if cut else []
    second = [read(table, plan, rank=r, world=after, start_step=cut, stop_step=stop) for r in range(after)]
    sequence = [joined(parts) for shares in (first, second) for parts in zip(*shares, strict=True)]
    assert sequence == whole


def test_an_epoch_gives_every_row_once(table: lance.LanceDataset) -> None:
    plan = plan_of(33)
    rows = [row for step in read(table, plan, stop_step=plan.steps_per_epoch) for row, *_ in step]
    assert len(rows) == len(set(rows)) == N - N % 33


def test_augmentation_differs_between_epochs(table: lance.LanceDataset) -> None:
    plan = plan_of()
    steps = read(table, plan, stop_step=2 * plan.steps_per_epoch)
    seen: dict[int, set[bytes]] = {}
    for row, _, image, *_ in (sample for step in steps for sample in step):
        seen.setdefault(row, set()).add(image)
    assert sum(len(images) for images in seen.values()) > 1.8 * len(seen)


def test_few_windows_are_held_at_a_time(table: lance.LanceDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.engine.loader.LOOK_AHEAD", 16)
    plan = plan_of(8, window=4, block=2)  # 20 or 21 rows a stream: six windows
    held = []
    for _ in Loader(table, plan, FORM, stop_step=90, workers=1, prefetch=1):
        gc.collect()
        held.append(sum(type(thing) is Window for thing in gc.get_objects()))
    assert plan.streams / 2 < max(held) <= 2 * plan.streams


def test_records_hold_plain_values(table: lance.LanceDataset) -> None:
    rows = np.array([3, 4, 5, 210])
    window = Reader(table, ["id", "image", "labels", "votes", "width"]).read(rows)
    for row in rows.tolist():
        record = window.record(row)
        assert record["row"] == row
        assert record["id"] == hashlib.sha256(str(row).encode()).hexdigest()
        assert record["image"] == _image(table, row)
        assert record["image"][:2] == _image(table, row)[:2]  # Arrow's own memoryviews are signed and never equal bytes
        assert record["labels"].tolist() == [row % 10, *([10 + row % 3] if row % 2 == 0 else [])]
        assert record["votes"].dtype == np.float32
        assert record["width"] == 16 + row % 5


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([1, 2, 3, 8]), st.integers(0, 12))
def test_bad_rows_are_counted_named_and_replaced_the_same_everywhere(
    damaged: lance.LanceDataset, world: int, start: int
) -> None:
    plan = plan_of()
    options = {"start_step": start, "stop_step": start + 13, "bad_share": 0.1}
    told: list[BadRow] = []
    alone = Loader(damaged, plan, FORM, on_bad=told.append, **options)
    whole = [content(batch) for _, batch in alone]
    assert told == alone.bad
    assert alone.bad_count == len(told)
    for bad in told:
        epoch, inside = plan.at(bad.step)
        assert bad.row in DAMAGED
        assert bad.row == plan.rows(epoch, inside)[bad.slot]
        assert bad.id == hashlib.sha256(str(bad.row).encode()).hexdigest()
        assert bad.reason
        assert bad.replaced_by not in DAMAGED
        assert whole[bad.step - start][bad.slot][0] == bad.replaced_by
    ranks = [Loader(damaged, plan, FORM, rank=r, world=world, **options) for r in range(world)]
    shares = [[content(batch) for _, batch in rank] for rank in ranks]
    assert [joined(parts) for parts in zip(*shares, strict=True)] == whole
    key = lambda bad: (bad.step, bad.slot)  # noqa: E731
    assert sorted((bad for rank in ranks for bad in rank.bad), key=key) == told


def test_all_bad_rows_of_an_epoch_come_up(damaged: lance.LanceDataset) -> None:
    plan = plan_of(1)
    loader = Loader(damaged, plan, FORM, stop_step=plan.steps_per_epoch, bad_share=0.1)
    assert len(list(loader)) == N
    assert sorted(bad.row for bad in loader.bad if bad.row == plan.rows(0, bad.step)[0]) == sorted(DAMAGED)


def test_too_many_bad_rows_stop_the_run_and_name_the_first(damaged: lance.LanceDataset) -> None:
    with pytest.raises(InputError, match=r"bad_share = 0.001.*row \d+ \(id [0-9a-f]{12}\)"):
        list(Loader(damaged, plan_of(), FORM, stop_step=13, bad_share=0.001))


def test_a_table_without_any_good_row_ends_with_an_error(tmp_path: Path) -> None:
    table = write_table(str(tmp_path / "t.lance"), 40, tuple(range(40)))
    with pytest.raises(InputError, match="one after the other could not be used"):
        list(Loader(table, plan_of(8, 40), FORM, stop_step=5))


def boxes(record: Record, random: SampleRandom) -> tuple[np.ndarray, float]:
    """A sample of varying size, as a detection task has it."""
    if record["row"] == 50:
        raise BadRowError("a box outside the image")
    return np.full((record["row"] % 4, 4), record["width"]), random.random()


def test_samples_of_any_shape_come_through_the_same_loader(table: lance.LanceDataset) -> None:
    form = Samples(["width", "id"], boxes, lambda samples, place: (place.step, samples))
    plan = plan_of()
    loader = Loader(table, plan, form, stop_step=13, workers=2, bad_share=0.1)
    for step, (told, samples) in loader:
        assert told == step
        bad = {b.slot: b.replaced_by for b in loader.bad if b.step == step}
        for slot, row in enumerate(plan.rows(0, step).tolist()):
            shown = bad.get(slot, row)
            assert samples[slot][0].shape == (shown % 4, 4)
            if shown % 4:
                assert samples[slot][0][0, 0] == 16 + shown % 5
            if slot not in bad:
                assert samples[slot][1] == plan.sample_random(0, step, slot).random()
    assert [bad.row for bad in loader.bad] == [50] * len(loader.bad)


def no_threads_left() -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not [t for t in threading.enumerate() if t.name.startswith("tenfold-")]:
            return True
        time.sleep(0.01)
    return False


def test_a_fault_in_a_sample_function_surfaces_with_its_row(table: lance.LanceDataset) -> None:
    def sample(record: Record, _: SampleRandom) -> int:
        if record["row"] == 20:
            raise KeyError("no such thing")
        return 0

    with pytest.raises(KeyError, match="no such thing") as caught:
        list(Loader(table, plan_of(), Samples(["id"], sample, lambda s, _: s), stop_step=13))
    assert "row 20" in "".join(caught.value.__notes__)
    assert no_threads_left()


@pytest.mark.parametrize("way", ["end", "close", "drop", "error"])
def test_threads_end_with_the_iteration(table: lance.LanceDataset, way: str) -> None:
    loader = Loader(table, plan_of(), FORM, stop_step=4 if way == "end" else None, workers=3)
    iterator = iter(loader)
    next(iterator)
    assert way != "end" or len(list(iterator)) == 3
    if way == "close":
        iterator.close()  # type: ignore[attr-defined]
    elif way == "error":
        with pytest.raises(RuntimeError, match="ours"):
            iterator.throw(RuntimeError("ours"))  # type: ignore[attr-defined]
    del iterator
    gc.collect()
    assert no_threads_left()
    assert next(iter(loader))[0] == 0  # and it starts again


def test_an_old_version_of_the_table_is_read_as_it_was(tmp_path: Path) -> None:
    table = write_table(str(tmp_path / "t.lance"), 60)
    then = table.version
    before = read(table, plan_of(20, 60), stop_step=3)
    table.delete("rank < 30")
    assert read(lance.dataset(table.uri, version=then), plan_of(20, 60), stop_step=3) == before
    with pytest.raises(InputError, match="n = 60"):
        Loader(lance.dataset(table.uri), plan_of(20, 60), FORM)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 0}, "workers = 0"),
        ({"prefetch": 0}, "prefetch = 0"),
        ({"start_step": -1}, "start_step = -1"),
        ({"rank": 3, "world": 3}, "rank = 3"),
        ({"world": 5}, "batch = 24"),
    ],
)
def test_errors_name_the_argument(table: lance.LanceDataset, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Loader(table, plan_of(), FORM, **settings)


def test_a_missing_column_is_named(table: lance.LanceDataset) -> None:
    with pytest.raises(InputError, match="no column boxes"):
        Loader(table, plan_of(), Samples(["boxes"], lambda r, _: r, lambda s, _: s))


def test_a_table_that_vanishes_is_a_storage_error(tmp_path: Path) -> None:
    table = write_table(str(tmp_path / "t.lance"), 60)
    for file in (tmp_path / "t.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(StorageError, match=r"t\.lance"):
        list(Loader(table, plan_of(20, 60), FORM, stop_step=3))


def test_minio_gives_the_same_batches_as_files(table: lance.LanceDataset, minio: Any) -> None:
    remote = write_table(minio.uri("images.lance"), N)
    plan = plan_of()
    assert read(remote, plan, stop_step=15) == read(table, plan, stop_step=15)


def test_a_server_that_is_gone_for_a_moment_is_waited_for(table: lance.LanceDataset, minio: Any) -> None:
    remote = write_table(minio.uri("images.lance"), N)
    plan = plan_of(8, window=4, block=2)
    got: list[list[tuple[Any, ...]]] = []
    gone, back = threading.Event(), threading.Event()

    def consume() -> None:
        for step, batch in Loader(remote, plan, FORM, stop_step=90, workers=1):
            got.append(content(batch))
            if step == 2:
                gone.set()
                back.wait(60)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert gone.wait(60)
    minio.stop()
    back.set()
    time.sleep(1.0)
    assert consumer.is_alive()
    minio.start()  # from this thread: the server ends with the thread that started it
    consumer.join(60)
    assert got == read(table, plan, stop_step=90)


def test_a_server_that_stays_away_is_a_storage_error(minio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_STORAGE_PATIENCE", "0.5")
    remote = write_table(minio.uri("images.lance"), N)
    iterator = iter(Loader(remote, plan_of(8, window=4, block=2), FORM, workers=1))
    next(iterator)
    minio.stop()
    with pytest.raises(StorageError, match=r"images\.lance") as caught:
        list(iterator)
    assert caught.value.cure
    assert no_threads_left()


def test_photographs_come_out_at_the_papers_size(tmp_path: Path, photographs: list[Path]) -> None:
    files = [path.read_bytes() for path in photographs] * 4
    columns: dict[str, Any] = {"id": [f"{i:064x}" for i in range(8)], "image": files, "labels": [[i] for i in range(8)]}
    schema = pa.schema([IMAGES.field(name) for name in columns])
    table = lance.write_dataset(pa.table(columns, schema=schema), str(tmp_path / "p.lance"))
    plan = plan_of(4, 8)
    for _, batch in Loader(table, plan, LabelledImages(CropTransform()), stop_step=4):
        assert batch.images.shape == (4, 3, 299, 299)
        assert batch.images.float().std() > 20
        assert batch.votes is None
