"""Annotations on their image, so that they read at a glance: masks, boxes with names, keypoints with visibility."""

from __future__ import annotations

import colorsys
import io
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tenfold import storage
from tenfold.errors import InputError
from tenfold.transfer.data.table import Annotations, Dataset

SIDE = 640  # longest side of a drawn image, px


def colour(index: int) -> tuple[int, int, int]:
    """A colour for a category; neighbours differ clearly (golden angle)."""
    r, g, b = colorsys.hsv_to_rgb((index * 0.61803398875 + 0.02) % 1.0, 0.85, 1.0)
    return int(r * 255), int(g * 255), int(b * 255)


def picture(
    image: bytes, found: Annotations, categories: tuple[str, ...], skeleton: list[list[int]], side: int = SIDE
) -> Image.Image:
    """One image with its annotations.

    Filled keypoints are visible, hollow ones hidden; `crowd` and `difficult` stand behind the category.
    """
    with Image.open(io.BytesIO(image)) as opened:
        canvas = np.asarray(opened.convert("RGB")).copy()
    classes = found.class_map()
    masks = [found.mask(i) for i in range(len(found))]
    for i, mask in enumerate(masks):
        if mask is not None:
            canvas[mask] = (0.5 * canvas[mask] + 0.5 * np.array(colour(int(found.categories[i])))).astype(np.uint8)
    if classes is not None and not any(mask is not None for mask in masks):
        for value in np.unique(classes[classes > 0]):
            tint = (255, 255, 255) if value == 255 else colour(int(value) - 1)
            where = classes == value
            canvas[where] = (0.5 * canvas[where] + 0.5 * np.array(tint)).astype(np.uint8)
    scale = side / max(found.width, found.height)
    size = round(found.width * scale), round(found.height * scale)
    drawn = Image.fromarray(canvas).resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(13)
    for i in np.argsort(-found.areas, kind="stable"):
        tint = colour(int(found.categories[i]))
        x1, y1, x2, y2 = (float(v) * scale for v in found.boxes[i])
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=tint, width=2)
        name = (
            categories[found.categories[i]]
            + " (crowd)" * bool(found.crowd[i])
            + " (difficult)" * bool(found.difficult[i])
        )
        left, top, right, bottom = pen.textbbox((x1 + 2, max(y1 - 16, 0)), name, font=font)
        pen.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=tint)
        pen.text((x1 + 2, max(y1 - 16, 0)), name, fill=(0, 0, 0), font=font)
        points = found.keypoints[i]
        for a, b in skeleton:
            if points[a, 2] and points[b, 2]:
                pen.line([tuple(points[a, :2] * scale), tuple(points[b, :2] * scale)], fill=tint, width=2)
        for k, (x, y, seen) in enumerate(points):
            if seen:
                x, y = x * scale, y * scale
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=tint if seen == 2 else None, outline=(0, 0, 0))
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=tint if seen == 2 else None, outline=tint)
                pen.text((x + 5, y - 7), str(k), fill=(255, 255, 255), font=font, stroke_width=1, stroke_fill=(0, 0, 0))
    if not len(found) and len(found.labels):
        text = ", ".join(categories[label] for label in found.labels[:5])
        pen.text((4, 4), text, fill=(255, 255, 255), font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return drawn


def contact_sheet(
    dataset: Dataset, split: str, out: str, n: int = 10, columns: int = 2, side: int = SIDE, seed: int | None = None
) -> int:
    """Draw n images of a split on one PNG; returns how many there were.

    Args:
        dataset: the data set.
        split: one of its splits.
        out: where to, a `.png`.
        n: the first n images (a random sample, for rows lie in order of rank), or n drawn by `seed`.
        columns: images in a row.
        side: longest side of an image, px.
        seed: draws other images than the first.
    """
    if not out.endswith(".png"):
        raise InputError(f"{out} is no .png", "give --out a name that ends in .png")
    if n < 1:
        raise InputError(f"n is {n}", "draw at least one image")
    table = dataset.table(split)
    rows = list(range(min(n, dataset.splits[split])))
    if seed is not None:
        rows = sorted(random.Random(seed).sample(range(dataset.splits[split]), len(rows)))
    k, tiles = len(dataset.facts["keypoints"]), []
    for row in table.take(rows).to_pylist():
        found = Annotations.from_record(row, k)
        tiles.append(picture(row["image"], found, dataset.categories, dataset.facts["skeleton"], side))
    columns = min(columns, len(tiles))
    lines = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in line) for line in lines]
    sheet = Image.new("RGB", (columns * side, sum(heights)), (24, 24, 24))
    top = 0
    for line, height in zip(lines, heights, strict=True):
        for i, tile in enumerate(line):
            sheet.paste(tile, (i * side, top))
        top += height
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    storage.write_bytes(storage.normalise(out), encoded.getvalue())
    return len(tiles)
