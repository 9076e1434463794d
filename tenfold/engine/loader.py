"""The loader: from a Lance table and a plan to batches, the same at any world size and any number of workers.

    reader threads     read whole windows of the plan, in contiguous blocks, a little ahead
    worker threads     turn records into their places in a batch (decoding releases the interpreter lock)
    the caller         gets finished batches in order; a few are ready ahead

Threads, not processes: Lance must not be forked, batches are filled in place and cross no process border.

It knows no task: a `Format` (batches.py) says which columns it needs and how records become a batch.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import lance
import numpy as np
import pyarrow as pa

from tenfold.engine.batches import Builder, Format, Place, Record
from tenfold.engine.images import BadRowError
from tenfold.engine.streams import Plan
from tenfold.errors import InputError, StorageError, TenfoldError

B = TypeVar("B")

READERS = 2
CHUNK = 16  # samples of one work item
LOOK_AHEAD = 512  # samples whose windows are requested before they are decoded
ATTEMPTS = 8  # rows tried in one slot before giving up


@dataclass(frozen=True)
class BadRow:
    """A row that could not be used, where it came up, and the row that was shown instead."""

    row: int
    id: str
    reason: str
    step: int
    slot: int
    replaced_by: int


class Loader(Generic[B]):
    """Iterates (global step, batch) from `start_step` on, without end or to `stop_step`, across epochs.

    The batches of all ranks of a step, joined in rank order, are the same at any world size and any `workers`. An
    iteration owns its threads and ends them when it ends, is closed or is dropped; iterating again starts again.

    Args:
        table: the Lance table, at the version that `plan.digest` stands for.
        plan: the order of samples.
        form: the task's format.
        rank, world: this process among those that share every batch.
        workers: threads that make samples; as many as this process has cores by default.
        prefetch: batches that are ready or in the making ahead of the caller.
        start_step: global step to begin with: a resume passes the number of steps done.
        stop_step: global step to end before; None goes on for ever.
        bad_share: share of bad rows among those read above which an InputError stops the run. A bad row is counted,
            reported and replaced by a row that is a pure function of (seed, digest, n, epoch, step, slot).
        on_bad: called with each BadRow, in the caller's thread, before its batch is given out.
        retry_seconds: how long reading is tried again where storage does not answer, before a StorageError.

    Attributes:
        bad: the bad rows met so far (the first 1,000); `bad_count` counts all.
        seen: samples given out so far.
    """

    def __init__(
        self,
        table: lance.LanceDataset,
        plan: Plan,
        form: Format[B],
        *,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        prefetch: int = 3,
        start_step: int = 0,
        stop_step: int | None = None,
        bad_share: float = 0.01,
        on_bad: Callable[[BadRow], None] | None = None,
        retry_seconds: float = 120.0,
    ) -> None:
        self.table, self.plan, self.form = table, plan, form
        self.slots = plan.slots(rank, world)
        self.workers = _cores() if workers is None else workers
        self.prefetch, self.start_step, self.stop_step = prefetch, start_step, stop_step
        self.bad_share, self.on_bad, self.retry_seconds = bad_share, on_bad, retry_seconds
        self.bad: list[BadRow] = []
        self.bad_count = self.seen = 0
        for name, value, least in (
            ("workers", self.workers, 1),
            ("prefetch", prefetch, 1),
            ("start_step", start_step, 0),
        ):
            if value < least:
                raise InputError(f"{name} = {value} must be at least {least}", f"pass {name} >= {least}")
        rows = table.count_rows()
        if plan.n > rows:
            raise InputError(f"the plan reads n = {plan.n} rows, the table has {rows}", f"choose n from 1 to {rows}")
        if missing := [name for name in form.columns if name not in table.schema.names]:
            raise InputError(
                f"the table has no column {', '.join(missing)}; it has {', '.join(table.schema.names)}",
                "pass the table that this format was written for",
            )

    def __iter__(self) -> Iterator[tuple[int, B]]:
        """Batches with their global steps; every call starts at `start_step` with threads of its own."""
        run = _Run(self)
        try:
            yield from run.batches()
        finally:
            run.close()

    def _report(self, bad: list[BadRow]) -> None:
        for row in bad:
            self.bad_count += 1
            if len(self.bad) < 1000:
                self.bad.append(row)
            if self.on_bad:
                self.on_bad(row)
        # A share of few rows means nothing: it is taken of a thousand (or of all there are) until as many are read.
        if bad and self.bad_count > self.bad_share * max(self.seen, min(self.plan.n, 1000)):
            first = "; ".join(f"row {b.row} (id {b.id[:12]}): {b.reason}" for b in self.bad[:5])
            raise InputError(
                f"{self.bad_count} of {self.seen} rows could not be used, more than bad_share = {self.bad_share:g} "
                f"allows. The first: {first}",
                "ingest the corpus again (bad files go to its quarantine), or raise bad_share",
            )


class _Window:
    """Records of one window, by row."""

    def __init__(self, rows: np.ndarray, table: pa.Table) -> None:
        self.place = {int(row): i for i, row in enumerate(rows)}
        self.columns = {name: _values(table[name].combine_chunks()) for name in table.schema.names}

    def record(self, row: int) -> Record:
        i = self.place[row]
        return {"row": row, **{name: values[i] for name, values in self.columns.items()}}


@dataclass
class _Job:
    """A step on its way: what it needs, and the work on it."""

    place: Place
    rows: np.ndarray
    keys: list[tuple[int, int, int]]  # of each slot: (epoch, stream, window)
    work: list[Future[list[BadRow]]]
    builder: Builder[Any] | None = None


class _Run(Generic[B]):
    """One iteration: two thread pools and what is on its way in them. Only the caller's thread changes it."""

    def __init__(self, loader: Loader[B]) -> None:
        self.loader, self.plan = loader, loader.plan
        self.stop = threading.Event()
        self.readers = ThreadPoolExecutor(READERS, "tenfold-read")
        self.workers = ThreadPoolExecutor(loader.workers, "tenfold-work")
        self.windows: dict[tuple[int, int, int], Future[_Window]] = {}
        self.newest: dict[int, tuple[int, int, int]] = {}  # of each stream, the last window asked for
        self.planned: deque[_Job] = deque()
        self.made: deque[_Job] = deque()
        self.next_step = loader.start_step

    def batches(self) -> Iterator[tuple[int, B]]:
        loader = self.loader
        while loader.stop_step is None or self.made or self.planned or self.next_step < loader.stop_step:
            self.fill()
            job = self.made.popleft()
            bad = [row for future in job.work for row in future.result()]
            loader.seen += len(job.place.slots)
            loader._report(bad)
            assert job.builder is not None
            batch = job.builder.finish()
            step = job.place.step
            del job
            yield step, batch

    def fill(self) -> None:
        """Ask for windows and start batches, as far ahead as allowed."""
        loader = self.loader
        ahead = loader.prefetch + -(-LOOK_AHEAD // len(loader.slots))
        while len(self.made) + len(self.planned) < ahead + 1:
            if loader.stop_step is not None and self.next_step >= loader.stop_step:
                break
            self.planned.append(self.look(self.next_step))
            self.next_step += 1
        while self.planned and len(self.made) < loader.prefetch + 1:
            self.made.append(self.start(self.planned.popleft()))

    def look(self, step: int) -> _Job:
        """Plan a step and ask for the windows it needs."""
        plan, slots = self.plan, self.loader.slots
        epoch, inside = plan.at(step)
        streams, places = plan.positions(inside, slots)
        keys = [(epoch, int(s), int(w)) for s, w in zip(streams, plan.window_of(streams, places), strict=True)]
        for key in keys:
            if key not in self.windows:
                self.windows[key] = self.readers.submit(self.read_window, key)
                self.newest[key[1]] = key
        return _Job(Place(step, epoch, inside, slots), plan.rows(epoch, inside, slots), keys, [])

    def start(self, job: _Job) -> _Job:
        """Hand a step to the workers, and let go of windows that no later step needs."""
        job.builder = self.loader.form.begin(job.place)
        windows = [self.windows[key] for key in job.keys]
        for first in range(0, len(job.keys), CHUNK):
            chunk = range(first, min(first + CHUNK, len(job.keys)))
            job.work.append(self.workers.submit(self.make, job, chunk, [windows[i] for i in chunk]))
        later = {key for planned in self.planned for key in planned.keys}
        for key in set(job.keys) - later:
            if self.newest[key[1]] != key:
                del self.windows[key]
        return job

    def make(self, job: _Job, chunk: range, windows: list[Future[_Window]]) -> list[BadRow]:
        """Make the samples of a chunk; returns the bad rows that were replaced."""
        assert job.builder is not None
        place, bad = job.place, []
        for index, window in zip(chunk, windows, strict=True):
            if self.stop.is_set():
                raise CancelledError
            row, slot = int(job.rows[index]), place.slots[index]
            record = window.result().record(row)
            refused: list[tuple[Record, str]] = []
            while True:
                random = self.plan.sample_random(place.epoch, place.epoch_step, slot, len(refused))
                try:
                    job.builder.put(index, record, random)
                    break
                except BadRowError as error:
                    refused.append((record, str(error)))
                except TenfoldError:
                    raise
                except Exception as error:
                    error.add_note(f"while making row {record['row']} (step {place.step}, slot {slot})")
                    raise
                if len(refused) == ATTEMPTS:
                    names = ", ".join(str(r["row"]) for r, _ in refused)
                    raise InputError(
                        f"step {place.step}, slot {slot}: {ATTEMPTS} rows in a row could not be used ({names}); "
                        f"the last: {refused[-1][1]}",
                        "the table is damaged, or was not written for this format; ingest it again",
                    )
                row = self.plan.replacement(place.epoch, place.epoch_step, slot, len(refused))
                record = self.read(np.array([row])).record(row)
            bad += [BadRow(r["row"], str(r.get("id", "")), why, place.step, slot, record["row"]) for r, why in refused]
        return bad

    def read_window(self, key: tuple[int, int, int]) -> _Window:
        return self.read(np.sort(self.plan.window_rows(*key)))

    def read(self, rows: np.ndarray) -> _Window:
        """Read rows (ascending), again for a while where storage does not answer."""
        table, waited, pause = self.loader.table, 0.0, 0.25
        while True:
            if self.stop.is_set():
                raise CancelledError
            try:
                return _Window(rows, table.take(rows.tolist(), columns=list(self.loader.form.columns)))
            except (OSError, RuntimeError, ValueError) as error:
                if waited >= self.loader.retry_seconds:
                    raise StorageError(
                        f"rows {rows[0]} to {rows[-1]} of {table.uri} could not be read: {error}",
                        "check that the storage is up and reachable, then resume",
                    ) from error
            self.stop.wait(pause)
            waited += pause
            pause = min(pause * 2, 10.0)

    def close(self) -> None:
        """End the threads: what has not started is dropped, what runs is waited for."""
        self.stop.set()
        self.workers.shutdown(wait=False, cancel_futures=True)
        self.readers.shutdown(wait=True, cancel_futures=True)
        self.workers.shutdown(wait=True)


def _values(column: pa.Array) -> Sequence[Any]:
    """A column as something indexed by place: lists of numbers as numpy views, the rest as Python values."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_type
        if (pa.types.is_integer(inner) or pa.types.is_floating(inner)) and column.null_count == 0:
            offsets = column.offsets.to_numpy()
            values = column.values.to_numpy(zero_copy_only=False)
            return [values[a:b] for a, b in pairwise(offsets)]
    values_: Sequence[Any] = column.to_pylist()
    return values_


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
