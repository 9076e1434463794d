"""mIoU of segmentation (E-08 to E-10): intersection over union of each class over all pixels, averaged over classes.

Counting an image never sorts or masks pixels: truth and prediction form one 16-bit code a pixel, and since class maps
have long runs only where the code changes is looked at (maps without runs, such as noise, go through a plain count).
An image is kept as the non-zero cells of its confusion matrix (some 30 of 441 on VOC), so memory does not depend on its
size and the bootstrap needs no pixels. Pixels whose truth is 255 do not count, as in VOC (object borders) and ADE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tenfold.errors import InputError
from tenfold.metrics import result
from tenfold.metrics.predictions import IGNORE, ClassMap, check_batch


def count(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes truth * 256 + predicted that occur, rising [n] int64, and the pixels of each [n] int64; both maps uint8."""
    codes = truth.astype(np.uint16).ravel()
    codes <<= 8
    codes |= predicted.ravel()
    if not codes.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    last = np.flatnonzero(codes[1:] != codes[:-1])
    if len(last) < codes.size // 8:
        last = np.append(last, codes.size - 1)
        pixels = np.bincount(codes[last], weights=np.diff(last, prepend=-1)).astype(np.int64)
    else:
        pixels = np.bincount(codes)
    cells = np.flatnonzero(pixels)
    return cells, pixels[cells]


@dataclass(frozen=True)
class MeanIoU(result.Measured):
    """Mergeable state of mIoU over images.

    Attributes:
        classes: number of classes with the background, at most 255.
        ids: images seen.
        parts: for each image the codes truth * 256 + predicted that occur, and the pixels of each.
    """

    classes: int
    ids: tuple[str, ...] = ()
    parts: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def empty(cls, classes: int) -> MeanIoU:
        """A state that has seen nothing; `classes` counts the background. Raises InputError outside 1 to 255."""
        if not 1 <= classes <= IGNORE:
            raise InputError(f"classes is {classes}", "a class map holds 1 to 255 classes; 255 means ignore")
        return cls(classes)

    def update(self, ids: Sequence[str], predictions: Sequence[ClassMap], truths: Sequence[np.ndarray]) -> MeanIoU:
        """Add images.

        Args:
            ids: one for each image.
            predictions: class maps, each of its image's original size.
            truths: [H, W] uint8 class indices; 255 = ignore.
        Raises InputError naming the image whose sizes differ or whose class is unknown.
        """
        check_batch(ids, predictions, truths)
        added = []
        for image, prediction, truth in zip(ids, predictions, truths, strict=True):
            truth = np.asarray(truth)
            if truth.dtype != np.uint8 or truth.shape != prediction.classes.shape:
                raise InputError(
                    f"image {image}: the truth is {truth.dtype} {list(truth.shape)}, "
                    f"the prediction uint8 {list(prediction.classes.shape)}",
                    "both are class maps [H, W] of uint8 at the size of the original image",
                )
            cells, pixels = count(truth, prediction.classes)
            wrong = cells[((cells >> 8 >= self.classes) & (cells >> 8 != IGNORE)) | (cells & 255 >= self.classes)]
            if len(wrong):
                raise InputError(
                    f"image {image}: a pixel has truth {wrong[0] >> 8} and prediction {wrong[0] & 255} "
                    f"of {self.classes} classes",
                    "do model and dataset have the same categories? The background is class 0; only truths may be 255",
                )
            known = cells >> 8 != IGNORE
            added.append((cells[known].astype(np.uint16), pixels[known].astype(np.uint32)))
        return MeanIoU(self.classes, self.ids + tuple(ids), self.parts + tuple(added))

    def merge(self, other: MeanIoU) -> MeanIoU:
        """The state that has seen what both have seen; raises InputError where they count different classes."""
        if self.classes != other.classes:
            raise InputError(
                f"cannot merge mIoU of {self.classes} and of {other.classes} classes", "use the same dataset"
            )
        return MeanIoU(self.classes, self.ids + other.ids, self.parts + other.parts)

    def prepared(self) -> result.Prepared:
        """All confusions in one table, images in the order of their ids."""
        ids, place = result.ordered(self.ids)
        sizes = [len(cells) for cells, _ in self.parts]
        cells = np.concatenate([cells for cells, _ in self.parts]).astype(np.int64)
        pixels = np.concatenate([pixels for _, pixels in self.parts]).astype(np.float64)
        cell = (cells >> 8) * self.classes + (cells & 255)
        return _Prepared(ids, self.classes, np.repeat(place, sizes), cell, pixels)

    def confusion(self) -> np.ndarray:
        """[classes, classes] int64 pixels, rows truth, columns prediction, over all images."""
        ids, _ = result.ordered(self.ids)
        prepared = self.prepared()
        assert isinstance(prepared, _Prepared)
        return prepared.confusion(np.ones(len(ids), np.int64)).astype(np.int64)


@dataclass(frozen=True)
class _Prepared:
    """Non-zero cells of all images' confusion matrices."""

    ids: np.ndarray
    classes: int
    image: np.ndarray  # [n] place of the image in ids
    cell: np.ndarray  # [n] truth * classes + predicted
    pixels: np.ndarray  # [n] float64, exact up to 2^53 pixels in all

    def confusion(self, counts: np.ndarray) -> np.ndarray:
        """[classes, classes] when image i counts counts[i] times."""
        weights = self.pixels * counts[self.image]
        return np.bincount(self.cell, weights, minlength=self.classes**2).reshape(self.classes, self.classes)

    def at(self, counts: np.ndarray) -> result.Values:
        """mIoU over the classes that occur in truth or prediction; accuracy of pixels and mean of the classes'."""
        confusion = self.confusion(counts)
        hit, truth = confusion.diagonal(), confusion.sum(1)
        union = truth + confusion.sum(0) - hit
        iou = np.divide(hit, union, out=np.full(self.classes, np.nan), where=union > 0)
        accuracy = np.divide(hit, truth, out=np.full(self.classes, np.nan), where=truth > 0)
        pixels = truth.sum()
        named = {
            "mIoU": result.mean(iou),
            "pixel accuracy": float(hit.sum() / pixels) if pixels else float("nan"),
            "class accuracy": result.mean(accuracy),
        }
        return result.Values(named, iou)
