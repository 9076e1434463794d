"""mAP@100 against brute force, scikit-learn and torchmetrics; an algebra of mergeable states."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tenfold.errors import InputError
from tenfold.metrics.average_precision import MeanAveragePrecision, read_weights


def make(images: int, classes: int, seed: int, levels: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores [images, classes] (with few distinct levels: many ties), offsets, labels."""
    rng = np.random.default_rng(seed)
    truth = rng.random((images, classes)) < rng.uniform(0.02, 0.5, classes)
    scores = rng.normal(size=(images, classes)) + truth
    if levels:
        scores = np.round(scores * levels) / levels
    offsets = np.concatenate([[0], truth.sum(1).cumsum()])
    return torch.tensor(scores), torch.tensor(offsets), torch.tensor(truth.nonzero()[1])


def dense(offsets: torch.Tensor, labels: torch.Tensor, classes: int) -> np.ndarray:
    truth = np.zeros((len(offsets) - 1, classes), dtype=bool)
    truth[np.repeat(np.arange(len(truth)), np.diff(offsets)), labels] = True
    return truth


def brute_force(scores: np.ndarray, truth: np.ndarray, top: int) -> np.ndarray:
    """From the definition: thresholds one by one; only each image's top predictions count as retrieved."""
    kept = np.zeros_like(truth)
    np.put_along_axis(kept, np.argsort(-scores, axis=1)[:, :top], True, axis=1)
    result = np.full(truth.shape[1], np.nan)
    for c in range(truth.shape[1]):
        if not (total := truth[:, c].sum()):
            continue
        area = recall = 0.0
        for threshold in sorted(set(scores[kept[:, c], c]), reverse=True):
            retrieved = kept[:, c] & (scores[:, c] >= threshold)
            hits = (retrieved & truth[:, c]).sum()
            area += (hits / total - recall) * hits / retrieved.sum()
            recall = hits / total
        result[c] = area
    return result


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_equals_brute_force(images: int, classes: int, top: int, seed: int) -> None:
    scores, offsets, labels = make(images, classes, seed)
    state = MeanAveragePrecision.empty(classes, top).update(scores, offsets, labels)
    expected = brute_force(scores.float().numpy(), dense(offsets, labels, classes), top)
    np.testing.assert_allclose(state.compute().per_class, expected, atol=1e-12)


@pytest.mark.parametrize("levels", [0, 2])
def test_equals_scikit_learn_when_everything_is_retained(levels: int) -> None:
    scores, offsets, labels = make(200, 15, 3, levels)
    truth = dense(offsets, labels, 15)
    expected = [average_precision_score(truth[:, c], scores[:, c].float()) for c in range(15)]
    ours = MeanAveragePrecision.empty(15, 15).update(scores, offsets, labels).compute().per_class
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.permutations(range(5)), st.integers(0, 1000))
def test_merging_in_any_order_changes_nothing(sizes: list[int], order: list[int], seed: int) -> None:
    scores, offsets, labels = make(sum(sizes), 9, seed, levels=2)
    whole = MeanAveragePrecision.empty(9, 9).update(scores, offsets, labels).compute()
    ends = np.cumsum([0, *sizes])
    parts = []
    for a, b in itertools.pairwise(ends):
        part = offsets[a : b + 1]
        parts.append(MeanAveragePrecision.empty(9, 9).update(scores[a:b], part - part[0], labels[part[0] : part[-1]]))
    merged = MeanAveragePrecision.empty(9, 9)
    for i in order:
        if i < len(parts):
            merged = merged.merge(parts[i])
    np.testing.assert_allclose(merged.compute().per_class, whole.per_class, atol=1e-12)


def test_bootstrap_equals_repeating_images() -> None:
    """A resample is the metric of the images drawn, repeats included."""
    from tenfold.metrics import average_precision as module

    scores, offsets, labels = make(40, 6, 11)
    ranked = module._Ranked.of(MeanAveragePrecision.empty(6, 4).update(scores, offsets, labels))
    drawn = np.random.default_rng(5).integers(0, 40, 40)
    truth = dense(offsets, labels, 6)[drawn]
    repeated = MeanAveragePrecision.empty(6, 4).update(
        scores[drawn], torch.tensor(np.concatenate([[0], truth.sum(1).cumsum()])), torch.tensor(truth.nonzero()[1])
    )
    counts = np.bincount(drawn, minlength=40).astype(np.float32)
    np.testing.assert_allclose(ranked.average_precision(counts), repeated.compute().per_class, atol=1e-6)


def test_interval_covers_the_value_of_the_population() -> None:
    """Over 60 samples of 150 images, the 95 % interval holds the value of 20,000 images at least 85 % of the time."""
    population = MeanAveragePrecision.empty(5).update(*_noisy(20_000, 99)).compute().value
    held = 0
    for seed in range(60):
        result = MeanAveragePrecision.empty(5).update(*_noisy(150, seed)).compute(bootstrap=150, seed=seed)
        held += result.low <= population <= result.high
    assert held >= 51


def _noisy(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    truth = rng.random((images, 5)) < 0.3
    scores = torch.tensor(rng.normal(size=(images, 5)) + truth)
    return scores, torch.tensor(np.concatenate([[0], truth.sum(1).cumsum()])), torch.tensor(truth.nonzero()[1])


def test_weights_by_name_and_from_a_file(tmp_path: Path) -> None:
    scores, offsets, labels = make(100, 4, 1)
    state = MeanAveragePrecision.empty(4).update(scores, offsets, labels)
    (tmp_path / "w.json").write_text(json.dumps({"cat": 3, "dog": 1}))
    weights = read_weights(str(tmp_path / "w.json"), ["cat", "dog", "ship", "car"])
    result = state.compute(weights, name="w.json")
    assert result.weights == "w.json"
    assert result.value == pytest.approx((3 * result.per_class[0] + result.per_class[1]) / 4)
    assert state.compute("log-frequency").weights == "log-frequency"
    (tmp_path / "w.json").write_text(json.dumps({"cow": 3}))
    with pytest.raises(InputError, match="no class is named 'cow'"):
        read_weights(str(tmp_path / "w.json"), ["cat"])


def test_a_class_without_positives_does_not_count() -> None:
    scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
    state = MeanAveragePrecision.empty(2).update(scores, torch.tensor([0, 1, 1]), torch.tensor([0]))
    result = state.compute()
    assert (result.value, result.classes) == (1.0, 1)
    assert np.isnan(result.per_class[1])


def test_errors_name_what_is_wrong() -> None:
    state = MeanAveragePrecision.empty(3)
    with pytest.raises(InputError, match="image 1 of the batch contain NaN"):
        state.update(torch.tensor([[1.0, 2, 3], [1, float("nan"), 2]]), torch.tensor([0, 0, 0]), torch.tensor([]))
    with pytest.raises(InputError, match=r"\[images, 3\]"):
        state.update(torch.zeros(2, 4), torch.tensor([0, 0, 0]), torch.tensor([]))
    with pytest.raises(InputError, match="nothing was added"):
        state.compute()
    with pytest.raises(InputError, match="cannot merge"):
        state.merge(MeanAveragePrecision.empty(4))
