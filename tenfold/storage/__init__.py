"""The one way to bytes: local files and S3 (MinIO) behind the same few functions.

Lance, fsspec, Daft and torch checkpoints all take their settings from here. Settings come from the usual variables:
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_PROFILE`, `AWS_REGION`, and
`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` for MinIO; `TENFOLD_STORAGE_PATIENCE` says for how many seconds (60) a
server that is away is waited for.

What is written is there whole or not at all, and is checked: a file by write, sync and rename; an object by one PUT or
an upload in parts that is completed at the end. Whatever goes wrong becomes a `StorageError` with a cure.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from tenfold.errors import InputError, StorageError
from tenfold.storage import s3
from tenfold.storage.failures import MISSING, TIMEOUT, retry, storage_error, translate
from tenfold.storage.settings import Settings, daft_io_config, endpoint, lance_options
from tenfold.storage.uris import is_s3, join, normalise, split
from tenfold.storage.writer import FileWriter, Writer, is_aside

__all__ = [
    "Settings",
    "Writer",
    "copy",
    "daft_io_config",
    "digest",
    "endpoint",
    "exists",
    "filesystem",
    "is_s3",
    "join",
    "lance_options",
    "list_files",
    "list_folders",
    "normalise",
    "open_read",
    "open_write",
    "preflight",
    "read_bytes",
    "remove",
    "size",
    "translate",
    "write_bytes",
]

PIECE = 4 << 20  # bytes read at once when a file is copied or hashed
PREFLIGHT_SECONDS = 5.0

# By name, so that importing this module loads neither fsspec's specification nor boto.
for _protocol in ("s3", "s3a"):
    fsspec.register_implementation(_protocol, "tenfold.storage.fs.S3FileSystem", clobber=True)


def filesystem(uri: str) -> fsspec.AbstractFileSystem:
    """The fsspec file system that serves `uri`. It keeps no listings, so it never shows a stale one."""
    return fsspec.filesystem("s3" if is_s3(uri) else "file")


def exists(uri: str) -> bool:
    """Whether a file or folder is there; raises StorageError where nobody can tell (server away, no permission)."""
    if is_s3(uri):
        return s3.head(uri) is not None or next(s3.entries(uri, limit=1), None) is not None
    with translate(uri):
        try:
            os.stat(uri)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def size(uri: str) -> int:
    """Bytes of a file; raises StorageError where there is none."""
    if is_s3(uri):
        if found := s3.head(uri):
            return found.size
        next(s3.entries(uri, limit=1), None)  # says so where even the bucket is missing
        raise storage_error(uri, MISSING)
    with translate(uri):
        return os.stat(uri).st_size


def open_read(uri: str) -> BinaryIO:
    """Open for reading bytes, with seek; raises StorageError naming `uri`."""
    with translate(uri):
        if is_s3(uri):
            return cast(BinaryIO, filesystem(uri).open(uri, "rb"))
        return open(uri, "rb")


def read_bytes(uri: str) -> bytes:
    """The whole of a (small) file."""
    with translate(uri):
        return s3.get(uri) if is_s3(uri) else Path(uri).read_bytes()


def open_write(uri: str) -> Writer:
    """Open for writing bytes of any number; the file appears at `close`, whole or not at all.

    Use it by `with`: an error inside drops what was written, and whatever was there before stays.
    """
    return s3.S3Writer(uri) if is_s3(uri) else FileWriter(uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a (small) file whole or not at all."""
    with open_write(uri) as file:
        file.write(data)


def copy(source: str, target: str) -> None:
    """Copy a file between any two places; on S3 the server does it. The target appears whole or not at all."""
    if is_s3(source) and is_s3(target):
        with translate(source):
            s3.copy(source, target)
        return
    with open_read(source) as reader, open_write(target) as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
        if writer.bytes_written != (there := size(source)):
            raise StorageError(f"{source} changed while it was copied ({there} bytes)", "copy it again")


def list_files(uri: str) -> list[str]:
    """Paths of all files below `uri`, relative to it, sorted; none where there is nothing.

    Files that are still being written (or that a killed writer left) are not among them.
    """
    if is_s3(uri):
        prefix = split(uri)[1]
        skip = len(prefix) + 1 if prefix else 0
        return sorted(entry.key[skip:] for entry in s3.entries(uri) if not entry.key.endswith("/"))

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    found = []
    with translate(uri):
        for folder, _, names in os.walk(uri, onerror=fail):
            inside = os.path.relpath(folder, uri)
            found += [name if inside == "." else f"{inside}/{name}" for name in names if not is_aside(name)]
    return sorted(found)


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in `uri`, sorted; none where there is nothing."""
    if is_s3(uri):
        return sorted(key.rpartition("/")[2] for key in s3.level(uri)[1])
    with translate(uri):
        try:
            return sorted(entry.name for entry in os.scandir(uri) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def remove(uri: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is nothing."""
    if is_s3(uri):
        key = split(uri)[1]
        if not key:
            raise InputError(f"{uri} is a whole bucket, which Tenfold does not remove", "name a path inside it")
        s3.delete(uri, (entry.key for entry in s3.entries(uri)))
        s3.delete(uri, [key])
        return
    with translate(uri):
        try:
            if os.path.isdir(uri) and not os.path.islink(uri):
                shutil.rmtree(uri)
            else:
                os.unlink(uri)
        except (FileNotFoundError, NotADirectoryError):
            pass


def digest(uri: str) -> str:
    """`sha256:…` of a file's content, read in pieces."""
    state = hashlib.sha256()
    with open_read(uri) as file, translate(uri):
        while piece := file.read(PIECE):
            state.update(piece)
    return "sha256:" + state.hexdigest()


def preflight(uri: str, write: bool = True) -> None:
    """Whether storage is there and lets us in, found out in seconds; raises StorageError with a cure otherwise.

    For the start of a command: an hour of work should not end at a wrong key. Nothing is left behind.

    Args:
        uri: file or folder that will be read or written.
        write: whether it will be written.
    """
    problem: list[BaseException] = []

    def look() -> None:
        try:
            (_look_s3 if is_s3(uri) else _look_file)(uri, write)
        except BaseException as error:
            problem.append(error)

    # In a thread, for the system's look-up of a name takes as long as it likes.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PREFLIGHT_SECONDS)
    if thread.is_alive():
        raise storage_error(uri, TIMEOUT)
    if problem:
        raise problem[0]


def _look_s3(uri: str, write: bool) -> None:
    settings = Settings.read().model_copy(update={"connect_timeout": 2.0, "read_timeout": 4.0})
    service = s3.client(settings)
    bucket, key = split(uri)
    retry(uri, lambda: service.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1), patience=0.5)
    if write:  # an upload that is begun and given up tells all, and nobody ever sees an object
        request = {"Bucket": bucket, "Key": join(key, ".tenfold-preflight").lstrip("/")}
        upload = retry(uri, lambda: service.create_multipart_upload(**request), patience=0.5)["UploadId"]
        retry(uri, lambda: service.abort_multipart_upload(**request, UploadId=upload), patience=0.5)


def _look_file(uri: str, write: bool) -> None:
    with translate(uri):
        if not write:
            if os.path.isdir(uri):
                os.listdir(uri)
            else:
                with open(uri, "rb"):
                    pass
            return
        folder = Path(uri)
        while not folder.exists() and folder != folder.parent:  # the folders on the way are made later
            folder = folder.parent
        if folder.is_file():
            folder = folder.parent
    probe = FileWriter(str(folder / "tenfold-preflight"))
    try:
        probe.write(b"\0" * 4096)
        probe.flush()
    finally:
        probe.abort()
