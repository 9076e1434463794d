"""Pictures come out as a person would expect to see them; what is damaged or no picture is named."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from tenfold.corpus.pictures import PictureConfig, normalise
from tenfold.corpus.sniff import Rejected
from tenfold.corpus.table import Flags

KEEP = PictureConfig(max_side=0, quality=95)
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")


def scene(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth colourful picture without any symmetry, that survives JPEG well."""
    y, x = np.mgrid[:height, :width]
    channels = 255 * x / width, 255 * y / height, 255 * np.exp(-(((x - width / 4) / 9) ** 2 + ((y - 8) / 7) ** 2))
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stored = io.BytesIO()
    picture.save(stored, form, **options)
    return stored.getvalue()


def pixels(data: bytes, config: PictureConfig = KEEP) -> np.ndarray:
    """What the corpus stores, decoded; checks what the table promises of every image."""
    stored = normalise(data, config)
    with Image.open(io.BytesIO(stored.image)) as opened:
        assert opened.format in ("JPEG", "PNG")
        assert opened.mode == "RGB"
        assert opened.size == (stored.width, stored.height)
        assert opened.getexif().get(0x0112, 1) == 1
        return np.asarray(opened).astype(int)


def near(one: np.ndarray, other: Image.Image | np.ndarray, tolerance: float) -> bool:
    other = np.asarray(other).astype(int)
    return one.shape == other.shape and float(np.abs(one - other).mean()) <= tolerance


def rejected(data: bytes, config: PictureConfig = KEEP) -> Rejected:
    with pytest.raises(Rejected) as caught:
        normalise(data, config)
    assert caught.value.detail.endswith(".")
    return caught.value


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG made by hand: kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_shows_the_picture(form: str) -> None:
    data = encoded(scene(), form, **({"quality": 95} if form in ("JPEG", "WEBP", "AVIF") else {}))
    assert near(pixels(data), scene(), 0 if form in LOSSLESS else 5)
    assert normalise(data, KEEP).image[:4] == (
        b"\xff\xd8\xff\xe0" if form in ("JPEG", "WEBP", "AVIF", "JPEG2000") else b"\x89PNG"
    )


