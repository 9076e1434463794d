"""Addresses: `s3://bucket/key` or a local path. Pure functions."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tenfold.errors import InputError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):/+")


def is_s3(uri: str | Path) -> bool:
    """Whether `uri` names an object store rather than a file."""
    return str(uri).startswith("s3://")


def normalise(uri: str | Path) -> str:
    """The one spelling of an address: an absolute local path, or `s3://bucket/key`. No slash at the end.

    `file://` is taken off, `~` is expanded, `.` and `..` are resolved (never above the bucket), and `s3:/bucket`, which
    is what `pathlib` makes of an address, is mended. Raises InputError for any other scheme: a `gs://…` must not become
    a folder named `gs:`.
    """
    text = str(uri)
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if scheme in ("s3", "s3a"):
        bucket, _, key = text[len(scheme) + 1 :].lstrip("/").partition("/")
        if not bucket:
            raise InputError(f"{text!r} names no bucket", "write s3://BUCKET/PATH")
        key = posixpath.normpath("/" + key).strip("/")
        return f"s3://{bucket}/{key}".rstrip("/")
    if scheme == "file":
        return os.path.abspath(unquote(urlsplit(text).path))
    if scheme:
        raise InputError(
            f"{text!r}: storage of kind {scheme!r} is not supported", "use a file path or s3://BUCKET/PATH"
        )
    if not text:
        raise InputError("the path is empty", "give a file path or s3://BUCKET/PATH")
    return os.path.abspath(os.path.expanduser(text))


def join(uri: str | Path, *parts: str) -> str:
    """`uri` and path parts, joined by `/`. A part never leads out: its leading slashes count for nothing."""
    pieces = [piece for part in parts if (piece := part.strip("/"))]
    root = str(uri).rstrip("/")
    return "/".join([root, *pieces]) or "/"


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key` (fsspec's `bucket/key` is taken, too); the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").strip("/").partition("/")
    return bucket, key
