"""The loader: from a Lance table and a plan to batches, the same at any world size and any number of workers.

    reader threads     read whole windows of the plan, in contiguous blocks, a little ahead
    worker threads     turn records into their places in a batch (decoding releases the interpreter lock)
    the caller         gets finished batches in order; a few are ready ahead

Threads, not processes: Lance must not be forked, batches are filled in place and cross no process border.

It knows no task: a `Format` (batches.py) says which columns it needs and how records become a batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import lance
import numpy as np

from tenfold.engine.batches import Builder, Format, Place
from tenfold.engine.images import BadRowError
from tenfold.engine.records import Reader, Record, Window, cores, keep_freed_memory
from tenfold.engine.streams import Plan
from tenfold.errors import InputError, TenfoldError

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

    Where storage does not answer, reading is tried again for `TENFOLD_STORAGE_PATIENCE` seconds, then a StorageError
    comes out of the iteration.

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
    ) -> None:
        self.table, self.plan, self.form = table, plan, form
        self.slots = plan.slots(rank, world)
        self.workers = cores() if workers is None else workers
        self.prefetch, self.start_step, self.stop_step = prefetch, start_step, stop_step
        self.bad_share, self.on_bad = bad_share, on_bad
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


@dataclass
class _OpenWindow:
    """A window that is being read from; it lives as long as a job or its stream still needs it."""

    epoch: int
    first: int  # place in the stream
    end: int
    rows: list[int]
    content: Future[Window]


@dataclass
class _Job:
    """A step on its way: what it needs, and the work on it."""

    place: Place
    rows: list[int]  # of each slot
    windows: list[_OpenWindow]  # of each slot
    work: list[Future[list[BadRow]]]
    builder: Builder[Any] | None = None


class _Run(Generic[B]):
    """One iteration: two thread pools and what is on its way in them. Only the caller's thread changes it.

    Steps pass through two queues: `planned` (their windows are being read) and `made` (their samples are being made).
    """

    def __init__(self, loader: Loader[B]) -> None:
        keep_freed_memory()
        self.loader, self.plan = loader, loader.plan
        self.stop = threading.Event()
        self.reader = Reader(loader.table, loader.form.columns, stop=self.stop)
        self.readers = ThreadPoolExecutor(READERS, "tenfold-read")
        self.workers = ThreadPoolExecutor(loader.workers, "tenfold-work")
        self.windows: dict[int, _OpenWindow] = {}  # the newest of each stream
        self.planned: deque[_Job] = deque()
        self.made: deque[_Job] = deque()
        self.next_step = loader.start_step

    def batches(self) -> Iterator[tuple[int, B]]:
        loader = self.loader
        while True:
            self.fill()
            if not self.made:
                return
            job = self.made.popleft()
            bad = [row for future in job.work for row in future.result()]
            loader.seen += len(job.place.slots)
            loader._report(bad)
            assert job.builder is not None
            batch = job.builder.finish()
            step = job.place.step
            del job  # or the batch would live on until the next one is asked for
            yield step, batch
            del batch

    def fill(self) -> None:
        """Ask for windows and start batches, as far ahead as allowed."""
        loader = self.loader
        ahead = loader.prefetch + -(-LOOK_AHEAD // len(loader.slots))
        while len(self.made) + len(self.planned) <= ahead:
            if loader.stop_step is not None and self.next_step >= loader.stop_step:
                break
            self.planned.append(self.look(self.next_step))
            self.next_step += 1
        while self.planned and len(self.made) <= loader.prefetch:
            self.made.append(self.start(self.planned.popleft()))

    def look(self, step: int) -> _Job:
        """Plan a step and ask for the windows it needs."""
        epoch, inside = self.plan.at(step)
        slots = self.loader.slots
        job = _Job(Place(step, epoch, inside, slots), [], [], [])
        for stream, place in zip(*(part.tolist() for part in self.plan.positions(inside, slots)), strict=True):
            window = self.windows.get(stream)
            if window is None or window.epoch != epoch or place >= window.end:
                window = self.windows[stream] = self.open(epoch, stream, place)
            job.windows.append(window)
            job.rows.append(window.rows[place - window.first])
        return job

    def open(self, epoch: int, stream: int, place: int) -> _OpenWindow:
        """Ask for the window of a stream that holds `place`."""
        number = int(self.plan.window_of(np.array(stream), np.array(place)))
        rows = self.plan.window_rows(epoch, stream, number)
        content = self.readers.submit(self.reader.read, np.sort(rows))
        return _OpenWindow(epoch, *self.plan.window_bounds(stream, number), rows.tolist(), content)

    def start(self, job: _Job) -> _Job:
        """Hand a step to the workers."""
        job.builder = self.loader.form.begin(job.place)
        for first in range(0, len(job.rows), CHUNK):
            job.work.append(self.workers.submit(self.make, job, range(first, min(first + CHUNK, len(job.rows)))))
        return job

    def make(self, job: _Job, chunk: range) -> list[BadRow]:
        """Make the samples of a chunk, in a worker thread; returns the bad rows that were replaced."""
        bad: list[BadRow] = []
        for index in chunk:
            record = job.windows[index].content.result().record(job.rows[index])
            if self.stop.is_set():
                raise CancelledError
            if reason := self.put(job, index, record, 0):
                bad += self.replace(job, index, record, reason)
        return bad

    def put(self, job: _Job, index: int, record: Record, attempt: int) -> str:
        """Make one sample; returns why the record cannot be used, or nothing."""
        place = job.place
        slot = place.slots[index]
        random = self.plan.sample_random(place.epoch, place.epoch_step, slot, attempt)
        assert job.builder is not None
        try:
            job.builder.put(index, record, random)
        except BadRowError as error:
            return str(error) or "it cannot be used"
        except TenfoldError:
            raise
        except Exception as error:
            error.add_note(f"while making the sample of row {record['row']} (step {place.step}, slot {slot})")
            raise
        return ""

    def replace(self, job: _Job, index: int, record: Record, reason: str) -> list[BadRow]:
        """Put another row in the place of one that cannot be used; returns all that were refused on the way."""
        place, slot = job.place, job.place.slots[index]
        refused = [(record, reason)]
        while reason:
            if len(refused) == ATTEMPTS:
                rows = ", ".join(str(r["row"]) for r, _ in refused)
                raise InputError(
                    f"step {place.step}, slot {slot}: {ATTEMPTS} rows one after the other could not be used "
                    f"({rows}); the last: {reason}",
                    "the table is damaged, or was not written for this format; ingest it again",
                )
            attempt = len(refused)
            row = self.plan.replacement(place.epoch, place.epoch_step, slot, attempt)
            record = self.reader.read(np.array([row])).record(row)
            if reason := self.put(job, index, record, attempt):
                refused.append((record, reason))
        return [
            BadRow(r["row"], str(r.get("id", "")), why, place.step, slot, replaced_by=record["row"])
            for r, why in refused
        ]

    def close(self) -> None:
        """End the threads: what has not started is dropped, what runs is waited for."""
        self.stop.set()
        self.workers.shutdown(wait=False, cancel_futures=True)
        self.readers.shutdown(wait=True, cancel_futures=True)
        self.workers.shutdown(wait=True)
        self.windows.clear()
