"""The tail report against numbers made by hand, with the paper's cut-offs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.corpus.hierarchy import Hierarchy
from tenfold.corpus.table import Classes
from tenfold.corpus.tail import tail


def classes_of(size: int) -> Classes:
    names = tuple(f"c{i}" for i in range(size))
    return Classes(names, tuple(n.upper() for n in names), ((),) * size)


def test_cut_offs_are_the_papers() -> None:
    counts = np.array([1000, 100, 99, 20, 19, 1, 0])
    report = tail(counts, 500, classes_of(7))
    assert (report.below_100, report.below_20, report.empty) == (5, 3, 1)
    assert (report.head.classes, report.middle.classes, report.tail.classes) == (2, 2, 3)
    assert (report.head.labels, report.middle.labels, report.tail.labels) == (1100, 119, 20)
    assert report.labels_per_image == pytest.approx(1239 / 500, abs=1e-4)
    assert report.half == 1
    assert [c.name for c in report.most[:2]] == ["c0", "c1"]
    assert [c.name for c in report.least[:2]] == ["c5", "c4"]  # a class without images is not the least frequent
    assert report.least[0].title == "C5"


def test_the_papers_numbers_stand_beside_ours_and_are_not_mixed() -> None:
    classes = classes_of(3)
    report = tail(np.array([5, 200, 30]), 200, classes, hierarchy=Hierarchy.of(classes).statistics)
    rows = {r.what: (r.paper, r.ours, r.requirement) for r in report.references}
    assert rows["classes with fewer than 100 images"] == ("more than 3,000", "2", "D-09")
    assert rows["classes with fewer than 20 images"] == ("about 2,000", "1", "D-09")
    assert rows["images"] == ("more than 300M", "200", "D-01")
    assert rows["classes"] == ("18,291", "3", "D-03")
    assert rows["depth of the hierarchy"] == ("12", "0", "D-05")
    assert rows["a rare class"] == ("131 “train conductors”", "5 “C0”", "D-09")
    assert "depth of the hierarchy" not in {r.what for r in tail(np.array([1]), 1, classes_of(1)).references}


def test_nothing_at_all() -> None:
    report = tail(np.zeros(2, np.int64), 0, classes_of(2))
    assert (report.half, report.labels_per_image, report.least, report.below_20) == (0, 0.0, [], 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_slices_part_the_classes(counts: list[int]) -> None:
    report = tail(np.array(counts), max(counts) + 1, classes_of(len(counts)))
    slices = (report.head, report.middle, report.tail)
    assert sum(s.classes for s in slices) == len(counts)
    assert sum(s.labels for s in slices) == sum(counts) == report.labels
    assert report.below_20 == sum(c < 20 for c in counts) == report.tail.classes
    assert report.below_100 == sum(c < 100 for c in counts)
    ordered = sorted(counts, reverse=True)
    if report.labels:
        assert sum(ordered[: report.half]) >= report.labels / 2 > sum(ordered[: report.half - 1])
