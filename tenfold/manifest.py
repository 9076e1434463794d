"""Manifests: a few kB of JSON that stand for something heavy (design section 3).

A corpus, checkpoint, bundle, evaluation or report is complete when its manifest is written, and not before. `inputs`
hold the digests of the manifests it was made from, so lineage can be walked back to the sources.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tenfold import __version__, storage
from tenfold.errors import InputError

Kind = Literal["source", "corpus", "dataset", "gate", "checkpoint", "bundle", "evaluation", "report"]


@functools.cache
def code_version() -> str:
    """Version and, in a git checkout, the commit (`+dirty` with local changes): `0.1.0+1a2b3c4`."""
    root = Path(__file__).resolve().parent.parent
    try:
        git = ["git", "-C", str(root)]
        if not (root / ".git").exists():
            return __version__
        commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{commit.stdout.strip()}" + ("+dirty" if dirty.stdout.strip() else "")


class Manifest(BaseModel):
    """What something is, where its bytes lie, and what it was made from.

    Attributes:
        kind: what it stands for.
        uri: where the bytes lie (`s3://…` or a file path).
        digest: `sha256:` and 64 hex digits, of the content.
        inputs: digests of the manifests it was made from.
        recipe: the settings that made it.
        code: version and commit of Tenfold that made it.
        created: ISO 8601, UTC.
        facts: what a reader wants to know without opening the bytes (rows, metrics, …).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    uri: str
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    inputs: list[str] = []
    recipe: dict[str, Any] = {}
    code: str = Field(default_factory=code_version)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    facts: dict[str, Any] = {}

    def write(self, uri: str) -> None:
        """Write as JSON to `uri`, atomically: readers see the old manifest or this one, never half of it."""
        storage.write_bytes(uri, (self.model_dump_json(indent=1) + "\n").encode())

    @classmethod
    def read(cls, uri: str) -> Manifest:
        """Read from `uri`; raises InputError where it is not a manifest, StorageError where it cannot be read."""
        data = storage.read_bytes(uri)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            where = ", ".join(".".join(map(str, e["loc"])) or "the document" for e in error.errors()[:3])
            raise InputError(
                f"{uri} is not a Tenfold manifest: wrong in {where}",
                "pass the path of a manifest that a tenfold command wrote",
            ) from None


def digest_bytes(data: bytes) -> str:
    """`sha256:…` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """`sha256:…` of a JSON value in canonical form (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode())


def digest_tree(uri: str) -> str:
    """`sha256:…` of a folder: of the sorted lines `relative path, size, sha256` of its files."""
    lines = []
    for path in storage.list_files(uri):
        lines.append(f"{path} {storage.digest(storage.join(uri, path))}")
    return digest_bytes("\n".join(lines).encode())


def step_key(recipe: dict[str, Any], inputs: list[str], code: str | None = None) -> str:
    """The key under which a step's output is found again: digest of recipe, inputs and code (design section 3)."""
    return digest_json({"recipe": recipe, "inputs": sorted(inputs), "code": code or code_version()})
