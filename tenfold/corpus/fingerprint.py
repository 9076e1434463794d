"""Fingerprints: 704 bytes an image that survive resizing, JPEG, mirroring, small crops and colour shifts (D-14 to 16).

A fingerprint has two parts, both made from the picture's luminance at 32 x 32 (its aspect ratio is given up, so that a
crop is a shift and a stretch of each axis and nothing else):

    coarse  128 int8   where edges of which direction lie: 8 directions x 4 x 4 soft cells, over the inner 88 %
    fine    576 int8   24 x 24 picture with local brightness and contrast taken out

`coarse` finds candidates by a dot product; its cells are wide, so a shift of a few per cent changes it little, and the
square root of the edge's strength makes it indifferent to contrast. Only the inner part is kept, and a query looks at
it through two windows (a larger and a smaller one), mirrored and not: so it finds a picture that is a crop of it, and
one that it is a crop of. `fine` settles candidates: tenfold.corpus.match lays one picture on the other and correlates.

What differs from the hashes in the field (PHash, PDQ: signs of 64 or 256 global cosine coefficients): a crop of 5 % a
side changes most global coefficients, but moves an edge by a fifth of a cell. The price is 704 bytes instead of 8 or
32: 2 to 5 % of the image.

Up to the last step all arithmetic is on whole numbers below 2**24, which float32 holds exactly: the result does not
depend on the number of workers, the batch, or the order in which a BLAS adds.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import simplejpeg
from PIL import Image

from tenfold.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from tenfold.corpus.table import Corpus

VERSION = 1  # of the formula; fingerprints of different versions cannot be compared
GRID = 32  # luminance is sampled at GRID x GRID
CELLS, DIRECTIONS = 4, 8
COARSE = DIRECTIONS * CELLS * CELLS  # int8 values
FINE = 24  # side of the fine picture
BYTES = COARSE + FINE * FINE
COLUMN = "fingerprint"
INNER = 0.06  # what the stored coarse part leaves out on each side
WINDOWS = (0.10, 0.02)  # the same for queries: one to find crops of the query, one to find what it is a crop of

_DECODED = 64  # JPEGs are decoded at the smallest fraction with at least this many pixels on both sides
_CHUNK = 64  # pictures worked on at once: their edge maps (2 MB) stay in the cache
_STEP = 256.0  # int8 steps of a unit coarse vector's component
_FINE_STEP = 44.0  # int8 steps of one local standard deviation
_FLAT = 1.5  # below this standard deviation (of 255) a picture shows nothing that could be recognised


Given = TypeVar("Given")
Made = TypeVar("Made")

# --- from encoded bytes to luminance -------------------------------------------------------------------------------


def luminance(data: bytes) -> np.ndarray:
    """Luminance of an encoded picture at 32 x 32, uint8.

    JPEGs are decoded at a fraction of their size and without colour, which is most of the speed. The bytes are taken
    as a corpus stores them: upright, 8-bit, without alpha; pass others through `pictures.normalise` first. Raises
    InputError for what cannot be decoded.
    """
    try:
        if data[:2] == b"\xff\xd8":
            try:
                grey = simplejpeg.decode_jpeg(
                    data, "GRAY", fastdct=True, fastupsample=True, min_height=_DECODED, min_width=_DECODED
                )
                picture = Image.fromarray(grey[:, :, 0])
            except ValueError:  # CMYK, or stray bytes that Pillow skips
                picture = Image.open(io.BytesIO(data)).convert("L")
        else:
            picture = Image.open(io.BytesIO(data)).convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"a picture cannot be decoded: {error}", "ingest it, which sets damaged files aside") from None
    return _sample(picture)


def luminance_of_pixels(pixels: np.ndarray) -> np.ndarray:
    """Luminance at 32 x 32, uint8, of decoded pixels [h, w, 3] or [h, w], uint8."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InputError(f"pixels are {pixels.dtype} {pixels.shape}", "pass uint8 [h, w, 3] or [h, w]")
    return _sample(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))


def _sample(picture: Image.Image) -> np.ndarray:
    if picture.size != (GRID, GRID):
        picture = picture.resize((GRID, GRID), Image.Resampling.HAMMING)
    return np.asarray(picture, np.uint8)


# --- from luminance to a fingerprint -------------------------------------------------------------------------------


def _windows() -> dict[float, np.ndarray]:
    """For each window the whole-numbered weights [CELLS, GRID] of the pixels in its soft cells."""
    found = {}
    for cut in (INNER, *WINDOWS):
        at = ((np.arange(GRID) + 0.5) / GRID - cut) / (1 - 2 * cut) * CELLS - 0.5
        weights = np.maximum(0.0, 1.0 - np.abs(at - np.arange(CELLS)[:, None]))
        found[cut] = np.rint(16 * weights).astype(np.float32)
    return found


