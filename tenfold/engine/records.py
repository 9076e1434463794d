"""Records: rows of a Lance table as the plain values that formats take, read in contiguous runs.

Reading is tried again for as long as storage's patience says (`TENFOLD_STORAGE_PATIENCE`), then it is a StorageError.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from itertools import pairwise
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from tenfold.errors import StorageError
from tenfold.storage import is_s3
from tenfold.storage.failures import classify, retry, storage_error

# One row: column name -> value. Binary columns give a memoryview of the bytes, lists of numbers a numpy array, others
# Python values; `row` is the row's number in the table. Nothing of it is copied: do not write to it.
Record = dict[str, Any]


class Window:
    """Records of some rows of a table, by row; they share the memory that was read.

    Args:
        rows: the rows, int64, in the order of `table`.
        table: their columns.
    """

    def __init__(self, rows: np.ndarray, table: pa.Table) -> None:
        self._place = {row: i for i, row in enumerate(rows.tolist())}
        self._columns = {name: _values(table[name]) for name in table.schema.names}

    def record(self, row: int) -> Record:
        """The record of a row."""
        i = self._place[row]
        record = {name: values[i] for name, values in self._columns.items()}
        record["row"] = row
        return record


class Reader:
    """Reads rows of a table; safe to share between threads.

    Args:
        table: the Lance table.
        columns: what to read.
        stop: once set, reading ends with CancelledError instead of waiting for storage any longer.
        patience: seconds for which a failing read is tried again; as the environment says by default.
    """

    def __init__(
        self,
        table: lance.LanceDataset,
        columns: Sequence[str],
        *,
        stop: threading.Event | None = None,
        patience: float | None = None,
    ) -> None:
        self._columns, self._stop, self._patience = list(columns), stop, patience
        self._uri = table.uri
        # Lance's own retries multiply (a take of two rows waits 27 s at a patience of 5 s) and cannot be stopped: they
        # are turned off, and `retry` is the only one to wait.
        options = (table.initial_storage_options or {}) | {"client_max_retries": "0"}
        self._table = _open(table.uri, table.version, options) if is_s3(table.uri) else table

    def read(self, rows: np.ndarray) -> Window:
        """Read `rows`, int64, ascending; contiguous runs are read as such.

        Raises StorageError naming the table where it cannot be read.
        """

        def take() -> pa.Table:
            if self._stop and self._stop.is_set():
                raise CancelledError
            return self._table.take(rows.tolist(), columns=self._columns)

        try:
            found = retry(self._uri, take, self._patience)
        except OSError as error:  # `retry` tells a missing file apart
            if (failure := classify(error)) is None:
                raise
            raise storage_error(self._uri, failure) from error
        if found.num_rows != len(rows):
            raise StorageError(
                f"{self._uri} gave {found.num_rows} of {len(rows)} rows asked for ({rows[0]} to {rows[-1]})",
                "the table was changed meanwhile, or is damaged: ingest it again",
            )
        return Window(rows, found)


def _open(uri: str, version: int, options: dict[str, str]) -> lance.LanceDataset:
    return retry(uri, lambda: lance.dataset(uri, version=version, storage_options=options))


def cores() -> int:
    """Cores that this process may use (its affinity; a container's share is not seen)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, instead of giving it back to the system and faulting it in again.

    Reading and batches allocate and free megabytes all the time; with glibc's defaults the page faults cost as much as
    the reading itself (50 us a 35 kB record instead of 25). It holds for the whole process, and only there.
    """
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(mmap, 32 << 20)  # the most it takes
            libc.mallopt(trim, 512 << 20)


def _values(chunks: pa.ChunkedArray) -> Sequence[Any]:
    """A column as something indexed by place."""
    column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    kind = column.type
    if column.null_count == 0:
        if pa.types.is_large_binary(kind) or pa.types.is_binary(kind):
            width = np.int64 if pa.types.is_large_binary(kind) else np.int32
            _, offsets, data = column.buffers()
            ends = np.frombuffer(offsets, width, len(column) + 1, column.offset * np.dtype(width).itemsize)
            whole = memoryview(data if data is not None else b"").cast("B")  # Arrow says signed: not equal to bytes
            return [whole[a:b] for a, b in pairwise(ends.tolist())]
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            inner = kind.value_type
            if pa.types.is_integer(inner) or pa.types.is_floating(inner):
                values = column.values.to_numpy(zero_copy_only=False)
                return [values[a:b] for a, b in pairwise(column.offsets.to_numpy().tolist())]
    plain: Sequence[Any] = column.to_pylist()
    return plain
