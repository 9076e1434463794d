"""`fetch`: a source from its places to a finished folder; whole or not at all, and instant when it is there.

Everything is made in `TO/.NAME.aside` and renamed when it is finished, `source.json` last: a run that is killed leaves
nothing that looks finished, and the next one goes on from the cached archives.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tenfold import storage
from tenfold.corpus.sources import card, inventory
from tenfold.corpus.sources.base import classes_json
from tenfold.corpus.sources.download import check_space
from tenfold.corpus.sources.obtain import NotHadError, cache_folder, cure, locked, obtain
from tenfold.corpus.sources.places import Archive, Obtained
from tenfold.corpus.sources.spec import Bars, Built, Spec, no_bars
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest, digest_bytes, digest_json

UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}
FORMAT = 1  # of the folders written here; a folder of another format is made anew


class Fetched(BaseModel):
    """What a fetch did.

    Attributes:
        name: of the source.
        path: its folder.
        status: `fetched` (made now), `adopted` (an official folder taken as it is), `present` (was there, and whole).
        splits: rows of each split.
        classes: number of classes.
        bytes: size of the data on disk.
        digest: of the content.
        seconds: how long it took.
        tried: for each part the places tried and what they answered.
        notes: what the user should know.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    path: str
    status: Literal["fetched", "adopted", "present"]
    splits: dict[str, int]
    classes: int
    bytes: int
    digest: str
    seconds: float
    tried: dict[str, list[dict[str, str]]] = {}
    notes: list[str] = []


def fetch(
    spec: Spec,
    to: str | Path = "data",
    *,
    from_dir: str | Path | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
    verify: bool = False,
    bars: Bars = no_bars,
) -> Fetched:
    """Make `TO/NAME`, or find it whole.

    Args:
        spec: the source.
        to: folder of sources (local).
        from_dir: an official folder to adopt as it is, or a folder with the source's archives.
        cache: folder for archives; `cache_folder()` by default.
        offline: never touch the network.
        verify: check a source that is there thoroughly.
        bars: makes progress bars.

    Raises InputError for a wrong folder, StorageError where a part cannot be had or does not have its digest.
    """
    if storage.is_s3(str(to)):
        raise InputError(f"--to {to}: a source is fetched to a local folder", "fetch it to a folder and copy that")
    where = Path(cache).absolute() if cache else cache_folder()
    try:
        return _fetch(spec, Path(storage.normalise(to)) / spec.name, from_dir, where, offline, verify, bars)
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise StorageError(
                f"{error.filename or to} cannot be written: {error.strerror}",
                "choose a --to (and a TENFOLD_CACHE) that you may write to, with room for the data",
            ) from None
        raise


def _fetch(
    spec: Spec, target: Path, from_dir: str | Path | None, cache: Path, offline: bool, verify: bool, bars: Bars
) -> Fetched:
    begun = time.monotonic()
    with locked(target.parent / f".{spec.name}.lock"):
        notes: list[str] = []
        if (target / "source.json").exists():
            manifest = Manifest.read(str(target / "source.json"))
            wrong = _wrong(manifest, target, verify)
            if not wrong:
                return _result(manifest, target, "present", begun, {}, [])
            if "adopted" in manifest.facts:
                raise StorageError(
                    f"{target} stands for {manifest.facts['adopted']}, which changed: {'; '.join(wrong[:3])}",
                    f"put the files back, or delete {target} and adopt the folder again",
                )
            notes.append(f"the copy that was there is made anew: {'; '.join(wrong[:3])}")
        folder = Path(storage.normalise(from_dir)) if from_dir else None
        if folder and not folder.is_dir():
            raise InputError(f"--from {from_dir} is not a folder", "pass the folder that holds the data")
        if target.exists() and not notes and not (folder and folder == target):
            raise InputError(
                f"{target} is there, but no finished source of Tenfold",
                f"adopt it (`tenfold fetch {spec.name} --from {target}`), move it away, or choose another --to",
            )
        if folder and not _has_archives(spec, folder):
            return _adopt(spec, folder, target, begun, notes)
        return _make(spec, folder, target, cache, offline, bars, begun, notes)


