"""PNG bytes: lossless, valid, and the same on every machine."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold.corpus.sources.pngs import encode


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kind=st.sampled_from(["noise", "flat", "ramp"]),
    seed=st.integers(0, 9),
)
def test_pillow_reads_the_same_pixels(n: int, height: int, width: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {
        "noise": rng.integers(0, 256, (n, height, width, 3)),
        "flat": np.full((n, height, width, 3), seed * 28),
        "ramp": np.arange(n * height * width * 3).reshape(n, height, width, 3) * (seed + 1) % 256,
    }[kind].astype(np.uint8)
    for image, data in zip(images, encode(images), strict=True):
        read = Image.open(io.BytesIO(data))
        read.verify()  # checksums of every chunk
        read = Image.open(io.BytesIO(data))
        assert (read.mode, read.size) == ("RGB", (width, height))
        np.testing.assert_array_equal(np.asarray(read), image)


def test_bytes_are_pinned() -> None:
    """Ids, ranks and subsets hang on these bytes: this digest must never change, on any machine (D-12)."""
    y, x = np.mgrid[:32, :32]  # whole numbers only: sines are rounded otherwise elsewhere
    waves = np.stack([(x * x * (c + 1) + y * (40 - 9 * c) + x * y) // 8 % 256 for c in range(3)], -1)
    images = np.stack([np.roll(waves, shift, 0) for shift in range(8)]).astype(np.uint8)
    digest = hashlib.sha256(b"".join(encode(images))).hexdigest()
    assert digest == "28549e04eddeac6b92827205e443d885601676114f42d42155afa4187f96e384"
    assert encode(images[3:4]) == encode(images)[3:4]  # however many are encoded at a time
