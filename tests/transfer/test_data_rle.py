"""Masks as run lengths, with pycocotools as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle

from tenfold.transfer.data import rle


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_masks_are_those_of_pycocotools(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    truth = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = rle.encode(mask)
    assert counts == truth["counts"]
    assert np.array_equal(rle.decode(counts, height, width), mask)
    assert rle.area(counts) == int(oracle.area(truth))
    x, y, w, h = oracle.toBbox(truth)
    assert rle.bounds(counts, height) == (x, y, x + w, y + h)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90), st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(1, 3))
def test_polygons_are_those_of_pycocotools(height: int, width: int, seed: int, points: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = [(rng.random((points, 2)) * [width * 1.2, height * 1.2]).round(2).ravel().tolist() for _ in range(parts)]
    polygons[0] += polygons[0][:2]  # closed by hand, as many are
    truth = oracle.merge(oracle.frPyObjects(polygons, height, width))
    assert rle.from_polygons(polygons, height, width) == truth["counts"]


def test_large_runs() -> None:
    mask = np.zeros((2000, 3000), bool)
    mask[100:1900, 1000:2999] = True
    mask[:, 2000:2500] = True
    truth = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle.encode(mask) == truth["counts"]
    assert np.array_equal(rle.decode(truth["counts"], 2000, 3000), mask)


@pytest.mark.parametrize("counts", [b"\x01", b"P", b"000\xff", b"oooooooooooooo0"])
def test_what_is_no_mask(counts: bytes) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        rle.decode(counts, 4, 4)
