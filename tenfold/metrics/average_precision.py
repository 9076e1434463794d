"""mAP@100, the paper's monitor of pretraining (M-01): average precision from the top 100 predictions an image.

For each class all retained predictions are ranked by score over all images; average precision is the area under the
precision-recall steps, with recall counted against every positive of the class, retrieved or not. Predictions of equal
score form one step, so the result depends neither on the order of images nor on how states were merged. Class values
are averaged with weights, in the paper by how common the class is in social-media photographs; those weights are
private, so `class_weights` offers uniform, log-frequency, or a file, and the result says which was used (slip 7).

Memory: at most `top` predictions (8 bytes each) and the positives of an image, whatever the number of classes. The full
score matrix (14,000 x 18,291 floats = 1 GB for FastEval14K) is never kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tenfold import storage
from tenfold.errors import InputError

Scheme = Literal["uniform", "log-frequency"]


@dataclass(frozen=True)
class Result:
    """A computed mAP@K.

    Attributes:
        value: weighted mean of the class values, 0 to 1; NaN where no class has a positive.
        low, high: 95 % bootstrap interval over images; both equal `value` where no bootstrap was asked for.
        classes: number of classes with at least one positive (the others do not count).
        images: number of images.
        weights: name of the class weighting used.
        per_class: [classes] average precision, NaN where a class has no positive.
    """

    value: float
    low: float
    high: float
    classes: int
    images: int
    weights: str
    per_class: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Mergeable state of mAP@K over images.

    Attributes:
        classes: number of classes.
        top: K, the predictions retained for an image.
        parts: what was seen, one entry an update: predicted class [n, k] int32, score [n, k] float32,
            number of positives of each image [n] int64, positive classes [sum] int32.
    """

    classes: int
    top: int = 100
    parts: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def empty(cls, classes: int, top: int = 100) -> MeanAveragePrecision:
        """A state that has seen nothing; raises InputError for counts below one."""
        if classes < 1 or top < 1:
            raise InputError(f"classes is {classes} and top is {top}", "both must be at least 1")
        return cls(classes, min(top, classes))

    def update(self, scores: Tensor, offsets: Tensor, labels: Tensor) -> MeanAveragePrecision:
        """Add a batch.

        Args:
            scores: [n, classes] logits or probabilities; any monotone scale that is the same for all images.
            offsets: [n + 1] int64, where each image's labels start in `labels`.
            labels: [sum] int64, the positive classes, ragged.
        Raises InputError where shapes disagree or a score is NaN.
        """
        if scores.ndim != 2 or scores.shape[1] != self.classes:
            raise InputError(f"scores have shape {tuple(scores.shape)}", f"they must be [images, {self.classes}]")
        values, predicted = scores.detach().float().topk(self.top, dim=1, sorted=False)
        return self.update_top(values, predicted, offsets, labels)

    def update_top(self, scores: Tensor, predicted: Tensor, offsets: Tensor, labels: Tensor) -> MeanAveragePrecision:
        """Add a batch of which the top predictions are known: scores and classes, both [n, top], in any order."""
        if len(offsets) != len(scores) + 1 or int(offsets[-1]) != len(labels):
            raise InputError(f"{len(scores)} images with {len(offsets)} offsets", "offsets must have one entry more")
        if bool(torch.isnan(scores).any()):
            row = int(torch.isnan(scores).any(dim=1).nonzero()[0])
            raise InputError(f"the scores of image {row} of the batch contain NaN", "check the network's weights")
        part = (
            predicted.cpu().numpy().astype(np.int32),
            scores.float().cpu().numpy(),
            offsets.cpu().diff().numpy(),
            labels.cpu().numpy().astype(np.int32),
        )
        return MeanAveragePrecision(self.classes, self.top, (*self.parts, part))

    def merge(self, other: MeanAveragePrecision) -> MeanAveragePrecision:
        """The state that has seen what both have seen; raises InputError where they count different things."""
        if (self.classes, self.top) != (other.classes, other.top):
            raise InputError(
                f"cannot merge mAP@{self.top} of {self.classes} classes with mAP@{other.top} of {other.classes}",
                "use the same settings on all ranks",
            )
        return MeanAveragePrecision(self.classes, self.top, self.parts + other.parts)

    def compute(
        self, weights: Scheme | np.ndarray = "uniform", *, bootstrap: int = 0, seed: int = 0, name: str = ""
    ) -> Result:
        """The metric, with a 95 % percentile interval from `bootstrap` resamples of the images.

        Args:
            weights: a scheme or [classes] non-negative weights (see `read_weights`).
            bootstrap: number of resamples; 0 for none.
            seed: of the resampling.
            name: how the result names weights that are given as an array.
        """
        if not self.parts:
            raise InputError("nothing was added to the metric", "evaluate at least one image")
        ranked = _Ranked.of(self)
        images = len(ranked.positives_per_image)
        weight = class_weights(weights, ranked.totals(np.ones(images, np.float32)))
        per_class = ranked.average_precision(None)
        value = _weighted(per_class, weight)
        low = high = value
        if bootstrap:
            generator = np.random.default_rng(seed)
            draws = [_weighted(ranked.average_precision(_counts(generator, images)), weight) for _ in range(bootstrap)]
            low, high = (float(q) for q in np.nanpercentile(draws, [2.5, 97.5]))
        named = weights if isinstance(weights, str) else name or "given"
        return Result(value, low, high, int((~np.isnan(per_class)).sum()), images, named, per_class)


