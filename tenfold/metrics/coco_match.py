"""COCO's matching of detections to annotations, kept for every image so that the bootstrap never matches again.

The engine (hotcoco) gives the value; for intervals its matches would be needed one by one as Python objects, which
costs minutes for 5,000 images. Here all (image, category) pairs are matched at the same time, detection rank by rank,
in numpy, by the rules of pycocotools' `evaluateImg`: detections by falling score, each takes the free annotation of the
highest overlap, counted annotations before ignored ones, the later of equals; crowds may be taken again; what is
matched to an ignored annotation, or unmatched and outside the range of sizes, does not count. Tests hold both equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tenfold.metrics import curves

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Instances:
    """Annotations or detections of all images, in one order of images.

    Attributes:
        image: [n] place of the image; `cls`: [n] category.
        boxes: [n, 4] float64 x, y, width, height.
        area: [n] px.
        score: [n] of detections; `crowd`, `ignore`: [n] bool of annotations.
        keypoints: [n, K, 3] where keypoints are judged.
    """

    image: np.ndarray
    cls: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    score: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    keypoints: np.ndarray

    def take(self, index: np.ndarray) -> Instances:
        """The instances of an index."""
        return Instances(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Matches:
    """All that COCO's accumulation needs, for any number of copies of each image.

    Attributes:
        classes: number of categories; `max_dets`: rising numbers of detections an image and category that may count.
        image, rank, cls: [d] of the detections kept, by category, then by falling score.
        hit, skip: [areas, thresholds, d] bool: true positive; does not count.
        positive_image, positive_cls: [g] of the annotations; `positive`: [areas, g] bool, those that count.
    """

    classes: int
    max_dets: tuple[int, ...]
    image: np.ndarray
    rank: np.ndarray
    cls: np.ndarray
    hit: np.ndarray
    skip: np.ndarray
    positive_image: np.ndarray
    positive_cls: np.ndarray
    positive: np.ndarray

    def weigh(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The curves when image i counts counts[i] times; NaN where a category has nothing to find.

        Returns: AP [areas, thresholds, classes] of the most detections, AR of the same, and AR
        [max_dets, thresholds, classes] of the first range of sizes.
        """
        areas, steps, _ = self.hit.shape
        weight = counts[self.image].astype(np.float64)
        own = counts[self.positive_image].astype(np.float64)
        precision, recall = np.full((2, areas, steps, self.classes), np.nan)
        by_rank = np.full((len(self.max_dets), steps, self.classes), np.nan)
        for a, (some, cls, lists) in enumerate(self._plan):
            total = np.bincount(self.positive_cls, weights=own * self.positive[a], minlength=self.classes)
            begin = np.searchsorted(cls, np.arange(self.classes))
            kept = weight[some]
            for t, (counted, at, of, early) in enumerate(lists):
                running = np.append(0.0, np.cumsum(kept * counted))
                seen = running[at + 1] - running[begin[of]]
                gained = kept[at]
                precision[a, t] = curves.interpolated(curves.running(gained, of), seen, of, total, RECALLS)
                recall[a, t] = _share(gained, of, total)
                for m, among in enumerate(early):
                    by_rank[m, t] = _share(gained * among, of, total)
        return precision, recall, by_rank

    @cached_property
    def _plan(self) -> list[tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray, list]]]]:
        """What no weighing changes: for each range of sizes the detections that ever count and their categories, and
        for each threshold which of them count, where the true positives are, their categories, and for the first
        range which of them are among the first detections of their image."""
        plan = []
        for a in range(len(self.hit)):
            some = np.flatnonzero(~self.skip[a].all(axis=0))  # most lie outside a range of sizes at every threshold
            cls, rank = self.cls[some], self.rank[some]
            lists = []
            for t in range(self.hit.shape[1]):
                at = np.flatnonzero(self.hit[a, t, some])
                early = [] if a else [rank[at] < most for most in self.max_dets]
                lists.append((~self.skip[a, t, some], at, cls[at], early))
            plan.append((some, cls, lists))
        return plan


