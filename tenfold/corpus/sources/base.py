"""What a fetched source is: one folder, one manifest, records and classes.

    DIR/NAME/source.json    Manifest(kind="source"); written last, so a folder without it is not complete
    DIR/NAME/card.md        the data card: what, size, licence, how the labels arose, splits, known faults
    DIR/NAME/classes.json   [{"name", "title", "parents": [names]}], where the source has classes

and the data itself, either as `SPLIT/*.parquet` (columns of RECORDS) or in the source's own official layout, which an
adapter reads into the same records.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tenfold import storage
from tenfold.corpus.table import Classes
from tenfold.errors import InputError
from tenfold.manifest import Manifest

RECORDS = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),  # stable name inside the source, `train/00000.png`
        pa.field("image", pa.binary(), nullable=False),  # encoded bytes as the source holds them
        pa.field("labels", pa.list_(pa.string()), nullable=False),  # class names, no repeats
        pa.field("votes", pa.list_(pa.float32()), nullable=False),  # one for each label
    ]
)


@dataclass(frozen=True)
class Record:
    """One image of a source.

    Attributes:
        file: stable name inside the source (`train/00000.png`); unique over all its splits.
        image: the encoded bytes, or the path of the file that holds them.
        labels: names of its classes, without repeats; may be empty.
        votes: weight of evidence for each label; people counted for CIFAR-10N, 1.0 elsewhere.
    """

    file: str
    image: bytes | Path
    labels: list[str] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)

    def read(self) -> bytes:
        """The encoded bytes, wherever they lie."""
        return self.image if isinstance(self.image, bytes) else self.image.read_bytes()


@dataclass(frozen=True)
class Source(ABC):
    """A fetched source, opened for reading.

    Attributes:
        root: the folder DIR/NAME (a path, or `s3://…` for sources in parquet).
        manifest: its `source.json`; `facts` hold name, splits, licence, archives.
    """

    root: str
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name of the source: `cifar10n`, `coco2017`, …."""
        return str(self.manifest.facts["name"])

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split, `{"train": 50000, "test": 10000}`."""
        return {str(k): int(v) for k, v in self.manifest.facts["splits"].items()}

    def check_split(self, split: str) -> str:
        """`split`; raises InputError naming the splits there are."""
        if split not in self.splits:
            raise InputError(f"{self.name} has no split {split!r}", f"choose one of: {', '.join(self.splits)}")
        return split

    def classes(self) -> Classes:
        """The classes with their hierarchy, from `classes.json`; class index = position in that file."""
        return read_classes(storage.join(self.root, "classes.json"))

    @abstractmethod
    def records(self, split: str) -> Iterator[Record]:
        """The images of a split, always in the same order, in bounded memory."""

    def batches(self, split: str, rows: int = 512) -> Iterator[pa.RecordBatch]:
        """The images of a split as record batches in the schema RECORDS, at most `rows` rows each."""
        held: list[Record] = []
        for record in self.records(split):
            held.append(record)
            if len(held) == rows:
                yield to_batch(held)
                held = []
        if held:
            yield to_batch(held)


def to_batch(records: list[Record]) -> pa.RecordBatch:
    """Records as one batch in the schema RECORDS; reads the images that are still files."""
    columns = [
        [r.file for r in records],
        [r.read() for r in records],
        [r.labels for r in records],
        [r.votes for r in records],
    ]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, RECORDS, strict=True)], schema=RECORDS
    )


def read_classes(uri: str) -> Classes:
    """Read a `classes.json`; raises InputError where a parent is not in the list or a name is there twice."""
    try:
        nodes: list[dict[str, Any]] = json.loads(storage.read_bytes(uri))
        names = [str(node["name"]) for node in nodes]
        index = {name: i for i, name in enumerate(names)}
        if len(index) < len(names):
            twice = next(n for i, n in enumerate(names) if index[n] != i)
            raise InputError(f"{uri}: class {twice!r} is there twice", "give every class a name of its own")
        parents = tuple(tuple(index[p] for p in node.get("parents", ())) for node in nodes)
        titles = tuple(str(node.get("title") or node["name"]) for node in nodes)
    except KeyError as error:
        raise InputError(f"{uri}: no class has the name {error}", "list every parent as a class of its own") from None
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{uri} is not a class list: {error}", 'write a JSON list of {"name", "title", "parents"}'
        ) from None
    return Classes(tuple(names), titles, parents)


def classes_json(classes: Classes) -> bytes:
    """`classes.json` of a class list; `read_classes` gives it back."""
    nodes = [
        {"name": name, "title": title, "parents": [classes.names[p] for p in parents]}
        for name, title, parents in zip(classes.names, classes.titles, classes.parents, strict=True)
    ]
    lines = ",\n ".join(json.dumps(node, ensure_ascii=False) for node in nodes)
    return f"[{lines}]\n".encode()
