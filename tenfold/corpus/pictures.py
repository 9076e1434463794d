"""Any picture to upright 8-bit RGB, as a person would expect to see it.

What is already that, as JPEG or PNG and small enough, keeps its bytes. Everything else is decoded, turned upright,
brought to sRGB on white, scaled down and encoded again. What cannot be is raised as Rejected, with the reason.

    EXIF orientation     applied
    ICC profile          converted to sRGB, unless it does the same already
    CMYK, YCCK           by its profile, else the plain formula; JPEG values are stored inverted (Adobe's way)
    16-bit, float        scaled to 8 bits
    alpha, transparency  composited on white
    animation, pages     the first one
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from tenfold.corpus.sniff import (
    PngHeader,
    Rejected,
    check_boxes,
    check_jpeg,
    check_png,
    check_png_pixels,
    check_webp,
    identify,
    is_lossless,
    png_size,
)
from tenfold.corpus.table import Flags

_FORMATS = {  # Pillow's readers by our names; it must not try others (EPS would start Ghostscript)
    "jpeg": ("JPEG",),  # opens as "MPO" where several JPEGs lie in one file, as phones write them
    "png": ("PNG",),
    "gif": ("GIF",),
    "webp": ("WEBP",),
    "bmp": ("BMP",),
    "tiff": ("TIFF",),
    "avif": ("AVIF",),
    "jp2": ("JPEG2000",),
    "ppm": ("PPM",),
}
for _plugin in ("Jpeg", "Mpo", "Png", "Gif", "WebP", "Bmp", "Tiff", "Avif", "Jpeg2K", "Ppm"):
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")  # Image.open(formats=…) knows only what is loaded

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # EXIF tag
_OVERSAMPLING = 1.5  # JPEGs are decoded at a fraction of at least this many times the wanted size, then resampled
_FRACTIONS = (8, 4, 2)  # libjpeg knows others, such as 3/8, but without vector code: slower than more pixels, and worse


class PictureConfig(BaseModel):
    """How pictures are stored.

    Attributes:
        max_side: largest short side in pixels; larger pictures are scaled down to it. 0: never.
        quality: JPEG quality where a picture is encoded again (4:2:0).
        max_pixels: above this a picture is a decompression bomb.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_side: int = Field(default=340, ge=0)
    quality: int = Field(default=90, ge=1, le=100)
    max_pixels: int = Field(default=50_000_000, ge=1)

    def target(self, width: int, height: int) -> tuple[int, int] | None:
        """Size after scaling down, aspect kept; None where the picture is small enough."""
        short = min(width, height)
        if not self.max_side or short <= self.max_side:
            return None
        scale = self.max_side / short
        return max(self.max_side, round(width * scale)), max(self.max_side, round(height * scale))


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the corpus stores it.

    Attributes:
        image: encoded JPEG or PNG, upright 8-bit RGB.
        width: pixels.
        height: pixels.
        flags: bits of Flags.
    """

    image: bytes
    width: int
    height: int
    flags: int = 0


Guard = Callable[[int], AbstractContextManager[Any]]


def _no_guard(_: int) -> AbstractContextManager[Any]:
    return nullcontext()


def normalise(data: bytes, config: PictureConfig, guard: Guard = _no_guard) -> Picture:
    """A file's bytes as the corpus stores them.

    Args:
        data: the whole file.
        config: sizes and quality.
        guard: entered around the decoding with its estimated bytes, for callers with little memory.

    Raises Rejected for what cannot be taken; `max_pixels` is checked before anything is decoded.
    """
    kind = identify(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata that does not matter here
            return _jpeg(data, config, guard) if kind == "jpeg" else _other(kind, data, config, guard)
    except Rejected:
        raise
    except MemoryError:
        raise Rejected("bomb", "Decoding it needs more memory than there is.") from None
    except Exception as error:  # decoders raise whatever they like at damaged bytes: struct.error, KeyError, …
        raise _verdict(kind, error) from None


def _verdict(kind: str, error: Exception) -> Rejected:
    """The reason in a decoder's error."""
    text = str(error) or type(error).__name__
    lower = text.lower()
    if isinstance(error, Image.DecompressionBombError):
        return Rejected("bomb", text)
    if isinstance(error, UnidentifiedImageError):
        return Rejected("corrupt", f"The header of the {kind.upper()} cannot be read.")
    cut = (
        "truncated",
        "premature end of jpeg file",
        "eof",
        "unexpected end",
        "not enough",
        "insufficient",
        "too short",
    )
    reason = "truncated" if any(word in lower for word in cut) else "corrupt"
    return Rejected(reason, f"The {kind.upper()} cannot be decoded: {text.rstrip('.')}.")


