"""WebDataset shards: tar files in which the members KEY.EXTENSION that follow one another make one sample."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from tenfold import storage
from tenfold.corpus.labels import read_labels
from tenfold.corpus.sniff import Rejected

SHARD = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif", "jp2", "j2k")
LABELS = ("cls", "json", "txt")  # the first that a sample has is read
SPLIT = 32 << 20  # bytes; few large shards are read in pieces of this size, so that all cores have work
_PLAIN = 4 << 20  # bytes of a label member, at most

Sample = tuple[str, bytes | Rejected, list[str] | None, list[float]]


def split_shard(uri: str, size: int, few: bool) -> Iterator[tuple[int, int]]:
    """Pieces [start, end) of a shard in bytes that begin where a sample begins.

    Only for large plain tar files on disk, and where there are few: finding the places means reading every header.
    """
    start = 0
    if few and size > 2 * SPLIT and not storage.is_s3(uri) and uri.lower().endswith(".tar"):
        try:
            with tarfile.open(uri, "r:") as archive:
                before = None
                while (member := archive.next()) is not None:
                    cast(Any, archive).members.clear()  # it would keep them all
                    key = _key(member.name)[0]
                    if key != before and member.offset - start >= SPLIT:
                        yield start, member.offset
                        start = member.offset
                    before = key
        except tarfile.TarError:
            pass  # damaged: whoever reads the last piece says so
    yield start, size


def read_shard(uri: str, name: str, start: int, end: int, separator: str, limit: int) -> Iterator[Sample]:
    """Samples of a piece of a shard: name for people, bytes (or why there are none), labels (None: unlabelled), votes.

    Memory: one sample. A damaged shard gives the samples before the damage, and then one that says what is wrong.
    """
    with storage.open_read(uri) as file:
        file.seek(start)
        held: dict[str, bytes | Rejected] = {}
        before, at, damage = "", start, ""
        plain = uri.lower().endswith(".tar")  # places in a packed one are not places in the file
        try:
            # Streamed: a shard is read once, from front to back.
            with tarfile.open(fileobj=file, mode="r|*", bufsize=1 << 20) as archive:
                while (member := archive.next()) is not None:
                    cast(Any, archive).members.clear()  # it would keep them all
                    at = start + member.offset
                    if plain and at >= end:
                        break
                    key, extension = _key(member.name)
                    wanted = extension in IMAGES + LABELS and not key.rpartition("/")[2].startswith("__")
                    if not wanted or not member.isfile():
                        continue
                    if key != before and held:
                        yield from _sample(f"{name}/{before}", held, separator)
                        held = {}
                    before = key
                    held[extension] = _read(archive, member, limit if extension in IMAGES else _PLAIN)
                else:
                    at = start + archive.offset
                    if plain:
                        file.seek(at)
                        if any(file.read(512)):  # tarfile takes a damaged header for the end
                            damage = "damaged header"
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            damage = str(error) or type(error).__name__
        if held:
            yield from _sample(f"{name}/{before}", held, separator)
        if damage:
            reason = "corrupt" if "header" in damage else "truncated"
            yield name, Rejected(reason, f"The shard cannot be read behind byte {at:,}: {damage}."), None, []


def _key(path: str) -> tuple[str, str]:
    """Key and extension of a member: `a/b.c.jpg` has the key `a/b` and the extension `c.jpg`."""
    folder, slash, file = path.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | Rejected:
    if member.size > limit:
        return Rejected("oversize", f"It has {member.size:,} bytes, more than the limit of {limit:,}.")
    file: BinaryIO | None = archive.extractfile(member)  # type: ignore[assignment]
    return file.read() if file else b""


def _sample(name: str, held: dict[str, bytes | Rejected], separator: str) -> Iterator[Sample]:
    image = next((extension for extension in IMAGES if extension in held), None)
    label = next((extension for extension in LABELS if extension in held), None)
    file = f"{name}.{image or label}"
    if image is None:
        yield file, Rejected("missing", "The sample has a label but no image."), None, []
        return
    data = held[image]
    if label is None:
        yield file, data, None, []
        return
    try:
        labels, votes = _labels(label, held[label], separator)
    except ValueError as error:
        yield file, Rejected("unlabelled", f"Its .{label} cannot be read: {error}."), None, []
        return
    yield file, data, labels, votes


def _labels(extension: str, data: bytes | Rejected, separator: str) -> tuple[list[str] | None, list[float]]:
    """Labels of a sample: `.cls` holds one, `.txt` one a line (or separated), `.json` `labels`, `label` or `cls`."""
    if isinstance(data, Rejected):
        raise ValueError(data.detail.rstrip("."))
    text = data.decode("utf-8-sig").strip()
    if extension == "cls":
        return read_labels([text] if text else [], None, separator)
    if extension == "txt":
        return read_labels(separator.join(text.splitlines()), None, separator)
    value: Any = json.loads(text)
    if not isinstance(value, dict):
        return read_labels(value, None, separator)
    for name in ("labels", "label", "cls"):
        if name in value:
            return read_labels(value[name], value.get("votes"), separator)
    return None, []