_WINDOW = _windows()
_HALF = np.float32(np.sqrt(0.5))


def _edges(grids: np.ndarray) -> np.ndarray:
    """Whole-numbered strength of edges [n, DIRECTIONS, GRID, GRID] of luminance [n, GRID, GRID], uint8."""
    g = np.pad(grids, ((0, 0), (1, 1), (1, 1)), mode="edge").astype(np.float32)
    g = g[:, :-2] + 2 * g[:, 1:-1] + g[:, 2:]
    g = g[:, :, :-2] + 2 * g[:, :, 1:-1] + g[:, :, 2:]
    g = np.pad(g, ((0, 0), (1, 1), (1, 1)), mode="edge")
    x = g[:, 1:-1, 2:] - g[:, 1:-1, :-2]
    y = g[:, 2:, 1:-1] - g[:, :-2, 1:-1]
    square = x * x + y * y
    # Strength**0.5 shared out by cos**4 of the angle to each direction: projection**4 / strength**3.5, twofold.
    strength = np.maximum(np.sqrt(square), np.float32(1))
    scale = np.float32(2) * np.sqrt(strength)
    along = np.empty((len(grids), DIRECTIONS, GRID, GRID), np.float32)
    for i, projection in enumerate((x, (x + y) * _HALF, y, (y - x) * _HALF)):
        projection = projection / strength
        for half, part in ((i, np.maximum(projection, 0)), (i + 4, np.minimum(projection, 0))):
            part *= part
            part *= part
            part *= scale
            np.rint(part, out=along[:, half])
    return along


def _coarse(edges: np.ndarray, cut: float) -> np.ndarray:
    """Unit vectors [n, COARSE], float32: the edges summed over soft cells, less their mean; zero for none."""
    weights = _WINDOW[cut]
    cells = weights @ edges @ weights.T
    flat = cells.reshape(len(edges), COARSE).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    norm = np.sqrt((flat * flat).sum(axis=1, keepdims=True))
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0).astype(np.float32)


def mirror_coarse(coarse: np.ndarray) -> np.ndarray:
    """The coarse part [n, COARSE] of the mirrored picture: cells in reverse, x-directions turned round."""
    cells = coarse.reshape(-1, DIRECTIONS, CELLS, CELLS)
    turned = (DIRECTIONS // 2 - np.arange(DIRECTIONS)) % DIRECTIONS
    return np.ascontiguousarray(cells[:, turned, :, ::-1]).reshape(coarse.shape)


def smoothing(size: int, sigma: float) -> np.ndarray:
    """Gaussian [size, size] with the border repeated, as a matrix."""
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma * sigma))
    matrix = np.zeros((size, size))
    for i in range(size):
        for offset, weight in zip(range(-reach, reach + 1), kernel / kernel.sum(), strict=True):
            matrix[i, min(size - 1, max(0, i + offset))] += weight
    return matrix


def _averaging(size: int, into: int) -> np.ndarray:
    """Mean over areas [into, size] as a matrix."""
    edges = np.arange(into + 1) * size / into
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) * into / size


_SMALL = smoothing(FINE, 0.45) @ _averaging(GRID, FINE)
_MEAN, _SPREAD = smoothing(FINE, 1.7), smoothing(FINE, 2.0)


def _fine(grids: np.ndarray) -> np.ndarray:
    """Pictures [n, FINE, FINE], int8, of luminance [n, GRID, GRID]: less the local mean, over the local spread."""
    small = _SMALL @ grids.astype(np.float64) @ _SMALL.T
    detail = small - _MEAN @ small @ _MEAN.T
    square = detail * detail
    local = np.sqrt(np.maximum(_SPREAD @ square @ _SPREAD.T, 0))
    whole = np.sqrt(square.mean(axis=(1, 2), keepdims=True))
    detail /= local + 0.3 * whole + 1e-3
    return np.clip(np.rint(detail * _FINE_STEP), -127, 127).astype(np.int8)


def _is_flat(grids: np.ndarray) -> np.ndarray:
    return grids.reshape(len(grids), -1).std(axis=1) < _FLAT


def fingerprints(grids: np.ndarray) -> np.ndarray:
    """Fingerprints [n, BYTES], int8, of luminance [n, 32, 32], uint8. All zeros where a picture shows nothing."""
    out = np.empty((len(grids), BYTES), np.int8)
    for start in range(0, len(grids), _CHUNK):
        part = grids[start : start + _CHUNK]
        into = out[start : start + _CHUNK]
        coarse = _coarse(_edges(part), INNER)
        into[:, :COARSE] = np.clip(np.rint(coarse * _STEP), -127, 127)
        into[:, COARSE:] = _fine(part).reshape(len(part), -1)
        into[_is_flat(part)] = 0
    return out