def _share(gained: np.ndarray, cls: np.ndarray, total: np.ndarray) -> np.ndarray:
    """[classes] share found of the total; NaN where the total is 0."""
    caught = np.bincount(cls, weights=gained, minlength=len(total))
    return np.divide(caught, total, out=np.full(len(total), np.nan), where=total > 0)


def match(
    truth: Instances,
    found: Instances,
    classes: int,
    max_dets: tuple[int, ...],
    areas: np.ndarray,
    sigmas: np.ndarray | None,
) -> Matches:
    """Match detections to annotations.

    Args:
        truth, found: instances with image places and categories; `found.keypoints` where `sigmas` are given.
        classes: number of categories.
        max_dets: rising numbers of detections an image and category that may count.
        areas: [areas, 2] px, ranges of sizes.
        sigmas: [K] standard deviations of the keypoints relative to the object's size; None to compare boxes.
    """
    found = found.take(np.lexsort((-found.score, found.image * classes + found.cls)))  # stable, as pycocotools sorts
    pair = found.image * classes + found.cls
    starts = np.flatnonzero(np.append(True, pair[1:] != pair[:-1])) if len(pair) else np.zeros(0, np.int64)
    rank = np.arange(len(pair)) - np.repeat(starts, np.diff(np.append(starts, len(pair))))
    most = rank < max_dets[-1]
    found, pair, rank = found.take(np.flatnonzero(most)), pair[most], rank[most]
    truth = truth.take(np.argsort(truth.image * classes + truth.cls, kind="stable"))

    outside = (truth.area < areas[:, :1]) | (truth.area > areas[:, 1:])
    ignored = truth.ignore | outside  # [areas, g]
    shape = (len(areas), len(IOUS), len(pair))
    hit, skip = np.zeros(shape, bool), np.zeros(shape, bool)
    skip |= ((found.area < areas[:, :1]) | (found.area > areas[:, 1:]))[:, None]
    _assign(truth, found, pair, rank, classes, ignored, sigmas, hit, skip)

    order = np.lexsort((found.image, -found.score, found.cls))
    return Matches(
        classes,
        max_dets,
        found.image[order],
        rank[order],
        found.cls[order],
        np.ascontiguousarray(hit[:, :, order]),
        np.ascontiguousarray(skip[:, :, order]),
        truth.image,
        truth.cls,
        ~ignored,
    )


