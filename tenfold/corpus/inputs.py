"""What can be ingested, and how it is divided into parts that workers do on their own.

    folder    class folders (nested ones are a hierarchy), or any folder beside a labels file
    shards    WebDataset: .tar files with members KEY.jpg and KEY.cls, KEY.json or KEY.txt
    source    what `tenfold fetch` wrote

A part is a JSON document that says what to read; it never holds image bytes. Parts are written as the input is listed,
so memory does not grow with it, and a killed ingest goes on with the parts it had.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tenfold import storage
from tenfold.corpus import sources
from tenfold.corpus.labels import labelled
from tenfold.corpus.pictures import PictureConfig
from tenfold.corpus.shards import SHARD, split_shard
from tenfold.corpus.sources.parquet import ParquetSource
from tenfold.corpus.table import DEFAULT_SALT, Classes
from tenfold.errors import InputError
from tenfold.storage import s3
from tenfold.storage.uris import split

Kind = Literal["folder", "labels", "shards", "source"]
PART, PART_BYTES = 4096, 512 << 20  # images, or bytes, of a part; what a kill costs a worker at most
FIRST, FIRST_BYTES = 64, 16 << 20  # of the first parts, so that small inputs, too, keep all cores busy
PARQUET_ROWS = 2048  # row groups are joined to parts of at least this many
_LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}


class IngestConfig(BaseModel):
    """What goes in and how it is stored. Together with the input's content it decides the corpus.

    Attributes:
        input: folder, shard, folder of shards, or fetched source; a path or `s3://…`.
        labels: CSV, JSONL or Parquet file with the columns file, labels and, perhaps, votes.
        classes: JSON list of {"name", "title", "parents"}: decides the order of classes and their hierarchy.
        split: of a fetched source.
        separator: between labels (and votes) in one field of text.
        salt: of the rank; another salt is another random order.
        picture: how pictures are stored.
        max_bytes: larger files are not read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    labels: str | None = None
    classes: str | None = None
    split: str = "train"
    separator: str = ";"
    salt: str = Field(default=DEFAULT_SALT, min_length=1, max_length=64)
    picture: PictureConfig = PictureConfig()
    max_bytes: int = Field(default=256 << 20, ge=1)

    @field_validator("input", "labels", "classes")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return None if value is None else storage.normalise(value)

    @field_validator("separator")
    @classmethod
    def _one_separator(cls, value: str) -> str:
        if not value or value.isalnum():
            raise ValueError("give a separator that is no part of a label, such as ; or |")
        return value


@dataclass
class Tally:
    """What was met while the input was listed.

    Attributes:
        items: images, as far as known before reading.
        files: files in the folder, for comparison with a labels file.
        size: bytes.
        mark: sum of the hashes of (name, size), so that it does not depend on the order of listing.
    """

    items: int = 0
    files: int = 0
    size: int = 0
    mark: int = 0

    def add(self, name: str, size: int) -> None:
        """Count a file."""
        self.files += 1
        self.size += size
        digest = hashlib.sha256(f"{name}\0{size}".encode("utf-8", "surrogateescape")).digest()
        self.mark = (self.mark + int.from_bytes(digest, "big")) % (1 << 256)

    @property
    def digest(self) -> str:
        """`sha256:…` of the set of files by name and size."""
        return f"sha256:{self.mark:064x}"


@dataclass(frozen=True)
class Input:
    """An input that was recognised.

    Attributes:
        kind: which of the four.
        digests: of what can be named by content: the source's manifest, the labels file.
        classes: the class list where one is stated.
        classes_digest: of the classes file; it decides nothing before all images have been read.
        parts: yields the parts, and fills the tally.
        sized: whether the number of images is known once the parts are.
    """

    kind: Kind
    digests: list[str]
    classes: Classes | None
    classes_digest: str | None
    parts: Callable[[Tally], Iterator[dict[str, Any]]] = field(repr=False)
    sized: bool = True


