"""The sort behind ingest: runs in order of rank are written in the first pass, gathered by range of rank in the second.

A run is what one worker held in memory, sorted. It is stored as blocks, each an Arrow message, beside an index of the
first rank of each block. A bucket is a range of ranks that fits memory; its rows are one stretch of each run, read in
one request. So buckets are cut after the first pass, when the sizes are known, and not guessed before it. Where there
are so many runs that stretches would be short, runs are merged first.

Equal bytes have equal id and so equal rank, so repeats meet, in a run or at the latest in a bucket, and become one row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tenfold import storage
from tenfold.corpus.table import IMAGES, Flags, rank_of
from tenfold.storage import s3

# As the corpus table, but with names of classes: their numbers are known only when all have been seen.
ROWS = pa.schema(
    [pa.field("labels", pa.list_(pa.string())) if f.name == "labels" else f for f in IMAGES]
    + [pa.field("names", pa.int32())]  # how many file names the row stands for
)
BLOCK = 64 << 10  # bytes; one is the least that is read of a run for a bucket
WHOLE = 1 << 64  # ranks are below


class Row(NamedTuple):
    """One image on its way; fields as in the corpus table, labels by name."""

    id: str
    image: bytes
    width: int
    height: int
    labels: list[str]
    votes: list[float]
    source: str
    flags: int
    names: int = 1


def unite(one: Row, other: Row) -> Row:
    """The row that stands for both, which have the same id. The order of uniting makes no difference.

    Labels are united; a label that both have keeps the higher vote. The source is the first name in order.
    """
    votes = dict(zip(one.labels, one.votes, strict=True))
    for label, vote in zip(other.labels, other.votes, strict=True):
        votes[label] = max(vote, votes.get(label, vote))
    again = one.source == other.source  # one file in two rows of a labels file is no repeat
    return one._replace(
        labels=list(votes),
        votes=list(votes.values()),
        source=min(one.source, other.source),
        flags=one.flags | other.flags | (0 if again else Flags.REPEATED),
        names=max(one.names, other.names) if again else one.names + other.names,
    )


class Run(NamedTuple):
    """A sorted run on disk.

    Attributes:
        file: its name inside the scratch folder; the index is beside it.
        rows: number of rows.
        size: bytes of its rows.
    """

    file: str
    rows: int
    size: int


@dataclass(frozen=True)
class OpenRun:
    """A run with its index in memory, 16 bytes a block.

    Attributes:
        file: its name inside the scratch folder.
        firsts: uint64 [blocks], rank of the first row of each block.
        offsets: int64 [blocks + 1], where the blocks begin and the last one ends, bytes.
    """

    file: str
    firsts: np.ndarray
    offsets: np.ndarray

    @classmethod
    def load(cls, folder: str, run: Run) -> OpenRun:
        """Read the index of a run."""
        numbers = np.frombuffer(storage.read_bytes(_index(folder, run.file)), "<u8")
        blocks = (len(numbers) - 2) // 2
        return cls(run.file, numbers[1 : 1 + blocks], numbers[1 + blocks :].astype(np.int64))

    def span(self, low: int, high: int) -> tuple[int, int]:
        """The blocks [first, last) that may hold ranks in [low, high)."""
        first = max(int(np.searchsorted(self.firsts, np.uint64(low), "left")) - 1, 0)
        last = len(self.firsts) if high >= WHOLE else int(np.searchsorted(self.firsts, np.uint64(high), "left"))
        return first, last


def write_run(folder: str, file: str, rows: Iterable[Row], salt: str, block: int = BLOCK) -> Run:
    """Sort rows by rank, unite repeats, and write them as the run `file` in `folder`.

    Args:
        folder: the scratch folder.
        file: name of the run.
        rows: in any order.
        salt: of the rank.
        block: bytes of images after which a block ends.
    """
    single: dict[str, Row] = {}
    for row in rows:
        known = single.get(row.id)
        single[row.id] = row if known is None else unite(known, row)
    held = list(single.values())
    ranks = rank_of([row.id for row in held], salt)
    order = sorted(range(len(held)), key=lambda i: (ranks[i], held[i].id))

    def blocks() -> Iterator[pa.RecordBatch]:
        at = 0
        while at < len(order):
            end, size = at, 0
            while end < len(order) and size < block:
                size += len(held[order[end]].image)
                end += 1
            columns = list(zip(*(held[i] for i in order[at:end]), strict=True))
            columns.insert(1, tuple(ranks[order[at:end]]))
            arrays = [pa.array(column, field.type) for column, field in zip(columns, ROWS, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=ROWS)
            at = end

    return _write(folder, file, blocks())


def merge_runs(folder: str, file: str, runs: list[Run], size: int, block: int) -> Run:
    """Make one run of several, in pieces of about `size` bytes in memory; it is there already where its index is.

    With fewer and longer runs a bucket is read in longer stretches.
    """
    if storage.exists(_index(folder, file)):
        numbers = np.frombuffer(storage.read_bytes(_index(folder, file)), "<u8")
        return Run(file, int(numbers[0]), int(numbers[-1]))
    pieces = max(1, -(-sum(run.size for run in runs) // size))
    opened = [OpenRun.load(folder, run) for run in runs]

    def blocks() -> Iterator[pa.RecordBatch]:
        for i in range(pieces):
            table = gather(folder, opened, WHOLE * i // pieces, WHOLE * (i + 1) // pieces)
            order = rank_order(table)
            rows = max(1, block * len(order) // max(1, table["image"].nbytes))
            for at in range(0, len(order), rows):
                yield from table.take(order[at : at + rows]).combine_chunks().to_batches()

    return _write(folder, file, blocks())


def _write(folder: str, file: str, blocks: Iterable[pa.RecordBatch]) -> Run:
    """Write sorted blocks as a run, and its index beside it: rows, first ranks, offsets, as little-endian uint64."""
    rows, firsts, offsets = 0, [], [0]
    with storage.open_write(storage.join(folder, file)) as target:
        for batch in blocks:
            rows += batch.num_rows
            firsts.append(batch["rank"][0].as_py())
            offsets.append(offsets[-1] + target.write(batch.serialize()))
    storage.write_bytes(_index(folder, file), np.array([rows, *firsts, *offsets], "<u8").tobytes())
    return Run(file, rows, offsets[-1])


def _index(folder: str, file: str) -> str:
    return storage.join(folder, f"{file}.index")


def read_run(folder: str, run: OpenRun, low: int = 0, high: int = WHOLE) -> Iterator[pa.RecordBatch]:
    """The rows of a run with ranks in [low, high), in order, as batches of ROWS; one read in all."""
    first, last = run.span(low, high)
    if first >= last:
        return
    start, end = int(run.offsets[first]), int(run.offsets[last])
    data = pa.py_buffer(read_range(storage.join(folder, run.file), start, end))
    for i in range(first, last):
        at = int(run.offsets[i]) - start
        batch = pa.ipc.read_record_batch(data.slice(at, int(run.offsets[i + 1] - run.offsets[i])), ROWS)
        ranks = batch["rank"].to_numpy()
        begin = int(np.searchsorted(ranks, np.uint64(low), "left"))
        stop = len(ranks) if high >= WHOLE else int(np.searchsorted(ranks, np.uint64(high), "left"))
        if stop > begin:
            yield batch.slice(begin, stop - begin)


def read_range(uri: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a file."""
    with storage.translate(uri):
        if storage.is_s3(uri):
            return s3.get(uri, start, end)
        with open(uri, "rb") as file:
            file.seek(start)
            return file.read(end - start)


