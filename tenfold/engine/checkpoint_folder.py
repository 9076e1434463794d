"""The finished checkpoints of a run, as their manifests tell; nothing here needs torch (see checkpoint.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tenfold import storage
from tenfold.errors import InputError
from tenfold.manifest import Manifest

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"^step-(\d{9,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint.

    Attributes:
        uri: its folder.
        manifest: kind `checkpoint`; facts: step, images, epoch, loss, world, files (name -> sha256), bytes.
    """

    uri: str
    manifest: Manifest

    @classmethod
    def open(cls, uri: str) -> Checkpoint:
        """Open a checkpoint's folder, its manifest, or a run's folder (then its newest checkpoint).

        Raises InputError where none of them is there.
        """
        uri = storage.normalise(uri)
        if not uri.endswith(".json"):
            for folder in (storage.join(uri, "checkpoints"), uri):
                if not storage.exists(storage.join(uri, MANIFEST)) and (newest := latest(folder)):
                    return newest
            if not storage.exists(storage.join(uri, MANIFEST)):
                raise InputError(
                    f"{uri} holds no finished checkpoint",
                    "pass a run folder, a checkpoint folder or its manifest.json; an interrupted write has no manifest",
                )
            uri = storage.join(uri, MANIFEST)
        manifest = Manifest.read(uri)
        if manifest.kind != "checkpoint":
            raise InputError(f"{uri} is a {manifest.kind}, not a checkpoint", "pass a checkpoint or a run folder")
        return cls(uri.rpartition("/")[0], manifest)

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.manifest.facts["step"])

    @property
    def digest(self) -> str:
        """Digest of its files."""
        return self.manifest.digest


def folder_of(step: int) -> str:
    """Name of a step's folder; names sort as steps do."""
    return f"step-{step:09d}"


def list_checkpoints(uri: str) -> list[Checkpoint]:
    """The finished checkpoints in a folder, oldest first. Half-written ones have no manifest and are not listed."""
    uri = storage.normalise(uri)
    found = []
    for path in storage.list_files(uri):
        name, _, file = path.partition("/")
        if file == MANIFEST and _FOLDER.match(name):
            found.append(Checkpoint(storage.join(uri, name), Manifest.read(storage.join(uri, path))))
    return sorted(found, key=lambda c: c.step)


def latest(uri: str) -> Checkpoint | None:
    """The newest finished checkpoint in a folder, or None."""
    return next(reversed(list_checkpoints(uri)), None)


def remove(checkpoint: Checkpoint) -> None:
    """Remove a checkpoint: first its manifest, so that what is left is never taken for a finished one."""
    storage.remove(storage.join(checkpoint.uri, MANIFEST))
    storage.remove(checkpoint.uri)


def clean(uri: str) -> list[str]:
    """Remove what interrupted writes left in a folder; returns the names of the removed checkpoints.

    Only for the process that owns the run: another's unfinished write looks the same.
    """
    whole = {checkpoint.uri.rpartition("/")[2] for checkpoint in list_checkpoints(uri)}
    left = [name for name in storage.list_folders(uri) if _FOLDER.match(name) and name not in whole]
    for name in left:
        storage.remove(storage.join(uri, name))
    return left