def _make(
    spec: Spec,
    also: Path | None,
    target: Path,
    cache: Path,
    offline: bool,
    bars: Bars,
    begun: float,
    notes: list[str],
) -> Fetched:
    parts, tried = _obtain_all(spec, cache, also, offline, bars)
    aside = target.with_name(f".{spec.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
    aside.mkdir(parents=True)
    check_space(aside, spec.disk, spec.name, "choose a --to on a larger disk")
    try:
        built = spec.build(parts, aside, bars)
        archives = {key: {"place": str(part.place), "sha256": part.sha256} for key, part in parts.items()}
        manifest = _describe(spec, built, aside, target, {"archives": archives})
        old = target.with_name(f".{spec.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.rename(target, old)
        os.rename(aside, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _result(manifest, target, "fetched", begun, tried, [*notes, *built.notes])


def _adopt(spec: Spec, folder: Path, target: Path, begun: float, notes: list[str]) -> Fetched:
    """Write the describing files at `target`; the data stays in `folder`."""
    if spec.adopt is None:
        files = ", ".join(place.file for archive in spec.archives for place in archive.places)
        raise InputError(f"{folder} holds none of the archives of {spec.name}", f"put one there of: {files}")
    built = spec.adopt(folder)
    in_place = folder == target
    aside = target if in_place else target.with_name(f".{spec.name}.aside")
    if not in_place:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    manifest = _describe(spec, built, aside, target, {} if in_place else {"adopted": str(folder)})
    if not in_place:
        os.rename(aside, target)
    return _result(manifest, target, "adopted", begun, {}, [*notes, *built.notes])


def _describe(spec: Spec, built: Built, folder: Path, target: Path, more: dict[str, Any]) -> Manifest:
    """Write `classes.json`, `card.md` and, last, `source.json`."""
    classes = classes_json(built.classes)
    storage.write_bytes(str(folder / "classes.json"), classes)
    data = Path(more.get("adopted", folder))
    held = inventory.take(data, built.folders)
    digest = digest_json({"content": built.digest, "classes": digest_bytes(classes)})
    facts = {
        "name": spec.name,
        "title": spec.title,
        "format": FORMAT,
        "licence": spec.licence,
        "splits": built.splits,
        "classes": len(built.classes),
        "bytes": held["bytes"],
        **more,
        **built.facts,
        "inventory": held,
    }
    text = card.render(spec.title, spec.card, {**facts, "measured": built.measured}, digest)
    storage.write_bytes(str(folder / "card.md"), text.encode())
    inputs = [f"sha256:{value['sha256']}" for value in more.get("archives", {}).values()]
    manifest = Manifest(kind="source", uri=str(target), digest=digest, inputs=inputs, facts=facts)
    manifest.write(str(folder / "source.json"))
    return manifest


def _obtain_all(
    spec: Spec, cache: Path, also: Path | None, offline: bool, bars: Bars
) -> tuple[dict[str, Obtained], dict[str, list[dict[str, str]]]]:
    """All parts at the same time: while one place is slow to say no, the others already download."""
    parts: dict[str, Obtained] = {}
    tried: dict[str, list[dict[str, str]]] = {}
    refused: list[NotHadError] = []
    sizes = sum(archive.places[-1].size or 0 for archive in spec.archives)
    stopped = threading.Event()
    with bars("downloading, MB", sizes / 1e6 or None) as advance:

        def one(archive: Archive) -> Obtained:
            def arrived(count: int) -> None:
                if stopped.is_set():
                    raise KeyboardInterrupt
                advance(count / 1e6, archive.key)

            return obtain(archive, cache=cache, also=also, offline=offline, advance=arrived)

        futures = {archive: _in_background(one, archive) for archive in spec.archives}
        try:
            for archive, future in futures.items():
                try:
                    part = future.result()
                except NotHadError as error:
                    attempts = error.attempts
                    if not archive.optional:
                        refused.append(error)
                else:
                    attempts = part.attempts
                    parts[archive.key] = part
                tried[archive.key] = [{"place": a.place, "answer": a.answer} for a in attempts]
        except BaseException:
            stopped.set()
            raise
    if refused:
        message = f"{spec.name}: " + "\n  ".join(error.message for error in refused)
        missing = [error.archive for error in refused]
        raise StorageError(message, spec.login.format(cache=cache) if spec.login else cure(missing, cache))
    return parts, tried


def _in_background(call: Callable[[Archive], Obtained], archive: Archive) -> Future[Obtained]:
    """Run in a thread that nobody waits for at the end: Ctrl-C ends a fetch at once, also while a server is silent."""
    future: Future[Obtained] = Future()

    def run() -> None:
        try:
            future.set_result(call(archive))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _has_archives(spec: Spec, folder: Path) -> bool:
    return any((folder / place.file).is_file() for archive in spec.archives for place in archive.places)


def _wrong(manifest: Manifest, target: Path, verify: bool) -> list[str]:
    if manifest.facts.get("format") != FORMAT:
        return [f"it was written in format {manifest.facts.get('format')}, this version writes {FORMAT}"]
    data = Path(manifest.facts.get("adopted", target))
    return inventory.damages(data, manifest.facts["inventory"], thorough=verify)


def _result(
    manifest: Manifest,
    target: Path,
    status: Literal["fetched", "adopted", "present"],
    begun: float,
    tried: dict[str, list[dict[str, str]]],
    notes: list[str],
) -> Fetched:
    facts = manifest.facts
    return Fetched(
        name=facts["name"],
        path=str(target),
        status=status,
        splits=facts["splits"],
        classes=facts["classes"],
        bytes=facts["bytes"],
        digest=manifest.digest,
        seconds=round(time.monotonic() - begun, 2),
        tried=tried,
        notes=notes,
    )
