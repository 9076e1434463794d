"""The annotated data set: one Lance table a split, in order of rank, and a manifest that is written last.

    DATASET/manifest.json   Manifest(kind="dataset"); facts: name, splits, categories, keypoints, skeleton, flip_pairs,
                            oks_sigmas, has, protocol, and counts
    DATASET/SPLIT.lance     one row an image, schema ANNOTATED

Rows lie in order of rank, a hash of the image's bytes as in a corpus, so a random subset of n images is the first n
rows (D-12). All coordinates are pixels of the stored image; pixel i covers [i, i + 1), so a box over the whole image is
(0, 0, width, height).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tenfold import storage
from tenfold.errors import InputError
from tenfold.manifest import Manifest
from tenfold.transfer.data import rle

if TYPE_CHECKING:
    import lance


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind))


ANNOTATED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # sha256 of the source file's bytes, as in a corpus
        pa.field("rank", pa.uint64(), nullable=False),  # corpus.table.rank_of(id); the table's order
        pa.field("image", pa.large_binary(), nullable=False),  # encoded JPEG or PNG
        pa.field("width", pa.int32(), nullable=False),  # of the stored image, px
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # file name inside the source
        pa.field("image_id", pa.int64(), nullable=False),  # the source's number; unique in a split
        pa.field("labels", _list(pa.int32()), nullable=False),  # image-level classes, ascending
        pa.field("boxes", _list(pa.float32()), nullable=False),  # 4k: x1, y1, x2, y2
        pa.field("categories", _list(pa.int32()), nullable=False),  # k, 0-based
        pa.field("annotation_ids", _list(pa.int64()), nullable=False),  # k, unique in a split
        pa.field("crowd", _list(pa.bool_()), nullable=False),  # k; a region of many, not one object
        pa.field("difficult", _list(pa.bool_()), nullable=False),  # k; neither trained nor scored (VOC's rule)
        pa.field("areas", _list(pa.float32()), nullable=False),  # k, px of the mask, else of the box
        pa.field("masks", _list(pa.binary()), nullable=False),  # k; rle counts at height x width, b"" where none
        pa.field("keypoints", _list(pa.float32()), nullable=False),  # 3kK: x, y, visibility 0, 1, 2
        pa.field("class_map", pa.large_binary(), nullable=True),  # PNG (mode L) of 0 = background, classes + 1, 255
    ]
)
HAS = ("boxes", "masks", "keypoints", "map", "labels")
IGNORE = 255  # in a class map


@dataclass(frozen=True)
class Annotations:
    """The annotations of one image as numpy arrays; k objects, K keypoints each.

    Attributes:
        width: of the stored image, px.
        height: px.
        labels: [n] int64, image-level classes.
        boxes: [k, 4] float32, x1 y1 x2 y2 px.
        categories: [k] int64, 0-based.
        ids: [k] int64, the source's annotation ids.
        crowd: [k] bool.
        difficult: [k] bool.
        areas: [k] float32, px.
        masks: k compressed run lengths; b"" where there is none. See `mask`.
        keypoints: [k, K, 3] float32, x y visibility; K is 0 where the dataset has none.
        map_png: the encoded class map; see `class_map`.
    """

    width: int
    height: int
    labels: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    ids: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray
    masks: tuple[bytes, ...]
    keypoints: np.ndarray
    map_png: bytes | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any], keypoints: int = 0) -> Annotations:
        """From a row (`to_pylist()[i]`); columns that were not read count as empty.

        Args:
            record: column name to value; width and height are needed.
            keypoints: K, for images without objects; others tell it themselves.
        """
        boxes = np.asarray(record.get("boxes") or (), np.float32).reshape(-1, 4)
        k = len(boxes)
        points = np.asarray(record.get("keypoints") or (), np.float32)
        shape = (k, len(points) // (3 * k), 3) if k and len(points) else (k, keypoints, 3)
        return cls(
            width=int(record["width"]),
            height=int(record["height"]),
            labels=np.asarray(record.get("labels") or (), np.int64),
            boxes=boxes,
            categories=np.asarray(record.get("categories") or (), np.int64),
            ids=np.asarray(record.get("annotation_ids") or (), np.int64),
            crowd=np.asarray(record.get("crowd") or (), bool),
            difficult=np.asarray(record.get("difficult") or (), bool),
            areas=np.asarray(record.get("areas") or (), np.float32),
            masks=tuple(record.get("masks") or ()),
            keypoints=points.reshape(shape) if len(points) else np.zeros(shape, np.float32),
            map_png=record.get("class_map"),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def mask(self, i: int) -> np.ndarray | None:
        """Mask [H, W] bool of object i; None where it has none."""
        return rle.decode(self.masks[i], self.height, self.width) if self.masks and self.masks[i] else None

    def class_map(self) -> np.ndarray | None:
        """Classes [H, W] uint8: 0 background, then categories + 1, 255 ignore; None where there is none."""
        if self.map_png is None:
            return None
        with Image.open(io.BytesIO(self.map_png), formats=["PNG"]) as opened:
            return np.array(opened)


@dataclass(frozen=True)
class Dataset:
    """A finished data set, opened for reading.

    Attributes:
        uri: the folder.
        manifest: its manifest.
    """

    uri: str
    manifest: Manifest

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """Open a folder (or its manifest); raises InputError where there is no finished data set."""
        root = storage.normalise(uri).removesuffix("/manifest.json")
        path = storage.join(root, "manifest.json")
        if not storage.exists(path):
            raise InputError(f"{uri} holds no finished data set", "run `tenfold dataset convert` (again)")
        manifest = Manifest.read(path)
        if manifest.kind != "dataset":
            raise InputError(f"{uri} is a {manifest.kind}, not a data set", "pass what `tenfold dataset convert` wrote")
        return cls(root, manifest.model_copy(update={"uri": root}))  # a data set may be moved or copied whole

    @property
    def facts(self) -> dict[str, Any]:
        """The manifest's facts."""
        return self.manifest.facts

    @property
    def digest(self) -> str:
        """Digest of all rows of all splits, and of categories and keypoints."""
        return self.manifest.digest

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Names by index, without background."""
        return tuple(self.facts["categories"])

    @property
    def splits(self) -> dict[str, int]:
        """Rows by split."""
        return {str(k): int(v) for k, v in self.facts["splits"].items()}

    def where(self, split: str) -> str:
        """Address of a split's Lance table; raises InputError naming the splits there are."""
        if split not in self.splits:
            raise InputError(f"{self.uri} has no split {split!r}", f"choose one of: {', '.join(self.splits)}")
        return storage.join(self.uri, f"{split}.lance")

    def table(self, split: str) -> lance.LanceDataset:
        """A split's Lance table, in order of rank."""
        import lance

        uri = self.where(split)
        return lance.dataset(uri, storage_options=storage.lance_options(uri))

    def need(self, *what: str) -> None:
        """Raises InputError where the data set lacks `what` (of HAS)."""
        if lacking := [one for one in what if one not in self.facts["has"]]:
            raise InputError(
                f"{self.uri} has no {' and no '.join(lacking)}; it has {', '.join(self.facts['has'])}",
                "choose a data set that has them, or convert it from annotations that do",
            )

    def annotations(self, split: str, images: bool = False) -> Iterator[tuple[dict[str, Any], Annotations]]:
        """Row (id, source, image_id, and image where wanted) and annotations of each image, in order of rank."""
        columns = [name for name in ANNOTATED.names if images or name != "image"]
        k = len(self.facts.get("keypoints", ()))
        scanner = self.table(split).scanner(columns=columns, batch_size=64, scan_in_order=True)
        for batch in scanner.to_batches():
            for row in batch.to_pylist():
                yield row, Annotations.from_record(row, k)