def _assign(
    truth: Instances,
    found: Instances,
    pair: np.ndarray,
    rank: np.ndarray,
    classes: int,
    ignored: np.ndarray,
    sigmas: np.ndarray | None,
    hit: np.ndarray,
    skip: np.ndarray,
) -> None:
    """Fill `hit` and `skip` [areas, thresholds, d]; `truth` and `found` are sorted by pair."""
    pairs, first, size = np.unique(truth.image * classes + truth.cls, return_index=True, return_counts=True)
    begin = np.searchsorted(pair, pairs)
    length = np.searchsorted(pair, pairs, side="right") - begin
    # Pairs of about equally many annotations go together (padded to a power of two), longest list first, so that those
    # which still have a detection of the current rank are a prefix.
    width = np.where(size > 1, 2 ** np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64), 1)
    for w in np.unique(width[length > 0]):
        chosen = np.flatnonzero((width == w) & (length > 0))
        chosen = chosen[np.argsort(-length[chosen], kind="stable")]
        block = max(1, 200_000 // (int(w) * ignored.shape[0] * len(IOUS)))
        for k in range(0, len(chosen), block):
            _block(truth, found, ignored, sigmas, hit, skip, first, size, begin, length, chosen[k : k + block], int(w))


def _block(
    truth: Instances,
    found: Instances,
    ignored: np.ndarray,
    sigmas: np.ndarray | None,
    hit: np.ndarray,
    skip: np.ndarray,
    first: np.ndarray,
    size: np.ndarray,
    begin: np.ndarray,
    length: np.ndarray,
    chosen: np.ndarray,
    width: int,
) -> None:
    """Match the pairs in `chosen`, which have up to `width` annotations each and are sorted by falling length."""
    # Column 0 is the pair's last annotation: the later of equals wins, and argmax returns the first.
    column = size[chosen, None] - 1 - np.arange(width)
    real = column >= 0
    index = first[chosen, None] + np.maximum(column, 0)  # [p, w]
    crowd = truth.crowd[index]
    counted = 2.0 * ~ignored[:, index]  # [areas, p, w]: counted annotations stand above ignored ones
    taken = np.zeros((ignored.shape[0], len(IOUS), *index.shape), bool)
    thresholds = np.minimum(IOUS, 1 - 1e-10)[:, None, None]
    lengths = length[chosen]
    for r in range(int(lengths[0])):
        p = int(np.searchsorted(-lengths, -r, side="left"))  # pairs with more than r detections
        d = begin[chosen[:p]] + r
        overlap = _overlap(truth, found, index[:p], d, sigmas)
        able = (overlap >= thresholds) & real[:p]  # [t, p, w]
        able = able & ~(taken[:, :, :p] & ~crowd[:p])  # [areas, t, p, w]
        worth = np.where(able, overlap + counted[:, None, :p], -1.0)
        best = worth.argmax(axis=-1)  # [areas, t, p]
        value = np.take_along_axis(worth, best[..., None], axis=-1)[..., 0]
        matched = value >= 0
        area, step, row = np.nonzero(matched)
        taken[area, step, row, best[area, step, row]] = True
        hit[:, :, d] = matched & (value >= 2)
        skip[:, :, d] = np.where(matched, value < 2, skip[:, :, d])


def _overlap(
    truth: Instances, found: Instances, index: np.ndarray, d: np.ndarray, sigmas: np.ndarray | None
) -> np.ndarray:
    """[p, w] IoU (with crowds: share of the detection inside) or OKS of detections [p] and annotations [p, w]."""
    if sigmas is not None:
        return _oks(truth, found, index, d, sigmas)
    a, b = found.boxes[d][:, None], truth.boxes[index]
    near = np.maximum(a[..., :2], b[..., :2])
    far = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    sides = np.maximum(far - near, 0.0)
    both = sides[..., 0] * sides[..., 1]
    own = a[..., 2] * a[..., 3]
    union = np.where(truth.crowd[index], own, own + b[..., 2] * b[..., 3] - both)
    return np.divide(both, union, out=np.zeros_like(both), where=(both > 0) & (union > 0))


def _oks(truth: Instances, found: Instances, index: np.ndarray, d: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Object keypoint similarity as in pycocotools' `computeOks`, [p, w].

    Annotations without visible keypoints (which are ignored) compare by the distance from twice their box.
    """
    place, target = found.keypoints[d][:, None], truth.keypoints[index]
    labelled = target[..., 2] > 0  # [p, w, K]
    any_ = labelled.any(axis=-1, keepdims=True)
    square = 0.0
    for axis in (0, 1):
        near = (truth.boxes[index][..., axis] - truth.boxes[index][..., 2 + axis])[..., None]
        far = (truth.boxes[index][..., axis] + truth.boxes[index][..., 2 + axis] * 2)[..., None]
        at = place[..., axis]
        away = np.maximum(0, near - at) + np.maximum(0, at - far)
        square = square + np.where(any_, at - target[..., axis], away) ** 2
    scaled = square / (2 * sigmas) ** 2 / (truth.area[index][..., None] + np.spacing(1)) / 2
    similar = np.where(labelled | ~any_, np.exp(-scaled), 0.0).sum(axis=-1)
    return similar / np.where(any_[..., 0], labelled.sum(axis=-1), labelled.shape[-1])
