"""From encoded bytes to what a network sees: T-03's geometry against Pillow, flips, padding, damage."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.engine.images import BadRowError, CropTransform, PadTransform, decode
from tenfold.engine.streams import SampleRandom
from tenfold.errors import InputError


def shown(transform: CropTransform | PadTransform, data: bytes, key: int = 0) -> np.ndarray:
    out = np.full((transform.size, transform.size, 3), 77, np.uint8)
    transform.apply(data, SampleRandom(key), out)
    return out


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photograph(photographs: list[Path]) -> bytes:
    return Path(photographs[0]).read_bytes()


def test_the_centre_crop_is_pillows(photograph: bytes) -> None:
    """Resized to 340 x 340 and cut in the middle: Pillow's resize of the exact box, up to half a source pixel."""
    with Image.open(io.BytesIO(photograph)) as image:
        x, y = image.width / 340, image.height / 340
        box = (20.5 * x, 20.5 * y, 319.5 * x, 319.5 * y)
        expected = np.asarray(image.convert("RGB").resize((299, 299), Image.Resampling.BILINEAR, box=box)).astype(float)
    found = shown(CropTransform(random=False), photograph).astype(float)
    assert np.abs(found - expected).mean() < 4.0
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_random_crops_differ_by_key_and_repeat_by_key(photograph: bytes) -> None:
    views = [shown(CropTransform(), photograph, key) for key in range(6)]
    assert len({v.tobytes() for v in views}) == 6
    assert np.array_equal(views[3], shown(CropTransform(), photograph, 3))


def test_about_half_are_mirrored() -> None:
    """Brightness that falls from left to right tells a mirrored crop."""
    ramp = np.broadcast_to(np.linspace(255, 0, 340).astype(np.uint8)[None, :, None], (340, 340, 3))
    data = png(np.ascontiguousarray(ramp))
    mirrored = sum(bool(v[:, 0].mean() < v[:, -1].mean()) for v in (shown(CropTransform(), data, k) for k in range(60)))
    assert 15 < mirrored < 45


def test_small_pictures_are_enlarged_by_the_exact_box() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = shown(CropTransform(resize=80, crop=64, random=False), png(pixels))
    box = (8 * 60 / 80, 8 * 40 / 80, 72 * 60 / 80, 72 * 40 / 80)
    expected = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR, box=box)
    assert np.array_equal(found, np.asarray(expected))


def test_padding_moves_by_whole_pixels_and_fills_with_black() -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
    windows = {
        np.ascontiguousarray(side[y : y + 32, x : x + 32]).tobytes()
        for side in (padded, padded[:, ::-1])
        for y in range(9)
        for x in range(9)
    }
    data = png(pixels)
    assert all(shown(PadTransform(), data, key).tobytes() in windows for key in range(50))
    assert np.array_equal(shown(PadTransform(random=False), data), pixels)


def test_a_damaged_picture_is_a_bad_row(photograph: bytes) -> None:
    with pytest.raises(BadRowError):
        decode(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(BadRowError):
        decode(b"\xff\xd8" + b"no jpeg" * 10)


def test_bytes_may_be_a_view(photograph: bytes) -> None:
    assert np.array_equal(decode(memoryview(photograph)), decode(photograph))  # type: ignore[arg-type]


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(InputError, match="crop = 300 is larger than resize = 200"):
        CropTransform(resize=200, crop=300)
