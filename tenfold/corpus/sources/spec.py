"""What a source's module states: its parts, its card, and how it is made, adopted and read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.corpus.sources.base import Source
from tenfold.corpus.sources.card import Card
from tenfold.corpus.sources.places import Archive, Obtained
from tenfold.corpus.table import Classes
from tenfold.manifest import Manifest

# A progress bar: `bars(description, total)` is a context manager that yields `advance(amount, note)`.
Advance = Callable[[float, str], None]
Bars = Callable[[str, float | None], AbstractContextManager[Advance]]


def no_bars(description: str, total: float | None = None) -> AbstractContextManager[Advance]:
    """Progress that nobody sees."""
    return nullcontext(lambda amount, note: None)


@dataclass(frozen=True)
class Built:
    """What making or adopting a source found.

    Attributes:
        splits: rows of each split.
        digest: `sha256:…` of the content: images, labels, votes in order; the same for the same content, whichever
            place it came from.
        classes: the class list, written to `classes.json`.
        facts: more facts for `source.json`, of plain JSON types.
        measured: sentences for the card, counted in this copy.
        notes: what the user should know about this run.
        folders: top folders of the source's data; only they are looked after (an adopted folder may hold more).
    """

    splits: dict[str, int]
    digest: str
    classes: Classes
    facts: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A source, as its module states it.

    Attributes:
        name: the name on the command line and of the folder.
        title: for people.
        licence: one phrase; the card says more.
        archives: its parts and their places.
        card: what is known about it.
        build: makes the folder's content from the obtained parts: `build(parts, into, bars)`.
        read: opens a finished source: `read(root, manifest)`.
        adopt: takes an official folder as it is, or None where there is no official folder: `adopt(folder)`; raises
            InputError where the folder is not one.
        disk: bytes of the finished folder; the archives in the cache need about as many again.
        login: what to do where the archives need the user's own account.
    """

    name: str
    title: str
    licence: str
    archives: tuple[Archive, ...]
    card: Card
    build: Callable[[dict[str, Obtained], Path, Bars], Built]
    read: Callable[[str, Manifest], Source]
    adopt: Callable[[Path], Built] | None = None
    disk: int = 0
    login: str = ""
