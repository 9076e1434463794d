"""Manifests: a few kB of JSON that stand for something heavy (design section 3).

A corpus, checkpoint, bundle, evaluation or report is complete when its manifest is written, and not before. `inputs`
hold the digests of the manifests it was made from, so lineage can be walked back to the sources.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tenfold import __version__, storage
from tenfold.errors import InputError

Kind = Literal["source", "corpus", "dataset", "gate", "checkpoint", "bundle", "evaluation", "report"]


Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
LARGEST = 64 << 20  # bytes; a manifest is a few kB, and somebody may name an image archive


@functools.cache
def code_version() -> str:
    """Version and commit of the code that runs: `0.1.0+1a2b3c4d5e`.

    With local changes to the package `.dirty-` and a hash of them follow, for two different changes are not the same
    code. Where there is no git checkout, as in a container, `TENFOLD_COMMIT` may give the commit. Read once a process.
    """
    root = Path(__file__).resolve().parent.parent
    if commit := os.environ.get("TENFOLD_COMMIT"):
        return f"{__version__}+{commit[:10]}"
    if not (root / ".git").exists():  # asked first: an installed package may lie inside somebody else's checkout
        return __version__
    commit = _git(root, "rev-parse", "--short=10", "HEAD").decode().strip()
    if not commit:
        return __version__
    changes = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--binary", "--", Path(__file__).parent.name)
    dirty = f".dirty-{hashlib.sha256(changes).hexdigest()[:8]}" if changes else ""
    return f"{__version__}+{commit}{dirty}"


def _git(root: Path, *words: str) -> bytes:
    """What git prints; nothing where it is missing, refuses (an owner it does not trust), or takes too long."""
    # Inside a git hook GIT_DIR names another repository; and looking must not lock the index of somebody at work.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        return subprocess.run(command, capture_output=True, check=True, env=env, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


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
    digest: Digest
    inputs: list[Digest] = []
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
        cure = "pass the path of a manifest that a tenfold command wrote"
        if not storage.is_s3(uri) and os.path.isdir(uri):
            raise InputError(f"{uri} is a folder, not a manifest", cure)
        if storage.size(uri) > LARGEST:
            raise InputError(f"{uri} is not a Tenfold manifest: it is larger than {LARGEST >> 20} MiB", cure)
        data = storage.read_bytes(uri)  # at once: a manifest may be replaced at any moment
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            where = ", ".join(".".join(map(str, e["loc"])) or "the document" for e in error.errors()[:3])
            raise InputError(f"{uri} is not a Tenfold manifest: wrong in {where}", cure) from None


def digest_bytes(data: bytes) -> str:
    """`sha256:…` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """`sha256:…` of a value of JSON types in canonical form: sorted keys, no spaces, ASCII.

    Models, dataclasses, paths, enumerations, sets and numbers of numpy are taken as what they stand for. Anything else
    is a TypeError: its text might name an address in memory, and then no two processes would agree.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return digest_bytes(text.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(value, key=lambda one: json.dumps(one, sort_keys=True, default=_plain))
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, PurePath | datetime):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's numbers and arrays; numpy itself is not loaded for this
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no canonical form")


def digest_tree(uri: str) -> str:
    """`sha256:…` of a folder: of the relative path and the sha256 of each of its files, in order of path.

    The same for the same content on files and on S3. Files that are being written aside do not count.
    """
    paths = storage.list_files(uri)
    with ThreadPoolExecutor(8 if storage.is_s3(uri) else 2) as pool:
        digests = pool.map(lambda path: storage.digest(storage.join(uri, path)), paths)
        return digest_json([list(pair) for pair in zip(paths, digests, strict=True)])


def step_key(recipe: dict[str, Any], inputs: list[str], code: str | None = None) -> str:
    """The key under which a step's output is found again: digest of recipe, inputs and code (design section 3)."""
    return digest_json({"recipe": recipe, "inputs": sorted(inputs), "code": code or code_version()})