def test_what_is_right_already_keeps_its_bytes(photographs: list[Path]) -> None:
    for path in photographs:
        data = path.read_bytes()
        assert normalise(data, KEEP).image == data or Image.open(path).info.get("icc_profile")
    for data in (
        encoded(scene(), "PNG"),
        encoded(scene(), "JPEG"),
        encoded(scene(), "JPEG", progressive=True),
        encoded(scene(), "JPEG", subsampling=0),
        encoded(scene(), "JPEG") + b"a video behind the picture",
    ):
        stored = normalise(data, KEEP)
        assert (stored.image, stored.flags, stored.width, stored.height) == (data, 0, 60, 40)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_pillow(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(), form, exif=exif, **({"quality": 95} if form in ("JPEG", "WEBP") else {}))
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert near(pixels(data), expected, 0 if form in LOSSLESS else 5)
    assert expected.size == ((40, 60) if orientation >= 5 else (60, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_hide_the_picture() -> None:
    data = encoded(scene(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xee" * 40)
    assert near(pixels(data), scene(), 5)


def test_cmyk_as_adobe_stores_it() -> None:
    data = encoded(scene().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert near(pixels(data), scene(), 6)
    assert near(pixels(encoded(scene().convert("CMYK"), "TIFF")), scene(), 2)
    assert near(
        pixels(encoded(scene(680, 500).convert("CMYK"), "JPEG", quality=95), PictureConfig()),
        scene(680, 500).resize((462, 340)),
        6,
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(form: str) -> None:
    grey = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    expected = np.repeat(np.asarray(scene().convert("L"))[..., None], 3, 2)
    assert near(pixels(encoded(Image.fromarray(grey), form)), expected, 0)


def test_sixteen_bit_rgb_and_alpha_made_by_hand() -> None:
    wide = np.asarray(scene()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    assert near(pixels(png(60, 40, 16, 2, rows)), scene(), 0)
    clear = np.concatenate([wide, np.zeros((40, 60, 1), ">u2")], -1)
    rows = b"".join(b"\0" + row.tobytes() for row in clear)
    assert pixels(png(60, 40, 16, 6, rows)).min() == 255


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 257.0])
def test_floats_are_scaled_by_their_range(scale: float) -> None:
    grey = np.asarray(scene().convert("L")).astype(np.float32)
    expected = np.repeat(np.asarray(scene().convert("L"))[..., None], 3, 2)
    assert near(pixels(encoded(Image.fromarray(grey * np.float32(scale)), "TIFF")), expected, 0.6)


def test_alpha_lies_on_white() -> None:
    clear = scene().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((60, 40)))
    alpha = np.asarray(clear)[..., 3:] / 255
    expected = np.asarray(scene()) * alpha + 255 * (1 - alpha)
    for form in ("PNG", "TIFF"):
        assert near(pixels(encoded(clear, form)), expected.round(), 1)
    assert near(pixels(encoded(clear, "WEBP", lossless=True, exact=True)), expected.round(), 1)
    grey = scene().convert("LA")
    grey.putalpha(0)
    assert pixels(encoded(grey)).min() == 255


def test_palettes_and_their_transparency() -> None:
    flat = scene().quantize(16)
    assert near(pixels(encoded(flat)), flat.convert("RGB"), 0)
    assert near(pixels(encoded(flat, "GIF")), flat.convert("RGB"), 0)
    clear = pixels(encoded(flat, transparency=flat.getpixel((0, 0))))
    assert clear[0, 0].tolist() == [255, 255, 255]
    key = encoded(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7))
    assert pixels(key).min() == 255


@pytest.mark.parametrize(
    ("mode", "form"),
    [("1", "PNG"), ("1", "TIFF"), ("1", "BMP"), ("L", "PNG"), ("L", "JPEG"), ("L", "TIFF"), ("L", "BMP")],
)
def test_grey_becomes_rgb(mode: str, form: str) -> None:
    picture = scene().convert(mode)
    assert near(pixels(encoded(picture, form)), picture.convert("RGB"), 2 if form == "JPEG" else 0)


def test_first_frame_of_an_animation_first_page_of_a_document() -> None:
    frames = [scene().transpose(Image.Transpose.ROTATE_180) for _ in range(2)]
    for form, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encoded(scene(), form, save_all=True, append_images=frames, **options)
        assert near(pixels(data), scene(), 4), form


def wide_profile() -> bytes:
    """An ICC profile in which numbers mean other colours than in sRGB: red and blue are exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_icc_profiles_are_applied(form: str) -> None:
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    data = encoded(scene(), form, icc_profile=wide_profile(), **options)
    assert near(pixels(data), np.asarray(scene())[..., ::-1], 6)
    assert "icc_profile" not in Image.open(io.BytesIO(normalise(data, KEEP).image)).info


def test_srgb_profiles_change_nothing_and_broken_ones_are_ignored() -> None:
    same = encoded(scene(), "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert normalise(same, KEEP).image == same
    broken = encoded(scene(), "JPEG", icc_profile=b"no profile at all")
    assert normalise(broken, KEEP).image == broken


def test_large_pictures_are_scaled_down_and_small_ones_never_up() -> None:
    config = PictureConfig(max_side=100)
    for form in FORMATS:
        stored = normalise(encoded(scene(450, 300), form), config)
        assert (stored.width, stored.height, stored.flags) == (150, 100, Flags.REDUCED | Flags.REENCODED)
        assert stored.image.startswith(b"\xff\xd8")
    assert normalise(encoded(scene(60, 40)), config).flags == 0
    long = normalise(encoded(scene(2000, 100)), config)
    assert (long.width, long.height, long.flags) == (2000, 100, 0)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_the_short_side_is_met_exactly_and_the_aspect_kept(width: int, height: int, side: int) -> None:
    target = PictureConfig(max_side=side).target(width, height)
    if target is None:
        assert min(width, height) <= side
    else:
        assert min(target) == side
        assert abs(target[0] / target[1] - width / height) <= max(width, height) / min(width, height) / side


def test_scaled_decoding_looks_like_full_decoding(photographs: list[Path]) -> None:
    for path in photographs:
        with Image.open(path) as opened:
            large = opened.convert("RGB").resize((2560, 1708), Image.Resampling.LANCZOS)
        for options in ({}, {"progressive": True}):
            data = encoded(large, "JPEG", quality=95, **options)
            with Image.open(io.BytesIO(data)) as opened:
                full = opened.resize((510, 340), Image.Resampling.LANCZOS)
            with Image.open(io.BytesIO(encoded(full, "JPEG", quality=95))) as stored:
                assert near(pixels(data, PictureConfig(quality=95)), stored, 1.5)


@pytest.mark.parametrize("form", FORMATS)
@given(cut=st.floats(0.0, 1.0, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_a_cut_file_is_never_shown_wrong(form: str, cut: float) -> None:
    """Whatever is missing at the end: it is rejected, or nothing of the picture was missing."""
    whole = encoded(scene(), form)
    data = whole[: int(cut * len(whole))]
    try:
        shown = pixels(data)
    except Rejected as verdict:
        reason = verdict.reason
    else:
        reason = ""
        assert form not in ("JPEG", "PNG", "WEBP")
        assert near(shown, pixels(whole), 0)
    assert reason in (("", "truncated", "corrupt") if len(data) >= 30 else ("empty", "foreign", "truncated", "corrupt"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_with_a_few_bytes_missing_is_truncated(options: dict[str, Any]) -> None:
    whole = encoded(scene(), "JPEG", **options)
    for missing in (1, 2, 3, 10, 100):
        assert rejected(whole[:-missing]).reason == "truncated"


@pytest.mark.parametrize("form", FORMATS)
@given(place=st.floats(0.0, 1.0, exclude_max=True), value=st.integers(0, 255))
@settings(max_examples=25, deadline=None)
def test_damage_never_escapes_as_another_error(form: str, place: float, value: int) -> None:
    data = bytearray(encoded(scene(), form))
    data[int(place * len(data))] = value
    with contextlib.suppress(Rejected):
        pixels(bytes(data))


def test_damage_inside_is_corrupt() -> None:
    data = encoded(scene())
    at = data.index(b"IDAT") + 20
    assert rejected(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]).reason == "corrupt"
    jpeg = encoded(scene(300, 200), "JPEG", restart_marker_blocks=1)
    second = jpeg.index(b"\xff\xd1", jpeg.index(b"\xff\xda"))
    assert rejected(jpeg[: second - 6] + jpeg[second:]).reason == "corrupt"


def test_pngs_made_wrong_on_purpose() -> None:
    """Check sums are right, pixels are not: what is stored as it is has to be decodable all the same."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(scene()))
    assert normalise(png(60, 40, 8, 2, rows), KEEP).flags == 0
    assert rejected(png(60, 40, 8, 2, rows[:-1])).reason == "truncated"
    assert rejected(png(60, 40, 8, 2, b"\5" + rows[1:])).reason == "corrupt"
    assert rejected(png(0, 40, 8, 2, rows)).reason == "corrupt"
    whole = png(60, 40, 8, 2, rows)
    packed = zlib.compress(rows)
    for damaged in (packed[:-9], packed[:20] + b"\xff" * 20 + packed[40:], packed[:-4] + b"\0\0\0\0"):
        bad = whole.replace(chunk(b"IDAT", packed), chunk(b"IDAT", damaged))
        assert bad != whole
        assert rejected(bad).reason in ("truncated", "corrupt")


@given(place=st.floats(0.0, 1.0, exclude_max=True), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_png_pixels_taken_without_decoding_equal_pillow(place: float, value: int) -> None:
    """Damage in the packed pixels, with the check sum made right again: what is taken, Pillow can decode."""
    packed = bytearray(zlib.compress(b"".join(b"\1" + row.tobytes() for row in np.asarray(scene(20, 10)))))
    packed[int(place * len(packed))] = value
    header = struct.pack(">IIBBBBB", 20, 10, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(packed)) + chunk(b"IEND", b"")
    with contextlib.suppress(Rejected):
        normalise(data, KEEP)
        Image.open(io.BytesIO(data)).load()


def test_stray_bytes_are_skipped_and_gone_afterwards() -> None:
    data = encoded(scene(), "JPEG", quality=95)
    stray = data[:-2] + bytes(range(1, 21)) + data[-2:]
    stored = normalise(stray, KEEP)
    assert stored.flags == Flags.RECOVERED | Flags.REENCODED
    assert near(pixels(stray), scene(), 5)
    assert normalise(stored.image, KEEP).flags == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello world, this is no picture\n" * 9, "a text file"),
        ("schöne Grüße".encode(), "a text file"),
        (b"\n<!DOCTYPE html><html><body>404", "an HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"\0\0\0\x20ftypisom\0\0\2\0" + b"\0" * 40, "an MP4 or QuickTime video"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", "a Matroska or WebM video"),
        (b"RIFF\x24\0\0\0AVI LIST", "an AVI video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture"),
        (b"PK\x03\x04\x14\0\0\0", "a zip archive"),
        (bytes(range(256)) * 3, "unknown binary data"),
        (b"BM, I said, is what my sentence begins with.", "a text file"),
    ],
)
def test_foreign_files_are_named(data: bytes, says: str) -> None:
    verdict = rejected(data)
    assert verdict.reason == ("empty" if not data else "foreign")
    assert says in verdict.detail


def bombs() -> dict[str, bytes]:
    """Headers that promise too many pixels; nothing behind them would ever be decoded."""
    jpeg = bytearray(encoded(scene(), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 65000, 65000)
    gif = bytearray(encoded(scene(), "GIF"))
    struct.pack_into("<HH", gif, 6, 65000, 65000)
    bmp = bytearray(encoded(scene(), "BMP"))
    struct.pack_into("<ii", bmp, 18, 100_000, 100_000)
    webp = bytearray(encoded(scene(), "WEBP", lossless=True))
    webp[21:25] = (0x3FFF | 0x3FFF << 14).to_bytes(4, "little")
    return {
        "png": png(50_000, 50_000, 8, 2, bytes(1000)),
        "jpeg": bytes(jpeg),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "webp": bytes(webp),
        "ppm": b"P6 100000 100000 255\n" + bytes(100),
    }


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "bmp", "webp", "ppm"])
def test_bombs_are_told_from_the_header(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoding(*_: object, **__: object) -> None:
        raise AssertionError("something was decoded")

    data = bombs()[form]
    monkeypatch.setattr(Image.Image, "load", decoding)
    monkeypatch.setattr("simplejpeg.decode_jpeg", decoding)
    assert rejected(data).reason == "bomb"


def test_the_pixel_limit_is_a_setting() -> None:
    data = encoded(scene(60, 40))
    assert normalise(data, PictureConfig(max_pixels=2400)).flags == 0
    assert "60 x 40" in rejected(data, PictureConfig(max_pixels=2399)).detail
    scans = encoded(scene(), "JPEG", progressive=True)
    start = scans.index(b"\xff\xda")
    assert rejected(scans[:start] + scans[start:-2] * 200 + scans[-2:]).reason == "bomb"