def gather(folder: str, runs: Iterable[OpenRun], low: int, high: int) -> pa.Table:
    """All rows with ranks in [low, high) as one table of ROWS, in no order, repeats united.

    Memory: twice the rows, plus one stretch of a run; images of repeats are dropped as they are met, so a million
    copies of one image cost one.
    """
    batches: list[pa.RecordBatch] = []
    starts = [0]  # number of the first row of each batch
    seen: dict[str, int] = {}  # id -> number of its row
    united: dict[int, Row] = {}  # number of the row -> what it becomes
    for run in runs:
        for batch in read_run(folder, run, low, high):
            ids = batch["id"].to_pylist()
            again = [i for i, name in enumerate(ids) if name in seen]
            for i in again:
                number = seen[ids[i]]
                if number not in united:
                    held = bisect_right(starts, number) - 1
                    united[number] = _row(batches[held], number - starts[held])
                united[number] = unite(united[number], _row(batch, i))
            if again:
                fresh = sorted(set(range(len(ids))).difference(again))
                batch, ids = batch.take(pa.array(fresh, pa.int64())), [ids[i] for i in fresh]
            if ids:
                seen.update(zip(ids, range(starts[-1], starts[-1] + len(ids)), strict=True))
                starts.append(starts[-1] + len(ids))
                batches.append(batch)
    table = pa.Table.from_batches(batches, ROWS)
    del batches
    table = table.combine_chunks()
    for name in ("labels", "votes", "source", "flags", "names") if united else ():
        values = table[name].to_pylist()
        for number, row in united.items():
            values[number] = getattr(row, name)
        at = ROWS.get_field_index(name)
        table = table.set_column(at, ROWS.field(at), pa.array(values, ROWS.field(at).type))
    return table


def _row(batch: pa.RecordBatch, i: int) -> Row:
    """Row `i` of a batch, without its image."""
    return Row._make(b"" if name == "image" else batch[name][i].as_py() for name in Row._fields)


def finish(table: pa.Table, classes: dict[str, int], rows: int = 1024) -> Iterator[pa.RecordBatch]:
    """Gathered rows as batches of the corpus table's schema: in order of rank and id, labels by number.

    Args:
        table: from `gather`.
        classes: number of each class.
        rows: of a batch.
    """
    labels, votes = table["labels"].combine_chunks(), table["votes"].combine_chunks()
    lengths = labels.value_lengths().to_numpy(zero_copy_only=False)
    numbers = pc.index_in(labels.flatten(), pa.array(list(classes), pa.string())).to_numpy(zero_copy_only=False)
    numbers = np.array(list(classes.values()), np.int32)[numbers] if len(numbers) else np.zeros(0, np.int32)
    within = np.lexsort((numbers, np.repeat(np.arange(len(table)), lengths)))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = {
        "labels": pa.ListArray.from_arrays(offsets, pa.array(numbers[within])),
        "votes": pa.ListArray.from_arrays(offsets, votes.flatten().take(pa.array(within))),
    }
    table = pa.table([columns.get(name, table[name]) for name in IMAGES.names], schema=IMAGES)
    order = rank_order(table)
    for at in range(0, len(order), rows):
        yield from table.take(order[at : at + rows]).combine_chunks().to_batches()


def rank_order(table: pa.Table) -> pa.Array:
    """Numbers of the rows in order of rank; equal ranks, which other ids may have by chance, in order of id."""
    return pa.array(np.lexsort((np.array(table["id"].to_pylist(), dtype="S64"), table["rank"].to_numpy())))
