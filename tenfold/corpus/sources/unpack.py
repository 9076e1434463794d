"""Archives to folders, without trusting the names inside them."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tenfold.errors import StorageError

# Where a member goes, relative to the folder, or None for members that are not wanted.
Route = Callable[[str], str | None]
PIECE = 1 << 20


def as_it_is(name: str) -> str:
    """Every member under its own name."""
    return name


def unpack(archive: Path, into: Path, route: Route = as_it_is, advance: Callable[[int], None] = lambda _: None) -> int:
    """Write the files of a zip or tar below `into`; returns how many.

    Args:
        archive: `.zip`, `.whl`, `.tar`, `.tar.gz`, `.tgz`.
        into: folder.
        route: new name of a member, or None to leave it out. Links, devices and the like are left out anyway.
        advance: called with the bytes of the archive that are done.

    Raises StorageError for an archive that cannot be read, or a member that would land outside `into`.
    """
    try:
        if zipfile.is_zipfile(archive):
            return _unzip(archive, into, route, advance)
        return _untar(archive, into, route, advance)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise StorageError(f"{archive.name} cannot be read: {error}", "delete it and fetch it again") from None


def _unzip(archive: Path, into: Path, route: Route, advance: Callable[[int], None]) -> int:
    count = 0
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            target = None if member.is_dir() else route(member.filename)
            if target is not None:
                with members.open(member) as source, open(_inside(into, target), "wb") as file:
                    shutil.copyfileobj(source, file, PIECE)
                count += 1
            advance(member.compress_size)
    return count


def _untar(archive: Path, into: Path, route: Route, advance: Callable[[int], None]) -> int:
    count = 0
    with open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as members:
        done = 0
        for member in members:
            target = route(member.name) if member.isfile() else None
            if target is not None and (source := members.extractfile(member)):
                with open(_inside(into, target), "wb") as file:
                    shutil.copyfileobj(source, file, PIECE)
                count += 1
            advance(raw.tell() - done)
            done = raw.tell()
    return count


def _inside(into: Path, name: str) -> Path:
    """Path of a member below `into`, its folder made."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise StorageError(f"a member is named {name!r}, which leads out of the folder", "do not trust this archive")
    target = into / path
    os.makedirs(target.parent, exist_ok=True)
    return target
