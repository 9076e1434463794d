"""What a format's reader gives: images by split, and the annotations of each when they are asked for."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tenfold.transfer.data.faults import Faults
from tenfold.transfer.data.table import Annotations


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split.

    Attributes:
        file: name inside the source, unique in its split.
        path: where its bytes lie.
        image_id: the source's number, unique in its split.
        size: width and height as the annotations state them; None where they do not.
    """

    file: str
    path: Path
    image_id: int
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class About:
    """What is true of a whole data set; becomes the manifest's facts.

    Attributes:
        name: of the data set.
        categories: names by index, without background.
        has: of table.HAS.
        protocol: how it was split, for people.
        keypoints: names of the K keypoints.
        skeleton: pairs of keypoint indices that are joined.
        flip_pairs: pairs of keypoint indices that change places when an image is mirrored.
        oks_sigmas: one for each keypoint; COCO's definition, as a share of the square root of the object's area.
        inputs: digests of what it is made from.
        more: further facts. `mirror` false: a mirrored image shows things that there are not, so never flip.
    """

    name: str
    categories: tuple[str, ...]
    has: tuple[str, ...]
    protocol: str
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    oks_sigmas: tuple[float, ...] = ()
    inputs: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


class Reader(ABC):
    """A source of annotated images.

    Attributes:
        about: what is true of all of it.
        splits: names of its splits.
    """

    about: About
    splits: tuple[str, ...]

    @abstractmethod
    def items(self, split: str, faults: Faults) -> list[Item]:
        """The images of a split; always in the same order. Images that cannot be named are noted as faults."""

    @abstractmethod
    def annotations(self, split: str, item: Item, size: tuple[int, int], faults: Faults) -> Annotations | None:
        """The annotations of an image of that width and height, in its pixels; None where it is to be left out."""

    def finish(self, split: str, faults: Faults) -> None:  # noqa: B027 - most have nothing left to say
        """Note faults that belong to no image, after all images of a split."""


def gather(
    size: tuple[int, int],
    objects: list[dict[str, Any]],
    keypoints: int = 0,
    class_map: np.ndarray | None = None,
    labels: list[int] | None = None,
) -> Annotations:
    """Annotations of an image out of its objects.

    Args:
        size: width and height, px.
        objects: each with `box` (4), `category`, `id`, and as there are `crowd`, `difficult`, `area`, `mask`,
            `keypoints` [K, 3].
        keypoints: K.
        class_map: [H, W] uint8.
        labels: image-level classes; those of the objects where it is None.
    """
    boxes = np.array([o["box"] for o in objects], np.float32).reshape(-1, 4)
    plain = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    categories = np.array([o["category"] for o in objects], np.int64)
    points = [o["keypoints"] if "keypoints" in o else np.zeros((keypoints, 3)) for o in objects]
    return Annotations(
        width=size[0],
        height=size[1],
        labels=np.unique(categories if labels is None else np.array(labels, np.int64)),
        boxes=boxes,
        categories=categories,
        ids=np.array([o["id"] for o in objects], np.int64),
        crowd=np.array([o.get("crowd", False) for o in objects], bool),
        difficult=np.array([o.get("difficult", False) for o in objects], bool),
        areas=np.array([o.get("area", a) for o, a in zip(objects, plain, strict=True)], np.float32),
        masks=tuple(o.get("mask", b"") for o in objects),
        keypoints=np.array(points, np.float32).reshape(len(objects), keypoints, 3),
        map_png=None if class_map is None else map_png(class_map),
    )


def map_png(class_map: np.ndarray) -> bytes:
    """A class map [H, W] uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(class_map, np.uint8)).save(out, "PNG")
    return out.getvalue()
