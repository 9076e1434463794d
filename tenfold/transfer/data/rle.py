"""Masks as run lengths in COCO's compressed form, in numpy.

A mask [H, W] is read column by column; its runs alternate between background and object, background first. Counts are
stored as differences to the count two before, each as base-32 digits from `0` on (COCO's `rleToString`). Polygons are
filled exactly as COCO fills them: edges are drawn five times as fine, then cut at pixel columns.
"""

from __future__ import annotations

import numpy as np


def encode(mask: np.ndarray) -> bytes:
    """Compressed run lengths of a mask [H, W] (anything that is not 0 belongs to it)."""
    return pack(_runs(np.asarray(mask, bool).ravel(order="F")))


def decode(counts: bytes, height: int, width: int) -> np.ndarray:
    """Mask [H, W] bool of compressed run lengths; raises ValueError where they do not fill it exactly."""
    runs = unpack(counts)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths cover {int(runs.sum())} of {height * width} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((height, width), order="F")


def area(counts: bytes) -> int:
    """Pixels of a mask."""
    return int(unpack(counts)[1::2].sum())


def bounds(counts: bytes, height: int) -> tuple[int, int, int, int]:
    """Tight box x1, y1, x2, y2 (exclusive) of a mask, or four zeros where it is empty."""
    runs = unpack(counts)
    ends = np.cumsum(runs)
    first, last = ends[0:-1:2], ends[1::2]
    keep = last > first
    first, last = first[keep], last[keep] - 1
    if not len(first):
        return 0, 0, 0, 0
    x1, x2 = first[0] // height, last[-1] // height
    whole = (first // height != last // height).any()  # a run over a column's end touches top and bottom
    y1, y2 = (0, height - 1) if whole else ((first % height).min(), (last % height).max())
    return int(x1), int(y1), int(x2) + 1, int(y2) + 1


def pack(runs: np.ndarray) -> bytes:
    """COCO's string of run lengths."""
    values = np.asarray(runs, np.int64).copy()
    values[3:] -= np.asarray(runs, np.int64)[1:-2]
    digits = np.empty((len(values), 8), np.uint8)
    used = np.zeros((len(values), 8), bool)
    open_ = np.ones(len(values), bool)
    for place in range(8):
        digit = values & 31
        values >>= 5
        more = np.where(digit & 16, values != -1, values != 0)
        digits[:, place] = digit + 32 * more + 48
        used[:, place] = open_
        open_ = open_ & more
        if not open_.any():
            break
    return digits[used].tobytes()


def unpack(counts: bytes) -> np.ndarray:
    """Run lengths (int64) of COCO's string; raises ValueError where it is none."""
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(digits):
        return np.zeros(0, np.int64)
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("the string holds no run lengths")
    last = digits & 32 == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, np.diff([*starts, len(digits)]))
    if place.max() > 11:
        raise ValueError("the string holds no run lengths")
    values = np.add.reduceat((digits & 31) << (5 * place), starts)
    ends = np.flatnonzero(last)
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def from_polygons(polygons: list[list[float]], height: int, width: int) -> bytes:
    """Union of polygons (each x, y, x, y, … in pixels), filled as COCO does."""
    every = [_polygon(np.asarray(polygon, np.float64), height, width) for polygon in polygons]
    if len(every) == 1:
        return pack(every[0])
    mask = np.zeros(height * width, bool)
    for runs in every:
        mask |= np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pack(_runs(mask))


def _runs(flat: np.ndarray) -> np.ndarray:
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(flat)]])
    runs = np.diff(edges)
    return np.concatenate([[0], runs]) if len(flat) and flat[0] else runs


def _polygon(xy: np.ndarray, h: int, w: int) -> np.ndarray:
    """COCO's `rleFrPoly`: run lengths of one polygon."""
    fine = 5.0
    x = (fine * xy[0::2] + 0.5).astype(np.int64)
    y = (fine * xy[1::2] + 0.5).astype(np.int64)
    x, y = np.append(x, x[0]), np.append(y, y[0])
    us, vs = [], []
    for xs, xe, ys, ye in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True):
        dx, dy = abs(int(xe - xs)), abs(int(ys - ye))
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, xe, ys, ye = xe, xs, ye, ys
        along = np.arange(max(dx, dy) + 1)
        if flip:
            along = along[::-1]
        if dx >= dy:
            slope = (ye - ys) / dx if dx else 0.0
            us.append(along + xs)
            vs.append((ys + slope * along + 0.5).astype(np.int64))
        else:
            slope = (xe - xs) / dy
            vs.append(along + ys)
            us.append((xs + slope * along + 0.5).astype(np.int64))
    u, v = np.concatenate(us), np.concatenate(vs)
    turned = np.flatnonzero(u[1:] != u[:-1]) + 1
    column = np.where(u[turned] < u[turned - 1], u[turned], u[turned] - 1)
    xd = (column + 0.5) / fine - 0.5
    keep = (np.floor(xd) == xd) & (xd >= 0) & (xd <= w - 1)
    row = np.minimum(v[turned], v[turned - 1])
    yd = np.ceil(np.clip((row + 0.5) / fine - 0.5, 0, h))
    at = (xd[keep] * h + yd[keep]).astype(np.int64)
    at, times = np.unique(at, return_counts=True)
    at = at[(times % 2 == 1) & (at < h * w)]  # two changes of sides at one place are none
    return np.diff(np.concatenate([[0], at, [h * w]]))
