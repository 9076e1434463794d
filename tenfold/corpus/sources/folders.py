"""What the sources in official folder layouts share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from tenfold.corpus.sources.base import Record, Source
from tenfold.corpus.sources.places import Obtained
from tenfold.corpus.sources.spec import Bars
from tenfold.corpus.sources.unpack import Route, as_it_is, unpack
from tenfold.errors import InputError


class FolderSource(Source):
    """A source that keeps its official layout: in its own folder, or in one that was adopted where it lay."""

    @property
    def data(self) -> Path:
        """The folder with the official layout: our own or the adopted one, and the part of it that holds the data."""
        return Path(self.manifest.facts.get("adopted", self.root)) / self.manifest.facts.get("base", "")

    def checked(self, record: Record) -> Record:
        """The record; raises InputError where its image is missing."""
        if not isinstance(record.image, bytes) and not record.image.is_file():
            raise InputError(
                f"{self.name} has no {record.file}, which its annotations name",
                f"run `tenfold fetch {self.name} --verify` to see what else is missing",
            )
        return record


def digest_records(records: Iterable[Record], folder: Path) -> tuple[int, str]:
    """Number of records and a digest of their files and labels, in order.

    Image bytes are not read: for archives they are vouched for by the archives' digests, for adopted folders by sizes.
    Raises InputError where there is no record, or images are missing in `folder`.
    """
    state, count, missing = hashlib.sha256(), 0, []
    for record in records:
        state.update(json.dumps([record.file, record.labels, record.votes]).encode())
        count += 1
        if not isinstance(record.image, bytes) and not record.image.is_file():
            missing.append(record.file)
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing):,} of {count:,} images that its annotations name, the first is {missing[0]}",
            "put the images beside the annotations, in the official layout",
        )
    if not count:
        raise InputError(f"{folder} has annotations of no image", "pass the folder with the whole data set")
    return count, state.hexdigest()


def unpack_all(
    parts: dict[str, Obtained], into: Path, bars: Bars, routes: dict[str, Route], default: Route = as_it_is
) -> None:
    """Unpack every part below `into`, with one progress bar in MB."""
    total = sum(part.path.stat().st_size for part in parts.values())
    with ExitStack() as stack:
        advance = stack.enter_context(bars("unpacking, MB", total / 1e6))
        for key, part in parts.items():
            unpack(part.path, into, routes.get(key, default), _megabytes(advance, key))


def _megabytes(advance: Callable[[float, str], None], note: str) -> Callable[[int], None]:
    return lambda count: advance(count / 1e6, note)
