"""Fingerprints: what they survive, that they are exact, and their column in a corpus (D-14 to D-16)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from tenfold.corpus import fingerprint
from tenfold.corpus.match import THRESHOLD, Queries
from tenfold.errors import InputError

Change = Callable[[Image.Image], Image.Image]


def tiles(photographs: list[Path], across: int = 4, down: int = 3) -> list[Image.Image]:
    """Real photographs of 160 x 142 px: parts of two, which do not overlap."""
    out = []
    for path in photographs:
        whole = Image.open(path).convert("RGB")
        w, h = whole.width // across, whole.height // down
        out += [whole.crop((x * w, y * h, (x + 1) * w, (y + 1) * h)) for y in range(down) for x in range(across)]
    return out


def encoded(picture: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **({"quality": 95} | options if form == "JPEG" else {}))
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    import importlib.util

    spec = importlib.util.find_spec("sklearn")
    assert spec
    assert spec.origin
    folder = Path(spec.origin).parent / "datasets" / "images"
    shown = tiles([folder / "china.jpg", folder / "flower.jpg"])
    # Five parts show next to nothing (clear sky, background out of focus): no fingerprint can tell such apart.
    return [p for p in shown if np.asarray(p.convert("L")).std() > 12]


def cut(left: float, top: float, right: float, bottom: float) -> Change:
    return lambda p: p.crop(
        (round(left * p.width), round(top * p.height), round((1 - right) * p.width), round((1 - bottom) * p.height))
    )


def jpeg(quality: int) -> Change:
    return lambda p: Image.open(io.BytesIO(encoded(p, quality=quality)))


def gamma(power: float) -> Change:
    return lambda p: p.point([round(255 * (v / 255) ** power) for v in range(256)] * 3)


def hue(turn: int) -> Change:
    def change(picture: Image.Image) -> Image.Image:
        values = np.array(picture.convert("HSV"))
        values[..., 0] += np.uint8(turn % 256)
        return Image.fromarray(values, "HSV").convert("RGB")

    return change


SURVIVED: dict[str, Change] = {
    "same": lambda p: p,
    "half the size": lambda p: p.resize((p.width // 2, p.height // 2)),
    "a quarter of the size": lambda p: p.resize((p.width // 4, p.height // 4)),
    "twice the size": lambda p: p.resize((p.width * 2, p.height * 2)),
    "another aspect ratio": lambda p: p.resize((100, 150)),
    "JPEG quality 60": jpeg(60),
    "JPEG quality 30": jpeg(30),
    "mirror": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "crop 5 % of all sides": cut(0.05, 0.05, 0.05, 0.05),
    "crop 10 % of two sides": cut(0.10, 0.10, 0.0, 0.0),
    "crop unevenly": cut(0.02, 0.09, 0.08, 0.0),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.6),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
    "less contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.5),
    "more contrast": lambda p: ImageEnhance.Contrast(p).enhance(1.5),
    "saturation": lambda p: ImageEnhance.Color(p).enhance(1.8),
    "hue by 7 degrees": hue(5),
    "gamma 0.6": gamma(0.6),
    "gamma 1.6": gamma(1.6),
    "greyscale": lambda p: p.convert("L").convert("RGB"),
    "mirror, crop, gamma, half, JPEG 40": lambda p: jpeg(40)(
        gamma(1.2)(cut(0.04, 0.06, 0.02, 0.05)(p.transpose(Image.Transpose.FLIP_LEFT_RIGHT))).resize((80, 70))
    ),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_copies_are_found_and_nothing_else(pictures: list[Image.Image], name: str) -> None:
    """A tile's copy is found at its tile; no other pair is within the threshold. Both ways round."""
    prints = fingerprint.compute([encoded(p) for p in pictures], workers=1)
    copies = [encoded(SURVIVED[name](p).convert("RGB"), "PNG") for p in pictures]
    for queries, corpus in (
        (copies, prints),
        ([encoded(p) for p in pictures], fingerprint.compute(copies, workers=1)),
    ):
        hits = Queries.of(fingerprint.luminances(queries, workers=1)).search(corpus, workers=1)
        found = {(int(h["query"]), int(h["row"])) for h in hits}
        assert all(query == row for query, row in found)
        assert len(found) >= len(pictures) - 1  # one of 19 shows flowers out of focus
        assert (hits["distance"] <= THRESHOLD).all()