def recognise(config: IngestConfig) -> Input:
    """Look at the input; raises InputError where it is none of what can be ingested."""
    root = config.input
    if not storage.exists(root):
        raise InputError(f"{root} does not exist", "check the path")
    explicit = sources.read_classes(config.classes) if config.classes else None
    of_classes = storage.digest(config.classes) if config.classes else None
    if config.labels:
        check = _label_check(explicit, config.classes)
        digests = [storage.digest(config.labels)]
        return Input("labels", digests, explicit, of_classes, lambda tally: _labelled_parts(config, check, tally))
    if sources.is_source(root):
        source = sources.open_source(root)
        source.check_split(config.split)
        stated, digests = explicit or source.classes(), [source.manifest.digest]
        return Input("source", digests, stated, of_classes, lambda tally: _source_parts(source, config, tally))
    if SHARD.search(root) or any(SHARD.search(name) for name in _top_files(root)):
        return Input("shards", [], explicit, of_classes, lambda tally: _shard_parts(root, tally), sized=False)
    if not storage.is_s3(root) and os.path.isfile(root):
        raise InputError(f"{root} is a file that cannot be ingested", "pass a folder, a .tar shard or a fetched source")
    return Input("folder", [], explicit, of_classes, lambda tally: _folder_parts(root, tally))


def _top_files(root: str) -> Iterator[str]:
    if storage.is_s3(root):
        yield from (entry.key for entry in s3.level(root)[0])
    elif os.path.isdir(root):
        with storage.translate(root), os.scandir(root) as entries:
            yield from (entry.name for entry in entries)