def _check_pixels(size: tuple[int, int], config: PictureConfig) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise Rejected("corrupt", f"The header says {width} x {height} pixels.")
    if width * height > config.max_pixels:
        raise Rejected(
            "bomb",
            f"The header says {width:,} x {height:,} pixels, more than the limit of {config.max_pixels:,}.",
        )


def _jpeg(data: bytes, config: PictureConfig, guard: Guard) -> Picture:
    """JPEGs are decoded by libjpeg-turbo through simplejpeg: unlike Pillow it reports damage inside a scan."""
    opened = Image.open(io.BytesIO(data), formats=_FORMATS["jpeg"])
    size = opened.size
    _check_pixels(size, config)
    check_jpeg(data)
    if opened.mode not in ("RGB", "L", "CMYK"):
        raise Rejected("corrupt", f"The JPEG has an unknown kind of pixels, {opened.mode}.")
    turn = _TURN.get(_orientation(opened))  # compare with None: a flip is 0
    convert = _to_srgb(opened.info.get("icc_profile"), opened.mode)
    target = config.target(*size)
    flags = Flags.REENCODED
    width, height = _decoded_size(size, target) if target else (0, 0)
    progressive = 2 * 3 * size[0] * size[1] if opened.info.get("progressive") else 0  # all coefficients, 16 bits each
    with guard(progressive + 8 * (4 * width * height if target else size[0] * size[1])):
        if opened.mode == "RGB" and opened.format == "JPEG" and turn is None and not (convert or target):
            # Grey at an eighth: all of the entropy coding is read, and so checked, at the least cost.
            fault = _decode_jpeg(data, "GRAY", min_height=1, min_width=1, fastdct=True)[1]
            if not fault:
                return Picture(data, *size)
        space = {"RGB": "RGB", "L": "GRAY" if convert else "RGB", "CMYK": "CMYK"}[opened.mode]
        pixels, fault = _decode_jpeg(data, space, min_height=height, min_width=width)
        if fault:
            flags |= Flags.RECOVERED
        if space == "CMYK":
            picture = Image.fromarray(255 - pixels, "CMYK")
        else:
            picture = Image.fromarray(pixels[..., 0] if space == "GRAY" else pixels)
        del pixels
        if target:
            picture = picture.resize(target, Image.Resampling.LANCZOS)
            flags |= Flags.REDUCED
        picture = _rgb(convert(picture) if convert else picture)
        if turn is not None:
            picture = picture.transpose(turn)
    return _encode(picture, "JPEG", config, flags)