@pytest.mark.parametrize("name", ["same", "JPEG quality 60", "mirror", "crop 5 % of all sides", "darker", "greyscale"])
def test_at_32_pixels(pictures: list[Image.Image], name: str) -> None:
    """The same for pictures as small as CIFAR's."""
    small = [p.resize((32, 32), Image.Resampling.BOX) for p in pictures]
    prints = fingerprint.compute([encoded(p, "PNG") for p in small], workers=1)
    copies = [encoded(SURVIVED[name](p).convert("RGB"), "PNG") for p in small]
    hits = Queries.of(fingerprint.luminances(copies, workers=1)).search(prints, workers=1)
    found = {(int(h["query"]), int(h["row"])) for h in hits}
    assert all(query == row for query, row in found)
    assert len(found) >= len(small) - 1


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.randoms(use_true_random=False), st.integers(1, 150))
def test_independent_of_workers_batch_and_order(workers: int, random: object, count: int) -> None:
    """Bit for bit: any number of workers, any batch, any place in it."""
    numbers = np.random.default_rng(random.randrange(1 << 30))  # type: ignore[attr-defined]
    grids = numbers.integers(0, 256, (count, 12, 9, 3), dtype=np.uint8)
    images = [encoded(Image.fromarray(g), "PNG") for g in grids]
    once = fingerprint.compute(images, workers=workers)
    order = numbers.permutation(count)
    assert np.array_equal(fingerprint.compute([images[i] for i in order], workers=1), once[order])
    single = int(numbers.integers(count))
    assert np.array_equal(fingerprint.compute([images[single]])[0], once[single])


def test_golden() -> None:
    """Values that may never change without a new VERSION: stored fingerprints would no longer compare."""
    y, x = np.mgrid[:32, :32]
    grid = ((7 * x + 3 * y * y + x * y) % 251).astype(np.uint8)
    found = fingerprint.fingerprints(grid[None])[0]
    assert fingerprint.VERSION == 1
    assert found.shape == (fingerprint.BYTES,)
    assert found[:8].tolist() == GOLDEN_COARSE
    assert found[fingerprint.COARSE + 100 : fingerprint.COARSE + 108].tolist() == GOLDEN_FINE


GOLDEN_COARSE = [-31, -31, -32, -33, -23, -20, -10, -1]
GOLDEN_FINE = [35, 44, 49, 58, 4, -7, 1, -54]


def test_mirrored_coarse_is_that_of_the_mirrored_picture(pictures: list[Image.Image]) -> None:
    grids = np.stack([fingerprint.luminance_of_pixels(np.asarray(p)) for p in pictures])
    coarse, _ = fingerprint.views(grids)
    mirrored, _ = fingerprint.views(np.ascontiguousarray(grids[:, :, ::-1]))
    assert np.abs(fingerprint.mirror_coarse(coarse[0]) - mirrored[0]).max() < 1e-5
    assert np.array_equal(fingerprint.mirror_coarse(fingerprint.mirror_coarse(coarse[0])), coarse[0])


def test_flat_pictures_match_nothing() -> None:
    flat = [encoded(Image.new("RGB", (64, 64), colour), "PNG") for colour in ("white", "black", "red")]
    grids = fingerprint.luminances(flat)
    assert not fingerprint.fingerprints(grids).any()
    assert len(Queries.of(grids).search(fingerprint.fingerprints(grids))) == 0


def test_pixels_and_files_agree(pictures: list[Image.Image]) -> None:
    for picture in pictures[:3]:
        pixels = fingerprint.luminance_of_pixels(np.asarray(picture))
        assert np.array_equal(pixels, fingerprint.luminance(encoded(picture, "PNG")))
        # JPEGs are decoded at a fraction of their size: not the same to the bit, but nearly.
        assert np.abs(pixels.astype(int) - fingerprint.luminance(encoded(picture))).mean() < 2
    assert fingerprint.luminance(encoded(pictures[0].convert("CMYK"))).shape == (32, 32)
    assert fingerprint.luminance(encoded(pictures[0].convert("L"))).shape == (32, 32)


def test_what_cannot_be_read_says_so() -> None:
    for data in (b"", b"no picture", b"\xff\xd8\xff\xe0 cut"):
        with pytest.raises(InputError, match="cannot be decoded"):
            fingerprint.luminance(data)
    with pytest.raises(InputError, match=r"float64 \(4, 4\)"):
        fingerprint.luminance_of_pixels(np.zeros((4, 4)))
    assert fingerprint.compute([]).shape == (0, fingerprint.BYTES)
