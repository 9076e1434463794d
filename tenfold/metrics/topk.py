"""Accuracy of classification (E-01): top-1 and top-5 of images with one class, mean average precision with several.

Ties are settled against the network: a class that scores the same as the true one counts as ranked before it, so
constant scores are never right by luck of the order. (An image of fewer than k classes is always right in the top k.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tenfold.errors import InputError
from tenfold.metrics import curves, result
from tenfold.metrics.predictions import Scores, check_batch, check_classes


@dataclass(frozen=True)
class TopK(result.Measured):
    """Mergeable state of top-k accuracy over images.

    Attributes:
        classes: number of classes; `tops`: the values of k, the first being the main one.
        ids: images seen.
        parts: for each update the true class [n] int32 and its rank [n] int32, 0 = best.
    """

    classes: int
    tops: tuple[int, ...] = (1, 5)
    ids: tuple[str, ...] = ()
    parts: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def empty(cls, classes: int, tops: tuple[int, ...] = (1, 5)) -> TopK:
        """A state that has seen nothing; raises InputError for counts below one."""
        if classes < 1 or not tops or min(tops) < 1:
            raise InputError(f"classes is {classes} and tops {list(tops)}", "all must be at least 1")
        return cls(classes, tuple(tops))

    def update(self, ids: Sequence[str], predictions: Sequence[Scores], truths: Sequence[int] | np.ndarray) -> TopK:
        """Add images, each with its one true class; raises InputError naming the image."""
        true = np.asarray(truths, dtype=np.int64).reshape(-1)
        check_batch(ids, predictions, true.tolist())
        if not len(ids):
            return self
        scores = _stacked(ids, predictions, self.classes)
        for image, label in zip(ids, true, strict=True):
            check_classes(image, "truth", np.array([label]), self.classes)
        rank = (scores >= scores[np.arange(len(true)), true][:, None]).sum(1) - 1
        part = (true.astype(np.int32), rank.astype(np.int32))
        return TopK(self.classes, self.tops, self.ids + tuple(ids), (*self.parts, part))

    def merge(self, other: TopK) -> TopK:
        """The state that has seen what both have seen; raises InputError where they count different things."""
        if (self.classes, self.tops) != (other.classes, other.tops):
            raise InputError("cannot merge accuracies of different classes or k", "use the same settings on all ranks")
        return TopK(self.classes, self.tops, self.ids + other.ids, self.parts + other.parts)

    def prepared(self) -> result.Prepared:
        """Ranks in the order of image ids."""
        ids, place = result.ordered(self.ids)
        order = np.argsort(place)
        true, rank = (np.concatenate([p[k] for p in self.parts])[order] for k in range(2))
        return _PreparedTopK(ids, self.classes, self.tops, true, rank)


@dataclass(frozen=True)
class _PreparedTopK:
    ids: np.ndarray
    classes: int
    tops: tuple[int, ...]
    true: np.ndarray
    rank: np.ndarray

    def at(self, counts: np.ndarray) -> result.Values:
        """Shares of images whose true class is among the first k; per class for the first k."""
        named = {f"top-{k}": float(counts[self.rank < k].sum() / counts.sum()) for k in self.tops}
        total = np.bincount(self.true, counts, minlength=self.classes)
        right = np.bincount(self.true, counts * (self.rank < self.tops[0]), minlength=self.classes)
        return result.Values(named, np.divide(right, total, out=np.full(self.classes, np.nan), where=total > 0))


@dataclass(frozen=True)
class MultiLabel(result.Measured):
    """Mergeable state of mean average precision over classes, for images with any number of classes.

    All scores are kept (4 bytes a class and image); of thousands of classes use `average_precision`, which keeps the
    top 100. Equal scores of a class form one step of its precision-recall curve, as in scikit-learn.

    Attributes:
        classes: number of classes.
        ids: images seen.
        parts: for each update scores [n, classes] float32 and truth [n, classes] bool.
    """

    classes: int
    ids: tuple[str, ...] = ()
    parts: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def empty(cls, classes: int) -> MultiLabel:
        """A state that has seen nothing; raises InputError for counts below one."""
        if classes < 1:
            raise InputError(f"classes is {classes}", "there must be at least 1 class")
        return cls(classes)

    def update(self, ids: Sequence[str], predictions: Sequence[Scores], truths: Sequence[np.ndarray]) -> MultiLabel:
        """Add images, each with the indices of its classes [n]; raises InputError naming the image."""
        check_batch(ids, predictions, truths)
        if not len(ids):
            return self
        scores = _stacked(ids, predictions, self.classes)
        truth = np.zeros(scores.shape, bool)
        for row, (image, labels) in enumerate(zip(ids, truths, strict=True)):
            labels = np.asarray(labels, dtype=np.int64)
            check_classes(image, "truth", labels, self.classes)
            truth[row, labels] = True
        return MultiLabel(self.classes, self.ids + tuple(ids), (*self.parts, (scores, truth)))

    def merge(self, other: MultiLabel) -> MultiLabel:
        """The state that has seen what both have seen; raises InputError where they count different classes."""
        if self.classes != other.classes:
            raise InputError(f"cannot merge {self.classes} and {other.classes} classes", "use the same dataset")
        return MultiLabel(self.classes, self.ids + other.ids, self.parts + other.parts)

    def prepared(self) -> result.Prepared:
        """All images by falling score, class by class."""
        ids, place = result.ordered(self.ids)
        inverse = np.argsort(place)
        scores, truth = (np.concatenate([p[k] for p in self.parts])[inverse].T for k in range(2))  # [classes, n]
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=1)
        last = np.ones(ranked.shape, bool)
        last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        hit = np.take_along_axis(truth, order, axis=1)
        lists = np.repeat(np.arange(self.classes), len(ids))
        return _PreparedMultiLabel(ids, self.classes, order.ravel(), hit.ravel(), np.flatnonzero(last), lists)


@dataclass(frozen=True)
class _PreparedMultiLabel:
    ids: np.ndarray
    classes: int
    image: np.ndarray  # [classes * n] by class, then by falling score
    hit: np.ndarray
    last: np.ndarray  # positions that end a run of equal scores
    lists: np.ndarray  # [classes * n] class

    def at(self, counts: np.ndarray) -> result.Values:
        """Mean over the classes that occur of the area under precision's steps."""
        weight = counts[self.image].astype(np.float64)
        seen = curves.running(weight, self.lists)[self.last]
        found = curves.running(weight * self.hit, self.lists)[self.last]
        cls = self.lists[self.last]
        gained = np.diff(found, prepend=0.0)
        starts = np.flatnonzero(np.append(True, cls[1:] != cls[:-1]))
        gained[starts] = found[starts]
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        area = np.bincount(cls, gained * precision, minlength=self.classes)
        total = np.bincount(cls, gained, minlength=self.classes)
        per_class = np.divide(area, total, out=np.full(self.classes, np.nan), where=total > 0)
        return result.Values({"mAP": result.mean(per_class)}, per_class)


def _stacked(ids: Sequence[str], predictions: Sequence[Scores], classes: int) -> np.ndarray:
    """[n, classes] float32; raises InputError naming the image of another number of classes."""
    for image, prediction in zip(ids, predictions, strict=True):
        if len(prediction.scores) != classes:
            raise InputError(
                f"image {image}: {len(prediction.scores)} scores for {classes} classes",
                "do model and dataset have the same classes?",
            )
    return np.stack([p.scores for p in predictions])