def _decoded_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Width and height to decode a JPEG at before it is resampled to `target`: the smallest good fraction of `size`."""
    for part in _FRACTIONS:
        if size[0] >= part * _OVERSAMPLING * target[0] and size[1] >= part * _OVERSAMPLING * target[1]:
            return math.ceil(size[0] / part), math.ceil(size[1] / part)
    return size


def _decode_jpeg(data: bytes, space: str, **options: Any) -> tuple[np.ndarray, str]:
    """Pixels [h, w, channels] and the fault that was skipped, if any; raises Rejected for any other.

    Stray bytes between segments are common in photographs from the web and harmless, though some of them come from
    damage: they are taken, and encoded again so that no later decoder stumbles.
    """
    try:
        return simplejpeg.decode_jpeg(data, space, **options), ""
    except ValueError as error:
        fault = str(error)
        if "extraneous bytes before marker" not in fault:
            raise _verdict("jpeg", error) from None
    return simplejpeg.decode_jpeg(data, space, strict=False, **options), fault


def _other(kind: str, data: bytes, config: PictureConfig, guard: Guard) -> Picture:
    """All formats but JPEG, through Pillow."""
    header: PngHeader | None = None
    if kind == "png":
        _check_pixels(png_size(data) or (1, 1), config)  # before the walk: a bomb is a bomb even if it is cut, too
        header = check_png(data)
        if _as_it_is(header) and not config.target(header.width, header.height):
            with guard(4 * header.width * header.height):
                check_png_pixels(data, header)
            return Picture(data, header.width, header.height)
    elif kind == "webp":
        _check_pixels(check_webp(data), config)
    elif kind in ("avif", "jp2"):
        check_boxes(data)
    elif kind == "tiff" and int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") >= len(data):
        raise Rejected("truncated", "The TIFF ends before its directory.")
    opened = Image.open(io.BytesIO(data), formats=_FORMATS[kind])
    size = opened.size
    _check_pixels(size, config)
    if kind == "tiff":
        tags = cast(Any, opened).tag_v2
        _check_pixels((tags.get(322, 1), tags.get(323, 1)), config)  # tiles may be larger than the picture
    with guard(8 * size[0] * size[1]):
        opened.load()
        turn = _TURN.get(_orientation(opened))  # after load: Pillow turns TIFFs itself
        convert = _to_srgb(opened.info.get("icc_profile"), opened.mode)
        target = config.target(*opened.size)
        if header and _is_rgb(header) and turn is None and not (convert or target):
            return Picture(data, *size)
        picture: Image.Image = opened
        if convert:
            alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
            picture = convert(picture.convert("RGB") if alpha else picture)
            if alpha:
                picture.putalpha(alpha)
        picture = _rgb(picture)
        flags = Flags.REENCODED
        if target:
            picture = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=2.0)
            flags |= Flags.REDUCED
        if turn is not None:
            picture = picture.transpose(turn)
    return _encode(picture, "PNG" if is_lossless(kind, data) and not target else "JPEG", config, flags)


def _is_rgb(header: PngHeader) -> bool:
    """Whether a PNG is one still picture of 8-bit RGB without transparency."""
    return (header.depth, header.colour) == (8, 2) and not header.chunks & {b"tRNS", b"acTL"}


def _as_it_is(header: PngHeader) -> bool:
    """Whether nothing but the pixels of a PNG remains to be looked at; texts may hold an orientation."""
    return (
        _is_rgb(header) and not header.interlaced and not header.chunks & {b"eXIf", b"iCCP", b"iTXt", b"zTXt", b"tEXt"}
    )


def _orientation(opened: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return int(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises anything; the pixels may be fine
        return 1


def _rgb(picture: Image.Image) -> Image.Image:
    """Any mode of Pillow's to RGB; transparency on white, wide values scaled to 8 bits."""
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.has_transparency_data:
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, (255, 255, 255))
        ground.paste(picture, mask=picture.getchannel("A"))
        return ground
    if picture.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")
        return cast(Image.Image, ImageCms.applyTransform(picture, to_rgb))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values [h, w] of 16 bits, 32 bits or float as uint8.

    Integers are taken as 16-bit. Floats are taken as 0 to 1, 0 to 255 or 0 to 65,535, whichever holds them all.
    """
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind == "i":
        return (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
    values = np.nan_to_num(values, posinf=0, neginf=0)
    top = float(values.max(initial=0.0))
    scale = 255.0 if top <= 1.0 else 1.0 if top <= 255 else 255 / 65535
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def _encode(picture: Image.Image, form: str, config: PictureConfig, flags: int) -> Picture:
    stored = io.BytesIO()
    picture.info = {}  # no profile, no EXIF: both have been applied
    if form == "JPEG":
        picture.save(stored, "JPEG", quality=config.quality)
    else:
        picture.save(stored, "PNG")
    return Picture(stored.getvalue(), *picture.size, flags)


_SRGB = ImageCms.createProfile("sRGB")
_CACHED = 16  # transforms kept; a CMYK one takes megabytes
_transforms: OrderedDict[tuple[bytes, str], Callable[[Image.Image], Image.Image] | None] = OrderedDict()


def _to_srgb(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Conversion from an ICC profile to sRGB; None where there is no (usable) profile, or where it changes nothing."""
    mode = "RGB" if mode == "RGBA" else mode
    if not profile or mode not in ("RGB", "L", "CMYK", "LAB"):
        return None
    key = hashlib.sha256(profile).digest(), mode
    if key in _transforms:
        _transforms.move_to_end(key)
        return _transforms[key]
    try:
        transform = ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(profile)), _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError):  # damaged, or for another kind of pixels: viewers ignore it, too
        convert = None
    else:
        convert = None if mode == "RGB" and _changes_nothing(transform) else _applying(transform)
    _transforms[key] = convert
    if len(_transforms) > _CACHED:
        _transforms.popitem(last=False)
    return convert


def _applying(transform: ImageCms.ImageCmsTransform) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: cast(Image.Image, ImageCms.applyTransform(picture, transform))


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether an RGB transform moves no colour of a 9 x 9 x 9 cube by more than 2 of 255: the many kinds of sRGB."""
    axis = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(27, 27, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
    return bool(np.abs(moved.astype(int) - cube).max() <= 2)
