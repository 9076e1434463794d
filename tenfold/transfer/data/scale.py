"""An image as it is stored: its own bytes where they can stay, its annotations in the pixels of what is stored."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from tenfold.corpus.pictures import Picture, PictureConfig, normalise
from tenfold.transfer.data import rle
from tenfold.transfer.data.reader import map_png
from tenfold.transfer.data.table import Annotations

CONFIG = PictureConfig(max_side=0, quality=95)
_ORIENTATION = 0x0112  # EXIF tag


def store(data: bytes, size: tuple[int, int] | None) -> Picture:
    """The image as 8-bit RGB JPEG or PNG, its own bytes where they are that already.

    Annotations count in the pixels that a file holds, so an EXIF orientation is dropped, not applied, unless the stated
    `size` (width, height) is that of the turned image. Raises corpus.sniff.Rejected for what does not decode.
    """
    picture = normalise(data, CONFIG)
    if picture.image is data:
        return picture
    with Image.open(io.BytesIO(data)) as opened:
        raw, turn = opened.size, int(opened.getexif().get(_ORIENTATION, 1))
        if turn == 1 or (size is not None and size != raw):
            return picture
        opened.load()
        opened.getexif().clear()
        opened.info.pop("exif", None)
        out = io.BytesIO()
        opened.save(out, "PNG" if opened.format == "PNG" else "JPEG", quality=95, exif=b"")
    return normalise(out.getvalue(), CONFIG)


def fit(picture: Picture, found: Annotations, max_side: int) -> tuple[Picture, Annotations]:
    """Scale image and annotations so that the longest side is at most `max_side` px (0: never)."""
    longest = max(picture.width, picture.height)
    if not max_side or longest <= max_side:
        return picture, found
    width, height = (max(1, round(side * max_side / longest)) for side in (picture.width, picture.height))
    size = (width, height)
    with Image.open(io.BytesIO(picture.image)) as opened:
        out = io.BytesIO()
        small = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        small.save(out, "PNG" if opened.format == "PNG" else "JPEG", quality=95)
    x, y = size[0] / picture.width, size[1] / picture.height
    masks = []
    for i in range(len(found)):
        mask = found.mask(i)
        if mask is not None:
            pixels = Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BOX)
            masks.append(rle.encode(np.asarray(pixels) >= 128))
        else:
            masks.append(b"")
    encoded, classes = found.map_png, found.class_map()
    if classes is not None:
        encoded = map_png(np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST)))
    return Picture(out.getvalue(), width, height, picture.flags), replace(
        found,
        width=width,
        height=height,
        boxes=found.boxes * np.array([x, y, x, y], np.float32),
        areas=found.areas * np.float32(x * y),
        keypoints=found.keypoints * np.array([x, y, 1], np.float32),
        masks=tuple(masks),
        map_png=encoded,
    )
