"""COCO JSON: instances and keypoints, official or anyone's.

The annotations of an image lie anywhere in the file, and COCO's training file is 450 MB: one pass sorts them by image
into a scratch file, from which those of one image are read when it comes up. Memory holds four numbers an annotation.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.corpus.sources.jsons import elements
from tenfold.errors import InputError
from tenfold.transfer.data import rle
from tenfold.transfer.data.faults import Faults, Report, clip_box
from tenfold.transfer.data.reader import About, Item, Reader, gather
from tenfold.transfer.data.table import IGNORE, Annotations

PERSON = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
PERSON_SIGMAS = (
    .026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089,
)  # fmt: skip
SIGMA = 0.05  # for keypoints of others, for which nobody has measured how far annotators differ


@dataclass
class _Index:
    """One annotation file, sorted by image."""

    path: Path
    folder: Path
    items: list[Item] = field(default_factory=list)
    categories: dict[int, dict[str, Any]] = field(default_factory=dict)
    masks: bool = False
    faults: list[tuple[str, str, str]] = field(default_factory=list)  # kind, id, detail
    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # ascending, one for each annotation
    scratch: Any = None

    def of(self, image_id: int) -> list[dict[str, Any]]:
        """The annotations of an image, in the order of the file."""
        low, high = (int(np.searchsorted(self.images, image_id, side)) for side in ("left", "right"))
        found = []
        for i in range(low, high):
            start, end = int(self.starts[i]), int(self.ends[i])
            found.append(json.loads(os.pread(self.scratch.fileno(), end - start, start)))
        return found


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _read(path: Path, folder: Path) -> _Index:
    index = _Index(path, folder, scratch=tempfile.TemporaryFile())  # noqa: SIM115 - closed with the index
    numbers, starts, ends, at = array("q"), array("q"), array("q"), 0
    ids: set[int] = set()
    images: dict[int, Item] = {}
    position = 0
    try:
        for key, value in elements(path):
            if key == "annotations":
                position += 1
                if not (
                    isinstance(value, dict) and all(_whole(value.get(n)) for n in ("id", "image_id", "category_id"))
                ):
                    where = f"annotation {value.get('id')}" if isinstance(value, dict) else f"annotation no. {position}"
                    index.faults.append(
                        ("annotation-malformed", where, "id, image_id or category_id is no whole number")
                    )
                    continue
                if value["id"] in ids:
                    detail = f"image {value['image_id']} or another one has it already"
                    index.faults.append(("annotation-id-repeated", f"annotation {value['id']}", detail))
                    continue
                ids.add(value["id"])
                index.masks = index.masks or bool(value.get("segmentation"))
                data = json.dumps(value).encode()
                index.scratch.write(data)
                numbers.append(value["image_id"])
                starts.append(at)
                at += len(data)
                ends.append(at)
            elif key == "images":
                if not (
                    isinstance(value, dict) and _whole(value.get("id")) and isinstance(value.get("file_name"), str)
                ):
                    where = f"image {value.get('id')}" if isinstance(value, dict) else "an image"
                    index.faults.append(("image-malformed", where, "it lacks a whole number as id, or a file_name"))
                elif value["id"] in images:
                    detail = f"{images[value['id']].file} and {value['file_name']} have it"
                    index.faults.append(("image-id-repeated", f"image {value['id']}", detail))
                else:
                    width, height = value.get("width"), value.get("height")
                    size = (int(width), int(height)) if width and height and _whole(width) and _whole(height) else None
                    images[value["id"]] = Item(value["file_name"], folder / value["file_name"], value["id"], size)
            elif key == "categories":
                index.categories[int(value["id"])] = value
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "pass an annotation file in COCO's form") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not in COCO's form: {error}", "it needs images, annotations, categories") from None
    if not images or not index.categories:
        lacks = "categories" if images else "images"
        raise InputError(f"{path} lists no {lacks}", "pass an annotation file in COCO's form")
    index.scratch.flush()
    index.items = [images[i] for i in sorted(images)]
    order = np.argsort(np.array(numbers, np.int64), kind="stable")
    index.images = np.array(numbers, np.int64)[order]
    index.starts, index.ends = np.array(starts, np.int64)[order], np.array(ends, np.int64)[order]
    for stranger in np.setdiff1d(index.images, np.fromiter(images, np.int64)):
        for note in index.of(int(stranger)):
            index.faults.append(
                ("annotation-of-no-image", f"annotation {note['id']}", f"image {stranger} is not listed")
            )
    return index


class CocoReader(Reader):
    """Instances or keypoints in COCO's form.

    Args:
        name: of the data set.
        files: annotation file and folder of images, by split.
        paint: make class maps of the masks: smaller objects on larger ones, crowds become 255.
        protocol: how it was split.
        inputs: digests of what it is made from.
    """

    def __init__(
        self,
        name: str,
        files: dict[str, tuple[Path, Path]],
        *,
        paint: bool = False,
        protocol: str = "as given",
        inputs: tuple[str, ...] = (),
    ) -> None:
        self.indices = {split: _read(path, folder) for split, (path, folder) in files.items()}
        self.splits, self.paint = tuple(files), paint
        first = next(iter(self.indices.values()))
        described = [(i, str(c.get("name", i))) for i, c in sorted(first.categories.items())]
        for index in self.indices.values():
            if [(i, str(c.get("name", i))) for i, c in sorted(index.categories.items())] != described:
                raise InputError(f"{index.path} has other categories than {first.path}", "convert them one at a time")
        self.index = {number: i for i, (number, _) in enumerate(described)}
        if paint and len(described) > 254:
            raise InputError(f"{len(described)} categories do not fit a class map of 8 bits", "leave --paint away")
        sets = {tuple(c["keypoints"]): c for c in first.categories.values() if c.get("keypoints")}
        if len(sets) > 1:
            raise InputError(f"{first.path} has categories with different keypoints", "convert them one at a time")
        names, category = next(iter(sets.items()), ((), {}))
        self.k = len(names)
        masks = any(index.masks for index in self.indices.values())
        has = ["boxes", "labels"] + ["masks"] * masks + ["keypoints"] * bool(names) + ["map"] * paint
        self.about = About(
            name=name,
            categories=tuple(title for _, title in described),
            has=tuple(has),
            protocol=protocol,
            keypoints=names,
            skeleton=tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ()),
            flip_pairs=flip_pairs(names),
            oks_sigmas=PERSON_SIGMAS if names == PERSON else (SIGMA,) * self.k,
            inputs=inputs,
            more={"category_ids": [number for number, _ in described], "mirror": True},
        )

    def items(self, split: str, faults: Faults) -> list[Item]:
        """Images in order of id."""
        index = self.indices[split]
        for kind, where, detail in index.faults:
            faults.add(kind, str(index.path), where, detail)
        return index.items

    def annotations(self, split: str, item: Item, size: tuple[int, int], faults: Faults) -> Annotations:
        """The objects of an image, in order of annotation id; faulty parts are left out and noted."""
        index = self.indices[split]
        objects = []
        for note in sorted(index.of(item.image_id), key=lambda note: int(note["id"])):
            report = Report(faults, str(index.path), f"annotation {note['id']}, image {item.image_id} ({item.file})")
            if (category := self.index.get(note["category_id"])) is None:
                report("category-unknown", f"no category has the id {note['category_id']}")
                continue
            if (box := _box(note.get("bbox"), size, report)) is None:
                continue
            thing = {"id": note["id"], "category": category, "box": box, "crowd": bool(note.get("iscrowd"))}
            if index.masks:
                thing["mask"] = _mask(note.get("segmentation"), size, report)
            stated = note.get("area")
            if isinstance(stated, int | float) and math.isfinite(stated) and stated > 0:
                thing["area"] = stated
            elif thing.get("mask"):
                thing["area"] = rle.area(thing["mask"])
            if self.k:
                thing["keypoints"] = _keypoints(note.get("keypoints"), self.k, size, report)
            objects.append(thing)
        return gather(size, objects, self.k, self._map(size, objects) if self.paint else None)

    def _map(self, size: tuple[int, int], objects: list[dict[str, Any]]) -> np.ndarray:
        painted = np.zeros((size[1], size[0]), np.uint8)
        masked = [(rle.area(o["mask"]), o) for o in objects if o.get("mask")]
        for _, thing in sorted(masked, key=lambda pair: (not pair[1]["crowd"], -pair[0])):
            painted[rle.decode(thing["mask"], size[1], size[0])] = IGNORE if thing["crowd"] else thing["category"] + 1
        return painted


def _numbers(value: Any) -> np.ndarray | None:
    """A list of finite numbers as float64, else None."""
    try:
        numbers = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return numbers if numbers.ndim == 1 and np.isfinite(numbers).all() else None


def _box(value: Any, size: tuple[int, int], report: Report) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 inside the image of COCO's x, y, width, height; None where there is no such box."""
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 4:
        report("box-malformed", f"bbox is {str(value)[:80]}")
        return None
    x, y, w, h = numbers.tolist()
    return clip_box((x, y, x + w, y + h), size, report)


