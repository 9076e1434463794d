"""Any reader's images and annotations into a data set: in order of rank, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tenfold import storage
from tenfold.corpus.sniff import Rejected
from tenfold.corpus.sources.spec import Bars, no_bars
from tenfold.corpus.table import rank_of
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest, digest_json
from tenfold.transfer.data import scale
from tenfold.transfer.data.faults import Faults
from tenfold.transfer.data.reader import About, Item, Reader
from tenfold.transfer.data.table import ANNOTATED, Annotations, Dataset

BATCH = 64  # rows; images of a batch are in memory at once


def write_dataset(
    uri: str,
    reader: Reader,
    *,
    faults: Faults | None = None,
    splits: list[str] | None = None,
    max_side: int = 0,
    strict: bool = False,
    overwrite: bool = False,
    recipe: dict[str, Any] | None = None,
    bars: Bars = no_bars,
) -> Dataset:
    """Write a data set; the manifest comes last, so a killed run leaves none, and can be run again.

    Images are read twice: once for their hashes, which give the order, once in that order. Memory holds one entry an
    image and the images of one batch.

    Args:
        uri: folder of the data set.
        reader: of the source's format.
        faults: collects what is wrong.
        splits: which splits to take (all).
        max_side: larger images are scaled down so that their longest side is this, px (0: never).
        strict: look at everything first, and raise InputError where there is any fault; nothing is written then.
        overwrite: replace a finished data set.
        recipe: for the manifest.
        bars: shows progress.
    """
    root = storage.normalise(uri)
    faults = faults if faults is not None else Faults()
    target = storage.join(root, "manifest.json")
    finished = storage.exists(target)
    if finished and not overwrite:
        raise InputError(f"{uri} holds a finished data set", "pass --overwrite, or choose another folder")
    if finished:
        Dataset.open(root)  # whatever else has a manifest there is not ours to replace
    chosen = splits or list(reader.splits)
    if unknown := [split for split in chosen if split not in reader.splits]:
        raise InputError(f"{reader.about.name} has no split {unknown[0]!r}", f"choose of: {', '.join(reader.splits)}")
    if strict:  # before anything is written or replaced
        for split in chosen:
            for _ in scan(split, reader, faults, bars):
                pass
        faults.refuse()
    storage.remove(target)
    tallies = {split: _split(root, split, reader, faults, max_side, bars) for split in chosen}
    for old in storage.list_folders(root):  # splits of what was here before
        if old.endswith(".lance") and old.removesuffix(".lance") not in chosen:
            storage.remove(storage.join(root, old))
    facts = _facts(reader.about, tallies, faults)
    manifest = Manifest(
        kind="dataset",
        uri=root,
        digest=digest_json([facts["categories"], facts["keypoints"], {s: t.digest for s, t in tallies.items()}]),
        inputs=list(reader.about.inputs),
        recipe={**(recipe or {}), "max_side": max_side, "splits": chosen},
        facts=facts,
    )
    manifest.write(target)
    return Dataset(root, manifest)


def scan(
    split: str, reader: Reader, faults: Faults, bars: Bars = no_bars, rank: bool = False, max_side: int = 0
) -> Iterator[tuple[Item, str, scale.Picture, Annotations]]:
    """Item, id, stored image and annotations of every image of a split that can be taken; the others become faults.

    Args:
        split: of the reader's.
        reader: of the source's format.
        faults: collects what is wrong.
        bars: shows progress.
        rank: in order of rank, not in the reader's own.
        max_side: see write_dataset.
    """
    items = reader.items(split, faults)
    order: list[tuple[int, str]] = [(i, "") for i in range(len(items))]
    if rank:
        order = _ranked(split, items, bars)
    with bars(f"{split}, images", len(order)) as advance:
        for i, known in order:
            item = items[i]
            advance(1, "")
            try:
                data = item.path.read_bytes()
                picture = scale.store(data, item.size)
            except FileNotFoundError:
                faults.add("image-missing", str(item.path), f"image {item.image_id}", "there is no such file")
                continue
            except OSError as error:
                raise StorageError(
                    f"{item.path} cannot be read: {error.strerror}", "check the disk, run again"
                ) from None
            except Rejected as error:
                faults.add(
                    "image-unreadable", str(item.path), f"image {item.image_id}", f"{error.reason}: {error.detail}"
                )
                continue
            size = picture.width, picture.height
            if item.size is not None and item.size != size:
                detail = f"it is {size[0]} x {size[1]} px, annotated as {item.size[0]} x {item.size[1]}"
                faults.add("image-size", str(item.path), f"image {item.image_id}", detail)
                continue
            found = reader.annotations(split, item, size, faults)
            if found is not None:
                yield item, known or hashlib.sha256(data).hexdigest(), *scale.fit(picture, found, max_side)
    reader.finish(split, faults)


def _ranked(split: str, items: list[Item], bars: Bars) -> list[tuple[int, str]]:
    """Position and id of each image in order of rank, then file; missing images come first, to be noted."""
    ids: list[str] = []
    with bars(f"{split}, hashing", len(items)) as advance:
        for item in items:
            ids.append(_hash(item.path))
            advance(1, "")
    ranks = rank_of(ids)
    order = sorted(range(len(items)), key=lambda i: (bool(ids[i]), int(ranks[i]), items[i].file))
    return [(i, ids[i]) for i in order]


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", "check the disk, run again") from None


class _Tally:
    """Counts and the digest of a split, row by row (where batches end is no content)."""

    def __init__(self) -> None:
        self.rows = self.objects = self.negatives = self.crowds = self.difficult = 0
        self.by_category: dict[int, int] = {}
        self.state = hashlib.sha256()

    @property
    def digest(self) -> str:
        return "sha256:" + self.state.hexdigest()

    def add(self, item: Item, id: str, found: Annotations) -> None:
        self.rows += 1
        self.objects += len(found)
        self.negatives += not len(found) and not len(found.labels)
        self.crowds += int(found.crowd.sum())
        self.difficult += int(found.difficult.sum())
        for category in found.categories.tolist():
            self.by_category[category] = self.by_category.get(category, 0) + 1
        head = (id, item.file, item.image_id, found.width, found.height, len(found), found.labels.tolist())
        self.state.update(repr(head).encode())
        columns = (found.boxes, found.categories, found.ids, found.crowd, found.difficult, found.areas, found.keypoints)
        for values in columns:
            self.state.update(np.ascontiguousarray(values).tobytes())
        self.state.update(b"|".join(found.masks))
        classes = found.class_map()  # its pixels: zlib's versions give different bytes
        self.state.update(b"" if classes is None else classes.tobytes())


def _split(root: str, split: str, reader: Reader, faults: Faults, max_side: int, bars: Bars) -> _Tally:
    import lance

    uri = storage.join(root, f"{split}.lance")
    storage.remove(uri)
    tally = _Tally()

    def batches() -> Iterator[pa.RecordBatch]:
        held: list[dict[str, Any]] = []
        for item, id, picture, found in scan(split, reader, faults, bars, rank=True, max_side=max_side):
            tally.add(item, id, found)
            held.append(_row(item, id, picture, found))
            if len(held) == BATCH:
                yield pa.RecordBatch.from_pylist(held, ANNOTATED)
                held = []
        if held:
            yield pa.RecordBatch.from_pylist(held, ANNOTATED)

    # An error inside `batches` would come back wrapped in Lance's; it is kept, and raised as it was.
    raised: list[Exception] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches()
        except Exception as error:
            raised.append(error)
            raise

    reading = pa.RecordBatchReader.from_batches(ANNOTATED, guarded())
    try:
        with storage.translate(uri):
            lance.write_dataset(reading, uri, mode="create", storage_options=storage.lance_options(uri))
    except Exception:
        if raised:
            raise raised[0] from None
        raise
    if not tally.rows:
        detail = f", {faults.found[0]}" if faults.found else ""
        raise InputError(
            f"split {split} of {reader.about.name} has no image that can be used{detail}", "check the source"
        )
    return tally


def _row(item: Item, id: str, picture: scale.Picture, found: Annotations) -> dict[str, Any]:
    return {
        "id": id,
        "rank": int(rank_of([id])[0]),
        "image": picture.image,
        "width": picture.width,
        "height": picture.height,
        "source": item.file,
        "image_id": item.image_id,
        "labels": found.labels,
        "boxes": found.boxes.ravel(),
        "categories": found.categories,
        "annotation_ids": found.ids,
        "crowd": found.crowd,
        "difficult": found.difficult,
        "areas": found.areas,
        "masks": list(found.masks),
        "keypoints": found.keypoints.ravel(),
        "class_map": found.map_png,
    }


def _facts(about: About, tallies: dict[str, _Tally], faults: Faults) -> dict[str, Any]:
    return {
        "name": about.name,
        "splits": {split: tally.rows for split, tally in tallies.items()},
        "categories": list(about.categories),
        "keypoints": list(about.keypoints),
        "skeleton": [list(pair) for pair in about.skeleton],
        "flip_pairs": [list(pair) for pair in about.flip_pairs],
        "oks_sigmas": list(about.oks_sigmas),
        "has": list(about.has),
        "protocol": about.protocol,
        "counts": {
            split: {
                "objects": tally.objects,
                "images without annotation": tally.negatives,
                "crowds": tally.crowds,
                "difficult": tally.difficult,
                "by category": {about.categories[c]: n for c, n in sorted(tally.by_category.items())},
            }
            for split, tally in tallies.items()
        },
        "faults": dict(sorted(faults.counts.items())),
        **about.more,
    }
