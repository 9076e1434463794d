"""VOC's average precision of boxes at IoU 0.5 (E-02 to E-07 on VOC), by area (2010 and later) or 11 points (2007).

Rules of the VOC devkit: detections of a category by falling score over all images; each looks at the annotation of the
highest IoU in its image and counts as found where that is at least 0.5 and not yet taken; one taken already makes it
false; a difficult annotation makes it neither. Trap: the devkit measures boxes by inclusive pixels (+1); boxes here are
continuous, which is the same once the data's reader has moved x1 and y1 by one pixel. Images are matched when they are
added, so a state keeps 10 bytes or so a detection. Equal scores keep the order of image ids, whatever was added first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tenfold.errors import InputError
from tenfold.metrics import curves, predictions, result

Interpolation = Literal["area", "11 points"]


@dataclass(frozen=True)
class VocAP(result.Measured):
    """Mergeable state of VOC's mean average precision over images.

    Attributes:
        classes: number of categories.
        iou: least overlap of a find.
        interpolation: how the curve becomes a number.
        ids: images seen.
        parts: for each image category [d] int32, score [d] float32 and verdict [d] int8 (1 found, 0 false, -1 neither)
            of its detections by falling score, and the categories [g] int32 that are there to find.
    """

    classes: int
    iou: float = 0.5
    interpolation: Interpolation = "area"
    ids: tuple[str, ...] = ()
    parts: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def empty(cls, classes: int, *, iou: float = 0.5, interpolation: Interpolation = "area") -> VocAP:
        """A state that has seen nothing; raises InputError naming the wrong setting."""
        if classes < 1:
            raise InputError(f"classes is {classes}", "there must be at least 1 category")
        if not 0 < iou <= 1:
            raise InputError(f"iou is {iou}", "give a number above 0, at most 1; VOC's is 0.5")
        if interpolation not in ("area", "11 points"):
            raise InputError(f"interpolation is {interpolation!r}", "use area or 11 points")
        return cls(classes, iou, interpolation)

    def update(
        self,
        ids: Sequence[str],
        found: Sequence[predictions.Boxes | predictions.Poses],
        truths: Sequence[predictions.Instances],
    ) -> VocAP:
        """Add images: the boxes found and the annotations of each. Raises InputError naming the image."""
        predictions.check_batch(ids, found, truths)
        added = []
        for image, prediction, truth in zip(ids, found, truths, strict=True):
            categories = np.asarray(truth.categories, dtype=np.int32)
            predictions.check_classes(image, "annotation", categories, self.classes)
            predictions.check_classes(image, "prediction", prediction.classes, self.classes)
            order = np.argsort(-prediction.scores, kind="stable")
            cls = prediction.classes[order].astype(np.int32)
            verdict = _verdicts(prediction.boxes[order], cls, truth, categories, self.iou)
            difficult = np.asarray(truth.difficult, dtype=bool)
            added.append((cls, prediction.scores[order], verdict, categories[~difficult]))
        return VocAP(self.classes, self.iou, self.interpolation, self.ids + tuple(ids), self.parts + tuple(added))

    def merge(self, other: VocAP) -> VocAP:
        """The state that has seen what both have seen; raises InputError where they judge differently."""
        if (self.classes, self.iou, self.interpolation) != (other.classes, other.iou, other.interpolation):
            raise InputError("cannot merge VOC measures of different settings", "use the same settings on all ranks")
        ids, parts = self.ids + other.ids, self.parts + other.parts
        return VocAP(self.classes, self.iou, self.interpolation, ids, parts)

    def prepared(self) -> result.Prepared:
        """All detections by category and falling score."""
        ids, place = result.ordered(self.ids)
        parts = [self.parts[i] for i in np.argsort(place)]
        cls, scores, verdict, positives = (np.concatenate([p[k] for p in parts]) for k in range(4))
        image = np.repeat(np.arange(len(ids)), [len(p[0]) for p in parts])
        there = np.repeat(np.arange(len(ids)), [len(p[3]) for p in parts])
        order = np.lexsort((image, -scores, cls))  # stable: within an image by falling score already
        counted = order[verdict[order] >= 0]
        return _Prepared(
            ids, self.classes, self.interpolation, image[counted], cls[counted], verdict[counted] > 0, there, positives
        )


def _verdicts(
    boxes: np.ndarray, cls: np.ndarray, truth: predictions.Instances, categories: np.ndarray, least: float
) -> np.ndarray:
    """[d] int8: 1 found, 0 false, -1 neither; detections of one image by falling score."""
    verdict = np.zeros(len(boxes), np.int8)
    if not len(boxes) or not len(categories):
        return verdict
    a, b = boxes.astype(np.float64)[:, None], np.asarray(truth.boxes, dtype=np.float64)
    sides = np.maximum(np.minimum(a[..., 2:], b[:, 2:]) - np.maximum(a[..., :2], b[:, :2]), 0)
    both = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - both
    overlap = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    overlap[cls[:, None] != categories] = -1
    best = overlap.argmax(axis=1)
    near = np.flatnonzero(overlap[np.arange(len(boxes)), best] >= least)
    target = best[near]
    # Detections come by falling score: the first to point at an annotation takes it.
    _, first = np.unique(target, return_index=True)
    verdict[near[first]] = 1
    verdict[near[np.asarray(truth.difficult, dtype=bool)[target]]] = -1
    return verdict


@dataclass(frozen=True)
class _Prepared:
    """Detections that count, by category and falling score."""

    ids: np.ndarray
    classes: int
    interpolation: Interpolation
    image: np.ndarray  # [d] place in ids
    cls: np.ndarray  # [d]
    hit: np.ndarray  # [d] bool
    positive_image: np.ndarray  # [g]
    positive_cls: np.ndarray

    def at(self, counts: np.ndarray) -> result.Values:
        """Mean over the categories that have something to find."""
        weight = counts[self.image].astype(np.float64)
        total = np.bincount(self.positive_cls, counts[self.positive_image], minlength=self.classes)
        at = np.flatnonzero(self.hit)
        lists = self.cls[at]
        seen = curves.running(weight, self.cls)[at]
        found = curves.running(weight[at], lists)
        if self.interpolation == "area":
            per_class = curves.area(found, seen, lists, total)
        else:
            per_class = curves.interpolated(found, seen, lists, total, np.linspace(0, 1, 11))
        return result.Values({"mAP": result.mean(per_class)}, per_class)