def _mask(value: Any, size: tuple[int, int], report: Report) -> bytes:
    """Compressed run lengths of a segmentation; b"" where there is none."""
    width, height = size
    if isinstance(value, dict):
        if list(value.get("size") or ()) != [height, width]:
            report("rle-size", f"size is {value.get('size')}, the image {[height, width]} (height, width)")
            return b""
        counts = value.get("counts")
        try:
            runs = rle.unpack(counts.encode("ascii")) if isinstance(counts, str) else np.array(counts, np.int64)
            if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
                raise ValueError(f"run lengths cover {int(runs.sum())} of {height * width} pixels")
        except (ValueError, TypeError, OverflowError) as error:
            report("rle-invalid", str(error))
            return b""
        if not runs[1::2].sum():
            report("mask-empty", "the run lengths hold no pixel")
            return b""
        return rle.pack(runs)
    polygons = []
    for polygon in value if isinstance(value, list) else []:
        numbers = _numbers(polygon)
        if numbers is None or len(numbers) < 6 or len(numbers) % 2:
            report("polygon-invalid", f"it has {len(polygon) if isinstance(polygon, list) else 'no'} numbers")
        else:
            polygons.append(numbers.tolist())
    counts = rle.from_polygons(polygons, height, width) if polygons else b""
    if not counts or not rle.area(counts):
        report("mask-empty", "no polygon covers a pixel" if polygons else "segmentation holds no polygon")
        return b""
    return counts


def _keypoints(value: Any, k: int, size: tuple[int, int], report: Report) -> np.ndarray:
    """x, y, visibility [K, 3]; zeros where they are not labelled."""
    empty = np.zeros((k, 3))
    if value is None:
        return empty
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 3 * k:
        report("keypoints-count", f"{len(value) if isinstance(value, list) else 0} numbers for {k} keypoints")
        return empty
    points = numbers.reshape(k, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        report("keypoints-visibility", f"visibility {sorted(set(points[:, 2].tolist()))}")
        return empty
    x, y, seen = points.T
    outside = (seen > 0) & ((x < 0) | (y < 0) | (x > size[0]) | (y > size[1]))
    if outside.any():
        report("keypoints-outside", f"keypoints {np.flatnonzero(outside).tolist()} of {size[0]} x {size[1]}")
    points[outside | (seen == 0)] = 0
    return points


def flip_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Pairs of keypoints that change places in a mirror, by their names: left_eye and right_eye."""
    place = {name: i for i, name in enumerate(names)}
    pairs = [(i, place.get(name.replace("left", "right"), -1)) for i, name in enumerate(names) if "left" in name]
    return tuple((a, b) for a, b in pairs if b >= 0)
