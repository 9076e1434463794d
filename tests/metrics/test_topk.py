"""Top-k accuracy and multi-label average precision against scikit-learn and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from tenfold.errors import InputError
from tenfold.metrics.predictions import Scores
from tenfold.metrics.topk import MultiLabel, TopK


def make(images: int, classes: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random((images, classes)).astype(np.float32)
    truth = rng.integers(0, classes, images)
    scores[np.arange(images), truth] += 0.3
    return [f"{i:04}" for i in range(images)], scores, truth


def test_equals_scikit_learn() -> None:
    ids, scores, truth = make(300, 12, 0)
    state = TopK.empty(12, (1, 3, 5)).update(ids, [Scores(s) for s in scores], truth)
    found = state.compute(bootstrap=200)
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(truth, scores, k=k, labels=range(12))
        assert found.details[f"top-{k}"].value == pytest.approx(expected)
    right = scores.argmax(1) == truth
    np.testing.assert_allclose(found.per_class, [right[truth == c].mean() for c in range(12)])
    # The bootstrap of a share is known: about 1.96 standard errors on either side.
    error = 1.96 * np.sqrt(found.value * (1 - found.value) / 300)
    assert found.value - found.low == pytest.approx(error, rel=0.3)
    assert found.high - found.value == pytest.approx(error, rel=0.3)


def test_equal_scores_are_not_right_by_luck() -> None:
    state = TopK.empty(3, (1, 2, 3)).update(["a"], [Scores(np.ones(3))], [0])
    assert [v.value for v in state.compute().details.values()] == [0, 0, 1]


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 1000), st.sampled_from([0, 4]))
def test_multi_label_equals_scikit_learn(images: int, classes: int, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((images, classes)) < 0.4
    scores = rng.random((images, classes)).astype(np.float32)
    if levels:
        scores = np.round(scores * levels) / levels
    ids = [f"{i:03}" for i in range(images)]  # in sorted order, that of counts
    labels = [np.flatnonzero(t) for t in truth]
    state = MultiLabel.empty(classes).update(ids, [Scores(s) for s in scores], labels)
    expected = [average_precision_score(t, s) if t.any() else np.nan for t, s in zip(truth.T, scores.T, strict=True)]
    np.testing.assert_allclose(state.compute().per_class, expected, atol=1e-9)
    counts = rng.integers(0, 3, images)
    if counts.any():
        t, s = truth.repeat(counts, 0), scores.repeat(counts, 0)
        expected = [average_precision_score(a, b) if a.any() else np.nan for a, b in zip(t.T, s.T, strict=True)]
        np.testing.assert_allclose(state.prepared().at(counts).per_class, expected, atol=1e-9)


@pytest.mark.parametrize("several", [False, True])
def test_order_and_merging_change_neither_value_nor_interval(several: bool) -> None:
    ids, scores, truth = make(40, 5, 1)
    empty = MultiLabel.empty(5) if several else TopK.empty(5)
    labels = [np.array([t]) for t in truth] if several else list(truth)
    predictions = [Scores(s) for s in scores]
    whole = empty.update(ids, predictions, labels).compute(bootstrap=30, seed=4)
    order = np.random.default_rng(0).permutation(40)
    state = empty
    for part in np.split(order, [7, 7, 20]):
        one = empty.update([ids[i] for i in part], [predictions[i] for i in part], [labels[i] for i in part])
        state = one.merge(state)
    np.testing.assert_equal(state.compute(bootstrap=30, seed=4).as_dict(), whole.as_dict())


def test_errors_name_the_image() -> None:
    for state in (TopK.empty(3), MultiLabel.empty(3)):
        with pytest.raises(InputError, match="image a: 2 scores for 3 classes"):
            state.update(["a"], [Scores(np.zeros(2))], [0])
        with pytest.raises(InputError, match="cannot merge"):
            state.merge(type(state).empty(4))
        with pytest.raises(InputError, match="nothing was added"):
            state.update([], [], []).compute()
    with pytest.raises(InputError, match="image b: truth has category 3 of 3"):
        TopK.empty(3).update(["a", "b"], [Scores(np.zeros(3))] * 2, [0, 3])
    with pytest.raises(InputError, match="image b: truth has category -1 of 3"):
        MultiLabel.empty(3).update(["a", "b"], [Scores(np.zeros(3))] * 2, [[0], [-1]])
    with pytest.raises(InputError, match="tops"):
        TopK.empty(3, (0,))
