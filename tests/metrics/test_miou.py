"""mIoU against brute force over pixels, scikit-learn and torchmetrics; an algebra of mergeable states."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassJaccardIndex

from tenfold.errors import InputError
from tenfold.metrics.miou import MeanIoU, count
from tenfold.metrics.predictions import ClassMap


def make(images: int, classes: int, seed: int, block: int = 1) -> tuple[list[str], list[ClassMap], list[np.ndarray]]:
    """Maps of varied size in blocks of equal class; a tenth of the truth is ignored, predictions err often."""
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for _ in range(images):
        shape = rng.integers(1, 12, 2)
        truth = rng.integers(0, classes, shape).astype(np.uint8)
        predicted = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape)).astype(np.uint8)
        truth[rng.random(shape) < 0.1] = 255
        truths.append(truth.repeat(block, 0).repeat(block, 1))
        predictions.append(ClassMap(predicted.repeat(block, 0).repeat(block, 1)))
    return [f"image-{i}" for i in range(images)], predictions, truths


def brute_force(predictions: list[ClassMap], truths: list[np.ndarray], classes: int) -> np.ndarray:
    """From the definition, pixel by pixel."""
    hit, union = np.zeros(classes), np.zeros(classes)
    for prediction, truth in zip(predictions, truths, strict=True):
        for p, t in zip(prediction.classes.flat, truth.flat, strict=True):
            if t == 255:
                continue
            hit[t] += p == t
            for c in {int(p), int(t)}:
                union[c] += 1
    return np.array([h / u if u else np.nan for h, u in zip(hit, union, strict=True)])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 10_000), st.sampled_from([1, 9]))
def test_equals_brute_force(images: int, classes: int, seed: int, block: int) -> None:
    ids, predictions, truths = make(images, classes, seed, block)
    state = MeanIoU.empty(classes).update(ids, predictions, truths)
    got = state.compute()
    expected = brute_force(predictions, truths, classes)
    np.testing.assert_allclose(got.per_class, expected, atol=1e-12)
    if not np.isnan(expected).all():
        assert got.value == pytest.approx(np.nanmean(expected))


def test_equals_scikit_learn_and_torchmetrics() -> None:
    ids, predictions, truths = make(40, 21, 1, 8)
    state = MeanIoU.empty(21).update(ids, predictions, truths)
    flat = np.concatenate([t.ravel() for t in truths])
    found = np.concatenate([p.classes.ravel() for p in predictions])
    kept = flat != 255
    np.testing.assert_array_equal(state.confusion(), confusion_matrix(flat[kept], found[kept], labels=range(21)))
    peer = MulticlassJaccardIndex(21, ignore_index=255, average="none")
    theirs = peer(torch.tensor(found).long(), torch.tensor(flat).long()).numpy()
    np.testing.assert_allclose(state.compute().per_class, theirs, atol=1e-6)
    assert state.compute().details["pixel accuracy"].value == pytest.approx((flat == found)[kept].mean())


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_order_and_merging_change_neither_value_nor_interval(images: int, seed: int, random) -> None:
    ids, predictions, truths = make(images, 5, seed)
    whole = MeanIoU.empty(5).update(ids, predictions, truths).compute(bootstrap=20, seed=3)
    state = MeanIoU.empty(5)
    order = list(range(images))
    random.shuffle(order)
    for i in order:
        one = MeanIoU.empty(5).update([ids[i]], [predictions[i]], [truths[i]])
        state = one.merge(state) if random.random() < 0.5 else state.merge(one)
    again = state.compute(bootstrap=20, seed=3)
    np.testing.assert_equal((again.value, again.low, again.high), (whole.value, whole.low, whole.high))
    assert again.details == whole.details or np.isnan(whole.value)


def test_counts_are_copies_and_left_out_images_never_count() -> None:
    ids, predictions, truths = make(6, 4, 5)
    counts = np.array([2, 0, 1, 3, 0, 1])
    copies = [(f"{i}-{c}", p, t) for i, p, t, n in zip(ids, predictions, truths, counts, strict=True) for c in range(n)]
    expected = MeanIoU.empty(4).update(*map(list, zip(*copies, strict=True))).compute()
    state = MeanIoU.empty(4).update(ids, predictions, truths)
    got = state.prepared().at(counts)
    np.testing.assert_allclose(got.per_class, expected.per_class)
    left = [i for i in range(6) if i not in (1, 4)]
    rest = MeanIoU.empty(4).update([ids[i] for i in left], [predictions[i] for i in left], [truths[i] for i in left])
    out = state.compute(bootstrap=30, seed=1, without=["image-1", "image-4", "elsewhere"])
    assert out.images == 4
    assert (out.value, out.low, out.high) == (
        (same := rest.compute(bootstrap=30, seed=1)).value,
        same.low,
        same.high,
    )


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 150 samples of 60 images from one population, 95 % intervals should hold its mIoU (89 % or more pass)."""
    ids, predictions, truths = make(3000, 3, 7)
    population = MeanIoU.empty(3).update(ids, predictions, truths)
    value = population.compute().value
    inside = 0
    for k in range(0, 3000, 20):
        part = MeanIoU(3, population.ids[k : k + 60], population.parts[k : k + 60])
        if len(part.ids) == 60:
            found = part.compute(bootstrap=200, seed=k)
            inside += found.low <= value <= found.high
    assert inside / 148 >= 0.89


def test_runs_and_noise_are_counted_alike() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (300, 200)).astype(np.uint8)
    blocks = rng.integers(0, 255, (6, 4)).astype(np.uint8).repeat(50, 0).repeat(50, 1)
    for truth, predicted in [(noise, noise[::-1]), (blocks, blocks[:, ::-1]), (noise[:0], noise[:0])]:
        cells, pixels = count(truth, predicted)
        expected = np.unique(truth.astype(int) * 256 + predicted, return_counts=True)
        np.testing.assert_array_equal(cells, expected[0])
        np.testing.assert_array_equal(pixels, expected[1])


def test_errors_name_the_image() -> None:
    state = MeanIoU.empty(3)
    flat = np.zeros((2, 2), np.uint8)
    with pytest.raises(InputError, match=r"image b\.png: the truth is uint8 \[2, 3\]"):
        state.update(["b.png"], [ClassMap(flat)], [np.zeros((2, 3), np.uint8)])
    with pytest.raises(InputError, match="image x: a pixel has truth 7 and prediction 0 of 3"):
        state.update(["x"], [ClassMap(flat)], [flat + np.uint8(7)])
    with pytest.raises(InputError, match="prediction 255"):
        state.update(["x"], [ClassMap(flat + np.uint8(255))], [flat])
    one = state.update(["x"], [ClassMap(flat)], [flat])
    with pytest.raises(InputError, match="image x was added 2 times"):
        one.merge(one).compute()
    with pytest.raises(InputError, match="nothing was added"):
        state.compute()
    with pytest.raises(InputError, match="no image is left"):
        one.compute(without=["x"])
    with pytest.raises(InputError, match="cannot merge"):
        one.merge(MeanIoU.empty(4))
    with pytest.raises(InputError, match="classes is 256"):
        MeanIoU.empty(256)
    with pytest.raises(InputError, match="bootstrap is -1"):
        one.compute(bootstrap=-1)