@dataclass(frozen=True)
class _Ranked:
    """All retained predictions by class, then by falling score; ready to be weighed by image."""

    classes: int
    cls: np.ndarray  # [m] class of each prediction
    image: np.ndarray  # [m]
    hit: np.ndarray  # [m] bool: the class is among the image's labels
    last: np.ndarray  # [g] position of the last prediction of each group of equal class and score
    group_class: np.ndarray  # [g]
    label_class: np.ndarray  # [sum] all positives
    label_image: np.ndarray
    positives_per_image: np.ndarray

    @classmethod
    def of(cls, state: MeanAveragePrecision) -> _Ranked:
        predicted = np.concatenate([p[0] for p in state.parts])
        scores = np.concatenate([p[1] for p in state.parts])
        lengths = np.concatenate([p[2] for p in state.parts])
        labels = np.concatenate([p[3] for p in state.parts])
        images, k = predicted.shape
        label_image = np.repeat(np.arange(images, dtype=np.int32), lengths)

        # Each label marks the one prediction of its image and class. Marking through one dense row per block of images
        # costs a byte a class and is far cheaper than a sorted search over all (image, class) pairs.
        hit = np.empty((images, k), dtype=bool)
        block = max(1, (1 << 22) // state.classes)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        dense = np.zeros((min(block, images), state.classes), dtype=bool)
        for start in range(0, images, block):
            stop = min(start + block, images)
            span = slice(bounds[start], bounds[stop])
            where = (label_image[span] - start, labels[span])
            dense[where] = True
            hit[start:stop] = np.take_along_axis(dense[: stop - start], predicted[start:stop], axis=1)
            dense[where] = False

        # One integer sort by (class, falling score): float bits are made monotone, then inverted.
        bits = (scores.reshape(-1) + np.float32(0)).view(np.uint32)  # + 0 makes -0.0 equal to 0.0
        rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        key = (predicted.reshape(-1).astype(np.uint64) << np.uint64(32)) | (~rising).astype(np.uint64)
        order = np.argsort(key)
        key = key[order]
        last = np.flatnonzero(np.append(key[1:] != key[:-1], True))
        ordered = predicted.reshape(-1)[order]
        return cls(
            state.classes,
            ordered,
            (order // k).astype(np.int32),
            hit.reshape(-1)[order],
            last,
            ordered[last],
            labels,
            label_image,
            lengths,
        )

    def totals(self, counts: np.ndarray) -> np.ndarray:
        """Positives of each class, [classes], when image i counts `counts[i]` times."""
        return np.bincount(self.label_class, weights=counts[self.label_image], minlength=self.classes)

    def average_precision(self, counts: np.ndarray | None) -> np.ndarray:
        """[classes] average precision with image i counted `counts[i]` times (once by default); NaN: no positive."""
        if counts is None:
            counts = np.ones(len(self.positives_per_image), np.float32)
            seen = np.arange(1, len(self.image) + 1, dtype=np.float64)[self.last]
            found = np.cumsum(self.hit)[self.last].astype(np.float64)
        else:
            weight = counts[self.image]
            seen = np.cumsum(weight, dtype=np.float64)[self.last]
            found = np.cumsum(weight * self.hit, dtype=np.float64)[self.last]
        # Running sums go on across classes; what came before a class starts is taken off.
        starts = np.flatnonzero(np.append(True, self.group_class[1:] != self.group_class[:-1]))
        groups = np.diff(np.append(starts, len(self.group_class)))
        seen -= np.repeat(np.append(0.0, seen)[starts], groups)
        found -= np.repeat(np.append(0.0, found)[starts], groups)
        gained = np.diff(found, prepend=0.0)
        gained[starts] = found[starts]
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        area = np.bincount(self.group_class, weights=gained * precision, minlength=self.classes)
        total = self.totals(counts)
        return np.divide(area, total, out=np.full(self.classes, np.nan), where=total > 0)


def _counts(generator: np.random.Generator, images: int) -> np.ndarray:
    """How often each image is drawn in one resample."""
    return np.bincount(generator.integers(0, images, images), minlength=images).astype(np.float32)


def _weighted(per_class: np.ndarray, weight: np.ndarray) -> float:
    counted = ~np.isnan(per_class) & (weight > 0)
    if not counted.any():
        return float("nan")
    return float(np.average(per_class[counted], weights=weight[counted]))


def class_weights(weights: Scheme | np.ndarray, positives: np.ndarray) -> np.ndarray:
    """[classes] weights: uniform, log(1 + number of positives), or those given (checked)."""
    if isinstance(weights, str):
        if weights == "uniform":
            return np.ones_like(positives)
        if weights == "log-frequency":
            return np.log1p(positives)
        raise InputError(f"no class weighting is named {weights!r}", "use uniform, log-frequency or a weights file")
    if weights.shape != positives.shape or (weights < 0).any() or not weights.any():
        raise InputError(
            f"class weights have shape {weights.shape} for {len(positives)} classes",
            "give one non-negative weight a class, not all of them 0",
        )
    return weights


def read_weights(uri: str, names: Sequence[str]) -> np.ndarray:
    """Class weights from a JSON file `{"class name": weight, …}`; classes that it lacks weigh 0.

    Raises InputError naming the file and the first unknown class or wrong value.
    """
    try:
        table = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise InputError(f"{uri} is not JSON: {error}", 'write {"class name": weight, …}') from None
    if not isinstance(table, dict):
        raise InputError(f"{uri} holds a {type(table).__name__}", 'write {"class name": weight, …}')
    index = {name: i for i, name in enumerate(names)}
    weights = np.zeros(len(names))
    for name, weight in table.items():
        if name not in index:
            raise InputError(f"{uri}: no class is named {name!r}", "use the names that the corpus has")
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InputError(f"{uri}: the weight of {name!r} is {weight!r}", "weights are numbers, 0 or more")
        weights[index[name]] = weight
    return weights
