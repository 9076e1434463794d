"""Files that appear whole or not at all, whatever ends the writing: an error, a kill, a full disk."""

from __future__ import annotations

import contextlib
import io
import os
import re
import uuid
from abc import abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tenfold.errors import StorageError
from tenfold.storage.failures import NO_FOLDER, storage_error, translate

_ASIDE = re.compile(r"^\..+\.[0-9a-f]{8}\.tmp$")


def is_aside(name: str) -> bool:
    """Whether a file name is that of a file being written (or left by a killed writer): readers do not see those."""
    return bool(_ASIDE.match(name))


class Writer(io.RawIOBase):
    """A stream of bytes to `uri`; `close` makes the file appear, `abort` (or an error inside `with`) drops it.

    The trap in most file objects: `with open(...)` closes on an error too, which completes half a file. And a writer
    that is only forgotten is dropped, not completed.
    """

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.uri = uri
        self.bytes_written = 0
        self._finished = self._broken = False

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """How many bytes were written."""
        return self.bytes_written

    def write(self, data: Any) -> int:
        """Append all of `data`; raises StorageError."""
        if self._finished:
            raise ValueError(f"{self.uri} was written already")
        view = memoryview(data).cast("B")
        try:
            with translate(self.uri):
                self._append(view)
        except BaseException:
            self._broken = True
            raise
        self.bytes_written += len(view)
        return len(view)

    def close(self) -> None:
        """Make the file appear; raises StorageError where it cannot, and then it does not. May be called twice."""
        if self._finished:
            return
        if self._broken:
            self.abort()
            raise StorageError(f"{self.uri} was not written: an earlier part of it failed", "run the step again")
        try:
            with translate(self.uri):
                self._commit()
        except BaseException:
            self.abort()
            raise
        self._finished = True
        super().close()

    def abort(self) -> None:
        """Drop what was written. Whatever was at `uri` before is still there."""
        if not self._finished:
            self._finished = True
            self._discard()
            super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __enter__(self) -> Self:
        return self

    def __del__(self) -> None:
        if not getattr(self, "_finished", True):
            self.abort()

    @abstractmethod
    def _append(self, data: memoryview) -> None: ...

    @abstractmethod
    def _commit(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...


class FileWriter(Writer):
    """Writes beside the local file `uri`, syncs to disk, and renames. Folders on the way are made."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._path = Path(uri)
        self._aside = self._path.with_name(f".{self._path.name[:200]}.{uuid.uuid4().hex[:8]}.tmp")
        self._file: BinaryIO | None = None
        try:
            with translate(uri):
                try:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError):
                    raise storage_error(uri, NO_FOLDER) from None
                self._file = open(self._aside, "wb", buffering=1 << 20)  # noqa: SIM115
        except BaseException:
            self.abort()
            raise

    def _append(self, data: memoryview) -> None:
        assert self._file
        self._file.write(data)

    def flush(self) -> None:
        """Hand what was written to the system, which is when a full disk shows."""
        if self._file and not self._file.closed:
            with translate(self.uri):
                self._file.flush()

    def _commit(self) -> None:
        assert self._file
        self._file.flush()
        os.fsync(self._file.fileno())
        if (size := os.fstat(self._file.fileno()).st_size) != self.bytes_written:
            raise OSError(f"{size} bytes are on disk where {self.bytes_written} were written")
        self._file.close()
        os.replace(self._aside, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the rename, too, survives a power cut
        finally:
            os.close(folder)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # a full disk is reported once more at close
            if self._file:
                self._file.close()
        with contextlib.suppress(OSError):
            self._aside.unlink()
