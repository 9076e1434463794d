"""Archives through the cache: take what is there, else try the places in order, and check what came.

The cache is `$TENFOLD_CACHE` or `~/.cache/tenfold`: a second checkout on the same machine downloads nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tenfold.corpus.sources.clients import fetch_package
from tenfold.corpus.sources.download import download
from tenfold.corpus.sources.places import Archive, Attempt, Obtained, Place, UnavailableError
from tenfold.errors import StorageError

TRUSTED_ABOVE = 1 << 30  # larger files are hashed once and then trusted while size and time stay the same


def cache_folder() -> Path:
    """`$TENFOLD_CACHE`, else `$XDG_CACHE_HOME/tenfold`, else `~/.cache/tenfold`."""
    if own := os.environ.get("TENFOLD_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tenfold"


def obtain(
    archive: Archive,
    *,
    cache: Path,
    also: Path | None = None,
    offline: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Obtained:
    """The archive as a checked file on this machine.

    Args:
        archive: what, and the places that have it.
        cache: folder for downloaded files; made where it is missing.
        also: another folder in which the user may have put the file; it is read, never written.
        offline: never touch the network.
        advance: called with bytes as they arrive.

    Raises StorageError that lists every place tried and its answer, and says what to do.
    """
    attempts: list[Attempt] = []
    cache.mkdir(parents=True, exist_ok=True)
    for place in archive.places:
        for path in ([also / place.file] if also else []) + [cache / place.file]:
            if path.is_file():
                try:
                    digest = check(place, path)
                except UnavailableError as error:
                    attempts.append(Attempt(str(path), str(error)))
                    continue
                return Obtained(place, path, digest, (*attempts, Attempt(str(path), "cached")))
    for place in archive.places:
        if place.kind == "login" or offline:
            why = "needs an account of your own" if place.kind == "login" else "not asked (--offline)"
            attempts.append(Attempt(str(place), why))
            continue
        path = cache / place.file
        try:
            with locked(cache / f".{place.file}.lock"):
                digest, answer = _cached_or_fetched(place, path, advance)
        except UnavailableError as error:
            attempts.append(Attempt(str(place), str(error)))
            continue
        for other in archive.places:  # what another place left unfinished is of no use any more
            for name in (f"{other.file}.unchecked.part", f"{other.file}.unchecked.part.json"):
                (cache / name).unlink(missing_ok=True)
        return Obtained(place, path, digest, (*attempts, Attempt(str(place), answer)))
    raise NotHadError(archive, attempts, cache)


class NotHadError(StorageError):
    """No place gave the archive; `attempts` say what each answered."""

    def __init__(self, archive: Archive, attempts: list[Attempt], cache: Path) -> None:
        lines = "".join(f"\n    {attempt.place}: {attempt.answer}" for attempt in attempts)
        super().__init__(f"{archive.title} could not be had; tried were{lines}", cure([archive], cache))
        self.archive, self.attempts = archive, tuple(attempts)

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str]]:
        return StorageError, (self.message, self.cure)


def cure(archives: list[Archive], cache: Path) -> str:
    """What to do where these could not be had: files of one archive are choices, all archives are needed."""
    choices = [" or ".join(dict.fromkeys(place.file for place in archive.places)) for archive in archives]
    clients = sorted({place.kind for archive in archives for place in archive.places} & {"npm", "pip"})
    install = f" (with {' and '.join(clients)} installed)" if clients else ""
    return (
        f"connect to the network{install} and run it again, a download goes on where it stopped; "
        f"or put {', and '.join(dict.fromkeys(choices))} into {cache}"
    )


def _cached_or_fetched(place: Place, path: Path, advance: Callable[[int], None]) -> tuple[str, str]:
    """Digest and answer; where another process held the lock before us, its file is there by now."""
    if path.is_file():
        with contextlib.suppress(UnavailableError):
            return check(place, path), "cached"
    return _fetch(place, path, advance), "ok"


def _fetch(place: Place, path: Path, advance: Callable[[int], None]) -> str:
    """Fetch and check one place; a resumed file that fails its check is fetched once more from its beginning."""
    aside = path.with_name(path.name + ".unchecked")  # a file under its own name has always been checked
    resumed = path.with_name(aside.name + ".part").exists()
    for last in (not resumed, True):
        if place.kind == "http":
            download(place.address, aside, advance)
        else:
            fetch_package(place, aside, advance)
        try:
            digest = check(place, aside, name=path.name)
        except UnavailableError:
            aside.unlink(missing_ok=True)
            if last:
                raise
            continue
        os.replace(aside, path)
        return digest
    raise AssertionError  # pragma: no cover


def check(place: Place, path: Path, name: str | None = None) -> str:
    """sha256 of the file at `path`; raises UnavailableError naming file, expected and got where it is wrong."""
    name = name or path.name
    size = path.stat().st_size
    if place.size is not None and size != place.size:
        raise UnavailableError(f"{name} is damaged: expected {place.size:,} bytes, got {size:,}")
    wanted = place.sha256 or place.md5
    stamp = path.with_name(f".{name}.checked")
    state = {"size": size, "time": path.stat().st_mtime_ns, "wanted": wanted}
    if size > TRUSTED_ABOVE:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(stamp.read_bytes())
            if wanted and {key: known.get(key) for key in state} == state:
                return str(known["sha256"])
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False) if place.md5 else None
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            sha256.update(piece)
            if md5:
                md5.update(piece)
    for kind, expected, got in (
        ("sha256", place.sha256, sha256.hexdigest()),
        ("md5", place.md5, md5.hexdigest() if md5 else None),
    ):
        if expected and got != expected:
            raise UnavailableError(f"{name} is damaged: expected {kind} {expected}, got {got}")
    if place.members:
        suffix, expected = place.members
        if (got := digest_members(path, suffix)) != expected:
            raise UnavailableError(f"{name} holds other {suffix} files: expected digest {expected}, got {got}")
    if size > TRUSTED_ABOVE:
        with contextlib.suppress(OSError):  # the folder may be read-only; then it is hashed again next time
            stamp.write_text(json.dumps({**state, "sha256": sha256.hexdigest()}))
    return sha256.hexdigest()


def digest_members(path: Path, suffix: str) -> str:
    """sha256 of the sorted lines `name sha256` of a zip's members ending in `suffix` (names without folders)."""
    try:
        with zipfile.ZipFile(path) as archive:
            lines = sorted(
                f"{Path(info.filename).name} {hashlib.sha256(archive.read(info)).hexdigest()}"
                for info in archive.infolist()
                if info.filename.endswith(suffix)
            )
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise UnavailableError(f"{path.name} is no archive: {error}") from None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`: a second process waits for the first and then finds the work done.

    The lock is the kernel's and ends with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