def views(grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a query is compared by: coarse vectors [len(WINDOWS), n, COARSE], float32, and pictures [n, FINE, FINE]."""
    coarse = np.empty((len(WINDOWS), len(grids), COARSE), np.float32)
    fine = np.empty((len(grids), FINE, FINE), np.int8)
    for start in range(0, len(grids), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(grids)))
        edges = _edges(grids[part])
        flat = _is_flat(grids[part])
        for i, cut in enumerate(WINDOWS):
            coarse[i, part] = _coarse(edges, cut)
            coarse[i, part][flat] = 0
        fine[part] = _fine(grids[part])
        fine[part][flat] = 0
    return coarse, fine


def split(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coarse vectors of about unit length [n, COARSE], float32, and pictures [n, FINE, FINE], int8."""
    coarse = prints[:, :COARSE].astype(np.float32)
    coarse *= np.float32(1 / _STEP)
    return coarse, prints[:, COARSE:].reshape(-1, FINE, FINE)


# --- many pictures, all cores ----------------------------------------------------------------------------------------


def _silent(_: float) -> None:
    """No progress bar."""


def in_order(work: Callable[[Given], Made], parts: Iterable[Given], workers: int | None = None) -> Iterator[Made]:
    """Results of `work` on each part, in order, on `workers` threads (all cores); few parts are in memory at once."""
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        yield from map(work, parts)
        return
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(work, part))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _cut(images: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))


def _luminances(images: Sequence[bytes]) -> np.ndarray:
    grids = np.empty((len(images), GRID, GRID), np.uint8)
    for i, data in enumerate(images):
        grids[i] = luminance(data)
    return grids


def luminances(images: Sequence[bytes], workers: int | None = None) -> np.ndarray:
    """Luminance [n, 32, 32] of encoded pictures on `workers` threads (all cores): decoders let go of the GIL."""
    parts = list(in_order(_luminances, _cut(images), workers))
    return np.concatenate(parts) if parts else np.empty((0, GRID, GRID), np.uint8)


def compute(images: Sequence[bytes], workers: int | None = None) -> np.ndarray:
    """Fingerprints [n, BYTES], int8, of encoded pictures (as `luminance` takes them) on `workers` threads."""
    parts = list(in_order(lambda part: fingerprints(_luminances(part)), _cut(images), workers))
    return np.concatenate(parts) if parts else np.empty((0, BYTES), np.int8)


# --- the column of a corpus ------------------------------------------------------------------------------------------


def has_fingerprints(corpus: Corpus) -> bool:
    """Whether this state of a corpus has fingerprints of this version."""
    field = corpus.images.schema.field(COLUMN) if COLUMN in corpus.images.schema.names else None
    return field is not None and (field.metadata or {}).get(b"version") == str(VERSION).encode()


def add_fingerprints(corpus: Corpus, *, tag: str = "gated", bar: Callable[[float], None] = _silent) -> Corpus:
    """The corpus with a column of fingerprints, as a new state; the same corpus where it has them already.

    Streams through the images once and writes nothing but the column. The digest stays, for it is of ids and labels.
    """
    import pyarrow as pa

    if has_fingerprints(corpus):
        return corpus
    field = pa.field(COLUMN, pa.list_(pa.int8(), BYTES), nullable=False, metadata={"version": str(VERSION)})

    def change(batch: pa.RecordBatch) -> pa.RecordBatch:
        prints = compute(batch["image"].to_pylist())
        bar(batch.num_rows)
        values = pa.FixedSizeListArray.from_arrays(pa.array(prints.reshape(-1)), BYTES)
        return pa.RecordBatch.from_arrays([values], schema=pa.schema([field]))

    return corpus.rewrite(
        tag, ["image"], change, recipe={"verb": "corpus fingerprint", "version": VERSION, "bytes": BYTES}
    )


def stored(corpus: Corpus, *, stop: int | None = None, rows: int = 8192) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """(first row, ids, fingerprints [n, BYTES]) block by block in rank order, up to row `stop`.

    Read from the column where the state has it, else made from the images on the way.
    """
    column = COLUMN if has_fingerprints(corpus) else "image"
    first = 0
    for batch in corpus.batches(["id", column], stop, rows if column == COLUMN else 1024):
        if column == COLUMN:
            prints = batch[COLUMN].flatten().to_numpy(zero_copy_only=False).reshape(-1, BYTES)
        else:
            prints = compute(batch["image"].to_pylist())
        yield first, batch["id"].to_pylist(), prints
        first += batch.num_rows
