"""The long tail: how unevenly classes are filled, with the paper's cut-offs and its numbers beside ours (D-09)."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from tenfold.corpus.table import Classes, Corpus

CUT_OFFS = (100, 20)  # images a class; the paper counts the classes below each (D-09)


class ClassCount(BaseModel):
    """One class and how many images have it."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    images: int


class Slice(BaseModel):
    """A part of the class list by frequency.

    Attributes:
        classes: how many classes it has.
        labels: how many labels they have together.
        share: of all labels, 0 to 1.
    """

    model_config = ConfigDict(frozen=True)

    classes: int
    labels: int
    share: float


class Reference(BaseModel):
    """A number of the paper beside ours; the two are never mixed.

    Attributes:
        what: what is counted.
        paper: the paper's number as it gives it.
        ours: the same of this corpus (the most, median and least frequent class for the classes that the paper names).
        requirement: id of the requirement that quotes it.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    paper: str
    ours: str
    requirement: str


class Tail(BaseModel):
    """How a corpus is spread over its classes.

    Attributes:
        images, labels, classes: totals.
        labels_per_image: mean.
        below_100, below_20: classes with fewer images than the paper's cut-offs; classes without any are included.
        empty: classes without any image.
        head, middle, tail: classes with at least 100 images, 20 to 99, and fewer than 20: the paper's cut-offs, which
            are also the many, medium and few-shot slices of the long-tail literature.
        half: how many of the most frequent classes hold half of all labels.
        most, least: the most and least frequent classes; `least` has only classes with an image.
        references: the paper's numbers beside ours.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    labels: int
    classes: int
    labels_per_image: float
    below_100: int
    below_20: int
    empty: int
    head: Slice
    middle: Slice
    tail: Slice
    half: int
    most: list[ClassCount]
    least: list[ClassCount]
    references: list[Reference]


def class_counts(corpus: Corpus, n: int | None = None) -> np.ndarray:
    """Images of each class among the first `n` (all by default): int64 [C]. Reads the label column only, streaming."""
    counts = np.zeros(len(corpus.classes), np.int64)
    for batch in corpus.batches(["labels"], n, rows=65536):
        labels = batch["labels"].flatten().to_numpy(zero_copy_only=False)
        counts += np.bincount(labels, minlength=len(counts))
    return counts


def tail(
    counts: np.ndarray,
    images: int,
    classes: Classes,
    *,
    hierarchy: Any = None,
    given: int | None = None,
    shown: int = 10,
) -> Tail:
    """The tail report from the images of each class.

    Args:
        counts: int [C], images of each class (`class_counts`).
        images: number of images.
        classes: names and titles, in the order of `counts`.
        hierarchy: `HierarchyStatistics`, where depth and fan-out shall stand beside the paper's.
        given: labels before ancestors were added, where `counts` are of a closed state.
        shown: how many of the most and least frequent classes to name; ties go by class index.
    """
    labels = int(counts.sum())
    hundred, twenty = CUT_OFFS

    def cut(mask: np.ndarray) -> Slice:
        own = int(counts[mask].sum())
        return Slice(classes=int(mask.sum()), labels=own, share=round(own / max(labels, 1), 6))

    def named(order: np.ndarray) -> list[ClassCount]:
        return [
            ClassCount(name=classes.names[i], title=classes.titles[i], images=int(counts[i])) for i in order[:shown]
        ]

    falling = np.argsort(-counts, kind="stable")
    rising = np.argsort(counts, kind="stable")
    rising = rising[counts[rising] > 0]
    reached = np.cumsum(counts[falling])
    below_100, below_20 = int((counts < hundred).sum()), int((counts < twenty).sum())
    per_image = labels / max(images, 1)
    both = f"{given / max(images, 1):.2f} as given, {per_image:.2f} with ancestors" if given else f"{per_image:.2f}"
    most, least, middle = named(falling), named(rising), named(rising[len(rising) // 2 :][:1])
    references = [
        _reference("images", "more than 300M", f"{images:,}", "D-01"),
        _reference("labels", "more than 375M", f"{labels:,}", "D-02"),
        _reference("labels an image", "1.26 (375/300 gives 1.25)", both, "D-02"),
        _reference("classes", "18,291", f"{len(counts):,}", "D-03"),
        _reference(f"classes with fewer than {hundred} images", "more than 3,000", f"{below_100:,}", "D-09"),
        _reference(f"classes with fewer than {twenty} images", "about 2,000", f"{below_20:,}", "D-09"),
        _reference("a frequent class", "2M “flowers”", _name(most), "D-09"),
        _reference("a class of the middle", "3,250 “subaru 360”", _name(middle), "D-09"),
        _reference("a rare class", "131 “train conductors”", _name(least), "D-09"),
    ]
    if hierarchy is not None:
        references += [
            _reference("depth of the hierarchy", "12", f"{hierarchy.depth}", "D-05"),
            _reference("most children of one class", "2,876", f"{hierarchy.fan_out:,}", "D-05"),
        ]
    return Tail(
        images=images,
        labels=labels,
        classes=len(counts),
        labels_per_image=round(per_image, 4),
        below_100=below_100,
        below_20=below_20,
        empty=int((counts == 0).sum()),
        head=cut(counts >= hundred),
        middle=cut((counts >= twenty) & (counts < hundred)),
        tail=cut(counts < twenty),
        half=int(np.searchsorted(reached, labels / 2)) + 1 if labels else 0,
        most=most,
        least=least,
        references=references,
    )


def _reference(what: str, paper: str, ours: str, requirement: str) -> Reference:
    return Reference(what=what, paper=paper, ours=ours, requirement=requirement)


def _name(classes: list[ClassCount]) -> str:
    return f"{classes[0].images:,} “{classes[0].title}”" if classes else ""
