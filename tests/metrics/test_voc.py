"""VOC's average precision against the devkit's loop, written plainly; an algebra of mergeable states."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import InputError
from tenfold.metrics.predictions import Boxes, Truth
from tenfold.metrics.voc import VocAP

Sample = tuple[list[str], list[Boxes], list[Truth]]


def make(images: int, classes: int, seed: int) -> Sample:
    """Few places, so that boxes meet; difficult ones, duplicates, images without either."""
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(images):
        g = int(rng.integers(0, 6))
        corner = rng.uniform(0, 60, (g, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(20, 60, (g, 2))], 1)
        cls = rng.integers(0, classes, g)
        truths.append(Truth(boxes, cls, difficult=rng.random(g) < 0.25))
        pick = rng.integers(0, g, int(rng.integers(0, 10))) if g else np.zeros(0, int)
        noisy = boxes[pick] + rng.normal(0, 5, (len(pick), 4))
        guessed = np.where(rng.random(len(pick)) < 0.8, cls[pick], rng.integers(0, classes, len(pick)))
        found.append(Boxes(noisy, rng.random(len(pick)), guessed))
    return [f"{i:03}" for i in range(images)], found, truths


def devkit(sample: Sample, classes: int, points: bool) -> np.ndarray:
    """The VOC devkit's VOCevaldet, one detection at a time over all images."""
    _, found, truths = sample
    result = np.full(classes, np.nan)
    for c in range(classes):
        positives = sum(int(((t.categories == c) & ~t.difficult).sum()) for t in truths)
        if not positives:
            continue
        detections = [
            (-float(f.scores[k]), i, k) for i, f in enumerate(found) for k in range(len(f.scores)) if f.classes[k] == c
        ]
        taken: set[tuple[int, int]] = set()
        tp, fp = [0.0], [0.0]
        for _, i, k in sorted(detections):
            best, where = -1.0, -1
            for g in range(len(truths[i].boxes)):
                if truths[i].categories[g] != c:
                    continue
                a, b = found[i].boxes[k].astype(float), truths[i].boxes[g].astype(float)
                w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                if w > 0 and h > 0:
                    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
                    if w * h / union > best:
                        best, where = w * h / union, g
            if best >= 0.5 and truths[i].difficult[where]:
                continue
            right = best >= 0.5 and (i, where) not in taken
            if right:
                taken.add((i, where))
            tp.append(tp[-1] + right)
            fp.append(fp[-1] + (not right))
        recall = np.array(tp[1:]) / positives
        precision = np.array(tp[1:]) / np.maximum(np.array(tp[1:]) + np.array(fp[1:]), 1)
        if points:
            result[c] = sum(precision[recall >= t].max(initial=0) for t in np.linspace(0, 1, 11)) / 11
        else:
            steps = np.diff(recall, prepend=0.0)
            result[c] = sum(s * precision[k:].max() for k, s in enumerate(steps) if s)
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 15), st.integers(1, 4), st.integers(0, 10_000), st.booleans())
def test_equals_the_devkit(images: int, classes: int, seed: int, points: bool) -> None:
    sample = make(images, classes, seed)
    state = VocAP.empty(classes, interpolation="11 points" if points else "area").update(*sample)
    got = state.compute()
    expected = devkit(sample, classes, points)
    np.testing.assert_allclose(got.per_class, expected, atol=1e-9)
    np.testing.assert_allclose(got.value, np.nanmean(expected) if not np.isnan(expected).all() else np.nan)


@pytest.mark.parametrize("points", [False, True])
def test_a_count_is_as_many_copies(points: bool) -> None:
    ids, found, truths = make(20, 3, 4)
    index = np.repeat(np.arange(20), counts := np.random.default_rng(1).integers(0, 4, 20))
    empty = VocAP.empty(3, interpolation="11 points" if points else "area")
    copies = [f"{ids[i]} {k}" for k, i in enumerate(index)]
    copied = empty.update(copies, [found[i] for i in index], [truths[i] for i in index]).compute()
    got = empty.update(ids, found, truths).prepared().at(counts)
    np.testing.assert_allclose(got.per_class, copied.per_class, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(9)))
def test_order_and_merging_change_neither_value_nor_interval(seed: int, order: list[int]) -> None:
    ids, found, truths = make(9, 3, seed)
    whole = VocAP.empty(3).update(ids, found, truths).compute(bootstrap=20, seed=2)
    state = VocAP.empty(3)
    for k, i in enumerate(order):
        one = VocAP.empty(3).update([ids[i]], [found[i]], [truths[i]])
        state = one.merge(state) if k % 2 else state.merge(one)
    np.testing.assert_equal(state.compute(bootstrap=20, seed=2).as_dict(), whole.as_dict())
    left = [i for i in range(9) if i not in (2, 5)]
    rest = VocAP.empty(3).update([ids[i] for i in left], [found[i] for i in left], [truths[i] for i in left])
    out = state.compute(bootstrap=20, seed=2, without=["002", "005"])
    expected = rest.compute(bootstrap=20, seed=2)  # sums of weight 0 may round otherwise
    np.testing.assert_allclose((out.value, out.low, out.high), (expected.value, expected.low, expected.high), rtol=1e-9)
    np.testing.assert_allclose(out.per_class, expected.per_class, rtol=1e-9)


def test_errors_name_image_and_setting() -> None:
    nothing = Truth(np.zeros((0, 4)), [])
    with pytest.raises(InputError, match="image x: prediction has category 5 of 3"):
        VocAP.empty(3).update(["x"], [Boxes([[0, 0, 1, 1]], [1], [5])], [nothing])
    with pytest.raises(InputError, match="image x: annotation has category 3 of 3"):
        VocAP.empty(3).update(["x"], [Boxes([], [], [])], [Truth([[0, 0, 1, 1]], [3])])
    with pytest.raises(InputError, match="iou is 0"):
        VocAP.empty(3, iou=0)
    with pytest.raises(InputError, match="interpolation"):
        VocAP.empty(3, interpolation="7 points")
    with pytest.raises(InputError, match="different settings"):
        VocAP.empty(3).merge(VocAP.empty(3, iou=0.75))
