"""What a network says about one image, and what is true about it: plain numpy, no torch.

Evaluation, the exported bundle and the server share these types, so that a metric judges exactly what a user gets.
All coordinates are pixels of the ORIGINAL stored image (not of the network's input), continuous: a box that covers the
whole of a 640 x 480 image is 0, 0, 640, 480. Category indices count from 0 and know no background class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tenfold.errors import InputError

IGNORE = 255  # the value of a class map that no metric counts


def _array(owner: object, name: str, kind: type, shape: tuple[int | None, ...]) -> None:
    """Make a field of a frozen prediction an array of the given type; raises InputError where its shape is wrong."""
    try:
        value: np.ndarray = np.asarray(getattr(owner, name), dtype=kind)
    except (TypeError, ValueError) as error:
        raise InputError(f"{type(owner).__name__}.{name}: {error}", "give a numpy array of numbers") from None
    if not value.size and not shape[0] and value.ndim != len(shape):
        value = value.reshape([n or 0 for n in shape])  # [] stands for no instances whatever the shape
    if value.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, value.shape, strict=True)):
        wanted = "[" + ", ".join("k" if n is None else str(n) for n in shape) + "]"
        raise InputError(f"{type(owner).__name__}.{name} has shape {list(value.shape)}", f"it must be {wanted}")
    if np.issubdtype(kind, np.floating) and not np.isfinite(value).all():
        raise InputError(f"{type(owner).__name__}.{name} holds NaN or infinity", "check the network's weights")
    object.__setattr__(owner, name, value)


@dataclass(frozen=True)
class Scores:
    """Classification: probabilities of all classes (softmax; sigmoid where an image may have several labels).

    Attributes:
        scores: [C] float32.
    """

    scores: np.ndarray

    def __post_init__(self) -> None:
        _array(self, "scores", np.float32, (None,))


@dataclass(frozen=True)
class Boxes:
    """Detection: k boxes in any order.

    Attributes:
        boxes: [k, 4] float32 x1, y1, x2, y2.
        scores: [k] float32.
        classes: [k] int64 index into the categories.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        _array(self, "boxes", np.float32, (None, 4))
        _array(self, "scores", np.float32, (len(self.boxes),))
        _array(self, "classes", np.int64, (len(self.boxes),))


@dataclass(frozen=True)
class ClassMap:
    """Segmentation: a class for every pixel.

    Attributes:
        classes: [H, W] uint8, 0 = background, then the categories; 255 is never predicted.
    """

    classes: np.ndarray

    def __post_init__(self) -> None:
        _array(self, "classes", np.uint8, (None, None))


@dataclass(frozen=True)
class Poses:
    """Keypoints of k objects in any order.

    Attributes:
        keypoints: [k, K, 3] float32 x, y, score.
        scores: [k] float32 of the whole pose.
        boxes: [k, 4] float32 that the poses were found in.
        classes: [k] int64 index into the categories.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        _array(self, "keypoints", np.float32, (None, None, 3))
        _array(self, "scores", np.float32, (len(self.keypoints),))
        _array(self, "boxes", np.float32, (len(self.keypoints), 4))
        _array(self, "classes", np.int64, (len(self.keypoints),))


Prediction = Scores | Boxes | ClassMap | Poses


class Instances(Protocol):
    """What metrics of boxes and poses read of an image's annotations (a dataset's record has these and more)."""

    @property
    def boxes(self) -> np.ndarray:
        """[k, 4] x1, y1, x2, y2."""

    @property
    def categories(self) -> np.ndarray:
        """[k] index into the categories."""

    @property
    def crowd(self) -> np.ndarray:
        """[k] bool: the box stands for a group; COCO neither counts nor punishes what lies in it."""

    @property
    def difficult(self) -> np.ndarray:
        """[k] bool: VOC neither counts nor punishes it."""

    @property
    def areas(self) -> np.ndarray:
        """[k] px of the object (its mask where there is one), which COCO sorts by size and scales OKS by."""

    @property
    def keypoints(self) -> np.ndarray:
        """[k, K, 3] x, y, visibility (0 not annotated, 1 hidden, 2 visible)."""


def _none() -> Any:
    return None


@dataclass(frozen=True)
class Truth:
    """Annotated instances of one image, for callers that have no dataset record; see `Instances` for the fields.

    `crowd` and `difficult` are False, `areas` those of the boxes and `keypoints` [k, 0, 3] where they are left out.
    """

    boxes: np.ndarray
    categories: np.ndarray
    crowd: np.ndarray = field(default_factory=_none)
    difficult: np.ndarray = field(default_factory=_none)
    areas: np.ndarray = field(default_factory=_none)
    keypoints: np.ndarray = field(default_factory=_none)

    def __post_init__(self) -> None:
        _array(self, "boxes", np.float32, (None, 4))
        k = len(self.boxes)
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        for name, value in {
            "crowd": np.zeros(k, bool),
            "difficult": np.zeros(k, bool),
            "areas": sides[:, 0] * sides[:, 1],
            "keypoints": np.zeros((k, 0, 3), np.float32),
        }.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        _array(self, "categories", np.int64, (k,))
        _array(self, "crowd", bool, (k,))
        _array(self, "difficult", bool, (k,))
        _array(self, "areas", np.float32, (k,))
        _array(self, "keypoints", np.float32, (k, None, 3))


def check_batch(ids: Sequence[str], predictions: Sequence[object], truths: Sequence[object]) -> None:
    """Raise InputError unless there are as many ids as predictions and truths."""
    if not len(ids) == len(predictions) == len(truths):
        raise InputError(
            f"{len(ids)} image ids, {len(predictions)} predictions and {len(truths)} truths",
            "give one of each for every image, in the same order",
        )


def check_classes(image: str, field_: str, classes: np.ndarray, count: int) -> None:
    """Raise InputError naming the image where a category index is outside 0 … count - 1."""
    wrong = (classes < 0) | (classes >= count)
    if wrong.any():
        raise InputError(
            f"image {image}: {field_} has category {int(classes[wrong][0])} of {count}",
            "indices count from 0 and leave out the background; do model and dataset have the same categories?",
        )
