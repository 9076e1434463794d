"""Search by fingerprint: equal to brute force, whatever the blocks and workers; alignment finds what was done."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.corpus import fingerprint, match
from tenfold.corpus.match import Queries


def grids(count: int, seed: int = 0) -> np.ndarray:
    """Smooth noise: pictures that are somewhat alike."""
    random = np.random.default_rng(seed)
    coarse = random.normal(size=(count, 8, 8))
    basis = np.kron(np.eye(8), np.ones((4, 1)))
    basis = fingerprint.smoothing(32, 2.0) @ basis
    pictures = basis @ coarse @ basis.T
    pictures -= pictures.min(axis=(1, 2), keepdims=True)
    return (255 * pictures / pictures.max(axis=(1, 2), keepdims=True)).astype(np.uint8)


def related(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and a corpus that holds shifted, mirrored and noisy copies of some of them."""
    random = np.random.default_rng(seed)
    tests = grids(count, seed)
    shifted = np.roll(tests, 1, axis=2)
    noisy = np.clip(tests + random.normal(0, 12, tests.shape), 0, 255).astype(np.uint8)
    corpus = np.concatenate([grids(count, seed + 1), shifted[::2], tests[::3, :, ::-1], noisy[::4]])
    return tests, corpus[random.permutation(len(corpus))]


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.floats(0.02, match.FARTHEST))
def test_equals_brute_force(count: int, seed: int, threshold: float) -> None:
    """Every pair by its own: the same pairs at the same distances as the search with blocks and tiles."""
    tests, corpus = related(count, seed)
    prints = fingerprint.fingerprints(corpus)
    queries = Queries.of(tests)
    coarse, fine = fingerprint.split(prints)
    expected = {}
    for q in range(count):
        for r in range(len(corpus)):
            for side in (0, 1):
                agree = max(float(w[side, q] @ coarse[r]) for w in queries.coarse)
                if agree >= match.CANDIDATE:
                    pair = np.array([[q, r, side]])
                    distance = float(queries.distances(pair, coarse, fine)[0])
                    if distance <= threshold and distance < expected.get((q, r), (9.0, 0))[0]:
                        expected[q, r] = (distance, side)
    hits = queries.search(prints, threshold=threshold)
    found = {(int(h["query"]), int(h["row"])): (float(h["distance"]), int(h["mirrored"])) for h in hits}
    assert found.keys() == expected.keys()
    for pair, (distance, side) in expected.items():
        assert found[pair][0] == pytest.approx(distance, abs=1e-5)
        assert found[pair][1] == side


def test_blocks_and_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tests, corpus = related(60, 3)
    prints = fingerprint.fingerprints(corpus)
    whole = Queries.of(tests).search(prints, threshold=0.3)
    assert len(whole) > 40
    monkeypatch.setattr(match, "_TILE", 7)
    queries = Queries.of(tests)
    for block, workers in ((5, 1), (64, 3)):
        parts = [queries.search(prints[i : i + block], i, 0.3, workers=workers) for i in range(0, len(prints), block)]
        hits = np.concatenate(parts)
        hits = hits[np.lexsort((hits["row"], hits["query"]))]
        assert np.array_equal(hits[["query", "row", "mirrored"]], whole[["query", "row", "mirrored"]])
        assert np.allclose(hits["distance"], whole["distance"], atol=1e-5)


def test_alignment_finds_the_window() -> None:
    """A picture cut out of another is laid back where it came from, to 1 % of the side."""
    large = np.asarray(
        fingerprint.smoothing(48, 4.0)
        @ np.random.default_rng(1).normal(size=(5, 48, 48))
        @ fingerprint.smoothing(48, 4.0)
    )
    pixel = (np.arange(24) + 0.5) / 24
    truth = np.array([0.07, 0.96, 0.02, 0.91], np.float32)

    def seen(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
        def sampling(low: float, high: float) -> np.ndarray:
            place = (low + (high - low) * pixel) * 48 - 0.5
            return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(48)))

        return (sampling(y0, y1) @ large @ sampling(x0, x1).T).astype(np.float32)

    start = np.tile(np.array([0.0, 1.0, 0.0, 1.0], np.float32), (5, 1))
    r, window = match._align(seen(*truth), seen(0, 1, 0, 1), start, 10)
    assert (r > 0.97).all()
    assert np.abs(window - truth).max() < 0.012


def test_a_picture_is_at_distance_zero_and_strangers_are_far() -> None:
    tests = grids(30)
    hits = Queries.of(tests).search(fingerprint.fingerprints(tests))
    assert hits["query"].tolist() == hits["row"].tolist() == list(range(30))
    assert hits["distance"].max() < 0.01
    assert len(Queries.of(tests).search(fingerprint.fingerprints(grids(200, 99)))) == 0


def test_crowds_are_thinned_to_the_best() -> None:
    random = np.random.default_rng(0)
    query = np.sort(random.integers(0, 3, 5000))
    row = np.concatenate([np.arange((query == q).sum()) for q in range(3)])
    score = random.random(5000).astype(np.float32)
    kept_query, kept_row = match._thin(query, row, score)
    for q in range(3):
        best = np.sort(row[query == q][np.argsort(-score[query == q])[: match._CROWD]])
        assert kept_row[kept_query == q].tolist() == best.tolist()
