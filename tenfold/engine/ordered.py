"""Reading a table once, in order, for evaluation: every row exactly once, in batches of a task's format.

The loader (loader.py) is for training: shuffled, endless, bad rows replaced. Here nothing may be replaced in silence,
so a row that cannot be used is an error that names it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import lance
import numpy as np

from tenfold.engine.batches import Builder, Format, Place
from tenfold.engine.images import BadRowError
from tenfold.engine.records import Reader, Record, cores
from tenfold.engine.streams import SampleRandom
from tenfold.errors import InputError

B = TypeVar("B")

CHUNK = 32  # samples of one work item


def in_order(
    table: lance.LanceDataset,
    form: Format[B],
    *,
    n: int | None = None,
    batch: int = 256,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    ahead: int = 2,
) -> Iterator[B]:
    """The first `n` rows (all by default) in batches of `batch`, the last one shorter; a rank gets every world-th.

    Args:
        table: the Lance table.
        form: the task's format, without augmentation.
        n, batch: rows, and rows a batch.
        rank, world: this process among those that share the work; metric states are merged afterwards.
        workers: decoding threads; as many as this process has cores by default.
        ahead: batches in the making ahead of the caller.

    Raises InputError naming the row where one cannot be used.
    """
    rows = table.count_rows() if n is None else n
    reader = Reader(table, form.columns)
    with ThreadPoolExecutor(workers or cores(), "tenfold-eval") as pool:
        waiting: deque[tuple[Builder[B], list[Future[None]]]] = deque()
        for number, start in enumerate(range(0, rows, batch)):
            if number % world != rank:
                continue
            stop = min(start + batch, rows)
            span = np.arange(start, stop)
            window = reader.read(span)
            found = [window.record(int(row)) for row in span]
            builder = form.begin(Place(number, 0, number, range(stop - start)))
            chunks = [range(i, min(i + CHUNK, len(found))) for i in range(0, len(found), CHUNK)]
            waiting.append((builder, [pool.submit(_put, builder, chunk, found) for chunk in chunks]))
            if len(waiting) > ahead:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())


def _put(builder: Builder[Any], chunk: range, found: list[Record]) -> None:
    for index in chunk:
        try:
            builder.put(index, found[index], SampleRandom(0))
        except BadRowError as error:
            record = found[index]
            raise InputError(
                f"row {record['row']} (id {str(record.get('id', ''))[:12]}) cannot be used: {error}",
                "ingest the data again: damaged files go to its quarantine",
            ) from None


def _finish(builder: Builder[B], work: list[Future[None]]) -> B:
    for item in work:
        item.result()
    return builder.finish()
