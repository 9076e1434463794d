"""Paired comparison and images left out, on real metrics."""

import json

import numpy as np
import pytest

from tenfold.errors import InputError
from tenfold.metrics.compare import paired, with_and_without
from tenfold.metrics.miou import MeanIoU
from tenfold.metrics.predictions import ClassMap, Scores
from tenfold.metrics.result import Measured
from tenfold.metrics.topk import TopK


def answers(right: np.ndarray, first: int = 0) -> TopK:
    """A state of images that are right or wrong."""
    scores = [Scores(np.array([r, 1 - r])) for r in right.astype(float)]
    return TopK.empty(2, (1,)).update([f"{first + i:04}" for i in range(len(right))], scores, [0] * len(right))


def test_the_paired_interval_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(400) < 0.7
    b = np.where(rng.random(400) < 0.08, True, a)  # the same answers, a few mended
    found = paired(answers(a), answers(b), bootstrap=2000)
    assert found.difference.value == pytest.approx(b.mean() - a.mean())
    gaps = b.astype(float) - a
    error = 1.96 * gaps.std() / 20
    assert found.difference.low == pytest.approx(found.difference.value - error, abs=0.3 * error)
    assert found.difference.high == pytest.approx(found.difference.value + error, abs=0.3 * error)
    assert found.significant
    assert found.better > 0.97
    # Apart, the intervals overlap: only the pairing shows the difference.
    assert found.first.high > found.second.low
    alone = answers(a).compute(bootstrap=2000)
    assert (found.first.value, found.first.low, found.first.high) == (alone.value, alone.low, alone.high)


def test_a_model_equals_itself_whatever_the_order() -> None:
    a = np.random.default_rng(1).random(60) < 0.5
    again = answers(a[30:], 30).merge(answers(a[:30]))
    found = paired(answers(a), again, bootstrap=50)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert not found.significant
    assert found.better == 0.5
    np.testing.assert_array_equal(found.per_class[:1], 0)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["significant"] is False


def test_near_duplicates_that_are_easy_are_seen() -> None:
    a = np.random.default_rng(2).random(300) < 0.5
    a[:60] = True
    easy = [f"{i:04}" for i in range(60)]
    found = with_and_without(answers(a), easy, bootstrap=500)
    assert found.first.value == pytest.approx(a.mean())
    assert found.second.value == pytest.approx(a[60:].mean())
    assert (found.first.images, found.second.images) == (300, 240)
    assert found.significant
    assert found.difference.high < 0
    chance = with_and_without(answers(a[60:]), easy, bootstrap=500)
    assert not chance.significant


def test_segmentation_with_and_without() -> None:
    rng = np.random.default_rng(3)
    truths = [rng.integers(0, 3, (8, 8)).astype(np.uint8) for _ in range(10)]
    maps = [ClassMap(np.where(rng.random((8, 8)) < 0.7, t, 0)) for t in truths]
    ids = [str(i) for i in range(10)]
    state = MeanIoU.empty(3).update(ids, maps, truths)
    found = with_and_without(state, ["1", "7", "unknown"], bootstrap=40)
    kept = [i for i in range(10) if i not in (1, 7)]
    rest = MeanIoU.empty(3).update([ids[i] for i in kept], [maps[i] for i in kept], [truths[i] for i in kept])
    assert found.second.value == rest.compute().value
    assert list(found.details) == ["mIoU", "pixel accuracy", "class accuracy"]


def test_a_draw_of_left_out_images_only_is_no_error() -> None:
    found = with_and_without(answers(np.array([True, False, True])), ["0000", "0001"], bootstrap=100)
    assert found.second.images == 1
    assert found.second.value == 1


def test_errors() -> None:
    one, other = answers(np.array([True])), answers(np.array([True, True]))
    with pytest.raises(InputError, match="1 images were seen by one side only, 0001 among them"):
        paired(one, other)
    maps: Measured = MeanIoU.empty(3).update(["0000"], [ClassMap(np.zeros((2, 2)))], [np.zeros((2, 2), np.uint8)])
    with pytest.raises(InputError, match="the sides measure top-1 of 2 classes and mIoU"):
        paired(one, maps)
    with pytest.raises(InputError, match="no image is left"):
        with_and_without(one, ["0000"])
    with pytest.raises(InputError, match="without is the text"):
        with_and_without(one, "0000")
