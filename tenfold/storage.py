"""The one way to bytes: local files and S3 (MinIO) behind the same few functions.

Lance, fsspec and torch checkpoints all take their settings from here. Settings come from the usual variables:
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, and `AWS_ENDPOINT_URL_S3` or
`AWS_ENDPOINT_URL` for MinIO.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import uuid
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from tenfold.errors import StorageError


def is_s3(uri: str) -> bool:
    """Whether `uri` names an object store rather than a file."""
    return uri.startswith("s3://")


def normalise(uri: str | Path) -> str:
    """An absolute local path, or the `s3://` address as it is; `file://` is taken off. No trailing slash."""
    text = str(uri)
    if is_s3(text):
        return text.rstrip("/")
    return os.path.abspath(text.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    """`uri` and path parts, joined by `/`."""
    return posixpath.join(str(uri).rstrip("/"), *parts)


def endpoint() -> str | None:
    """Address of the S3 service where it is not Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def filesystem(uri: str) -> fsspec.AbstractFileSystem:
    """The fsspec file system that serves `uri`."""
    if not is_s3(uri):
        return fsspec.filesystem("file")
    return fsspec.filesystem("s3", client_kwargs={"endpoint_url": endpoint()}, use_listings_cache=False)


def lance_options(uri: str) -> dict[str, str]:
    """`storage_options` for Lance at `uri`."""
    if not is_s3(uri):
        return {}
    options = {"region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"}
    if url := endpoint():
        options |= {"endpoint": url, "allow_http": str(url.startswith("http://")).lower()}
    return options


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    return bool(filesystem(uri).exists(uri))


def open_read(uri: str) -> BinaryIO:
    """Open for reading bytes; raises StorageError naming `uri`."""
    try:
        return cast(BinaryIO, filesystem(uri).open(uri, "rb"))
    except FileNotFoundError:
        raise StorageError(f"{uri} does not exist", "check the path, or run the step that writes it") from None


def read_bytes(uri: str) -> bytes:
    """The whole of a (small) file."""
    with open_read(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a (small) file whole or not at all."""
    if is_s3(uri):
        filesystem(uri).pipe_file(uri, data)  # a single PUT is atomic
        return
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def list_files(uri: str) -> list[str]:
    """Paths of all files below `uri`, relative to it, sorted."""
    fs = filesystem(uri)
    root = str(fs._strip_protocol(uri)).rstrip("/") + "/"
    return sorted(str(path).removeprefix(root) for path in fs.find(uri))


def remove(uri: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is nothing."""
    fs: Any = filesystem(uri)
    if fs.exists(uri):
        fs.rm(uri, recursive=True)


def digest(uri: str) -> str:
    """`sha256:…` of a file's content, read in pieces."""
    state = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return "sha256:" + state.hexdigest()