def walk(root: str) -> Iterator[tuple[str, int]]:
    """Relative path and bytes of every file below `root`, in no order; hidden files and systems' litter are left out.

    Links are followed, but not in circles. A link to nothing counts as an empty file: reading it will say what it is.
    """
    if storage.is_s3(root):
        prefix = split(root)[1]
        skip = len(prefix) + 1 if prefix else 0
        for found in s3.entries(root):
            name = found.key[skip:]
            if not found.key.endswith("/") and not any(map(_hidden, name.split("/"))):
                yield name, found.size
        return
    folders = [""]
    while folders:
        folder = folders.pop()
        with storage.translate(os.path.join(root, folder)), os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if _hidden(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir():
                    if not entry.is_symlink() or not _leads_back(entry.path):
                        folders.append(name)
                elif entry.is_file():
                    yield name, entry.stat().st_size
                elif entry.is_symlink():
                    yield name, 0


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def _leads_back(link: str) -> bool:
    target = os.path.realpath(link)
    return (os.path.realpath(os.path.dirname(link)) + os.sep).startswith(target + os.sep)


def _cut(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Items [file, address, bytes or None, …] in lists of FIRST or FIRST_BYTES at the beginning, growing to PART."""
    held: list[Any] = []
    number = size = 0
    for item in items:
        held.append(item)
        size += item[2] or 0
        if len(held) >= min(PART, FIRST << number // 4) or size >= min(PART_BYTES, FIRST_BYTES << number // 4):
            yield held
            held, number, size = [], number + 1, 0
    if held:
        yield held


def _folder_parts(root: str, tally: Tally) -> Iterator[dict[str, Any]]:
    """Items are [file, address, bytes, labels, votes]; the label is the folder's path, None where there is none."""
    labelled_files = 0

    def items() -> Iterator[list[Any]]:
        nonlocal labelled_files
        for file, size in walk(root):
            tally.add(file, size)
            tally.items += 1
            folder = file.rpartition("/")[0]
            labelled_files += bool(folder)
            yield [file, storage.join(root, file), size, [folder] if folder else None, [1.0] if folder else []]

    yield from ({"read": "files", "items": part} for part in _cut(items()))
    if not tally.items:
        raise InputError(f"{root} holds no images", "pass a folder with images, .tar shards or a fetched source")
    if not labelled_files:
        raise InputError(
            f"{root} has no class folders, so nothing says what is in its {tally.items:,} files",
            "put the images into folders named like their classes, or give a labels file (--labels)",
        )


def _labelled_parts(config: IngestConfig, check: Callable[[str, str], None], tally: Tally) -> Iterator[dict[str, Any]]:
    assert config.labels
    root = config.input

    def items() -> Iterator[list[Any]]:
        for file, labels, votes in labelled(config.labels or "", root, config.separator):
            for label in labels:
                check(label, file)
            yield [file, storage.join(root, file), None, labels, votes]

    for part in _cut(items()):
        single: dict[str, list[Any]] = {}  # several rows of one file, which mostly lie together, are read once
        for item in part:
            known = single.setdefault(item[0], item)
            if known is not item:
                votes = dict(zip(known[3], known[4], strict=True))
                for label, vote in zip(item[3], item[4], strict=True):
                    votes[label] = max(vote, votes.get(label, vote))
                known[3:] = [list(votes), list(votes.values())]
        tally.items += len(single)
        yield {"read": "files", "items": list(single.values())}
    if not tally.items:
        raise InputError(f"{config.labels} has no rows", "give a labels file with a row for each image")
    for file, size in walk(root):
        if storage.join(root, file) not in (config.labels, config.classes):
            tally.add(file, size)


def _label_check(explicit: Classes | None, where: str | None) -> Callable[[str, str], None]:
    known = set(explicit.names) if explicit else None

    def check(label: str, file: str) -> None:
        if known is not None and label not in known:
            raise InputError(
                f"the label {label!r} of {file} is no class of {where}", "add it to the classes, or correct the labels"
            )

    return check


def _shard_parts(root: str, tally: Tally) -> Iterator[dict[str, Any]]:
    if SHARD.search(root):
        base, shards = root.rpartition("/")[0], [(root.rpartition("/")[2], storage.size(root))]
    else:
        base, shards = root, sorted((name, size) for name, size in walk(root) if SHARD.search(name))
    for name, size in shards:
        tally.add(name, size)
        uri = storage.join(base, name)
        for start, end in split_shard(uri, size, few=len(shards) < 64):
            yield {"read": "shard", "uri": uri, "name": name, "start": start, "end": end}


def _source_parts(source: sources.Source, config: IngestConfig, tally: Tally) -> Iterator[dict[str, Any]]:
    tally.items = source.splits[config.split]
    if not isinstance(source, ParquetSource):  # an official layout: the adapter knows labels, workers read the files
        records = ([r.file, str(r.image), None, r.labels, r.votes] for r in source.records(config.split))
        yield from ({"read": "files", "items": part} for part in _cut(records))
        return
    folder = storage.join(source.root, config.split)
    for name in (name for name in storage.list_files(folder) if name.endswith(".parquet")):
        uri = storage.join(folder, name)
        tally.size += storage.size(uri)
        with storage.open_read(uri) as file:
            metadata = pq.read_metadata(file)
        groups: list[int] = []
        rows = 0
        for group in range(metadata.num_row_groups):
            groups.append(group)
            rows += metadata.row_group(group).num_rows
            if rows >= PARQUET_ROWS or group == metadata.num_row_groups - 1:
                yield {"read": "parquet", "uri": uri, "groups": groups}
                groups, rows = [], 0


def class_list(kind: Kind, names: set[str], explicit: Classes | None) -> Classes:
    """The classes of a corpus: those stated, else the names met, in order of name.

    Folders bring their parents with them: `animals/dogs` has the parent `animals`, and the title `dogs`. Names that are
    all whole numbers are ordered as numbers. Raises InputError where a label is none of the stated classes.
    """
    if explicit is not None:
        if unknown := sorted(names.difference(explicit.names)):
            some = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            raise InputError(
                f"{len(unknown)} labels are no classes of the list: {some}",
                "add them to the classes, and run again: finished parts are kept",
            )
        return explicit
    if kind != "folder":
        numbers = all(name.isdecimal() for name in names)
        return Classes.flat(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))
    paths = {"/".join(steps[: i + 1]) for steps in (name.split("/") for name in names) for i in range(len(steps))}
    ordered = sorted(paths, key=lambda path: path.split("/"))
    index = {name: i for i, name in enumerate(ordered)}
    parents = tuple((index[name.rpartition("/")[0]],) if "/" in name else () for name in ordered)
    return Classes(tuple(ordered), tuple(name.rpartition("/")[2] for name in ordered), parents)


def part_uri(folder: str, number: int) -> str:
    """Where a part's document lies."""
    return storage.join(folder, "plan", f"{number:07d}.json")
