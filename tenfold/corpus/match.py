"""Near-duplicates by fingerprint: candidates by dot product, then one picture is laid on the other and correlated.

    queries = Queries.of(grids)               # luminance of the test images: fingerprint.luminances
    hits = queries.search(prints, first)      # fingerprints of corpus rows first, first + 1, …: an array of HIT

Cost of q test images against a corpus of n: 4 q n dot products of 128 numbers (two windows, mirrored and not), which is
0.5 TFLOP for 10,000 x 50,000 and 3 PFLOP for 10,000 x 300 million; then 25 microseconds of a core for each candidate,
of which there are 1 to 16 in 10,000 pairs. Memory: 4.5 kB a test image and one block of the corpus, read once.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tenfold.corpus.fingerprint import FINE, INNER, WINDOWS, mirror_coarse, smoothing, split, views

CANDIDATE = 0.70  # least dot product of coarse vectors that is worth a closer look
THRESHOLD = 0.15  # distance up to which a pair counts as near-duplicates; docs/gate.md says what it costs and finds
FARTHEST = 0.35  # distances above are not exact: such pairs are given up early
BLOCK = 8192  # corpus rows searched at once

HIT = np.dtype([("query", np.int64), ("row", np.int64), ("distance", np.float32), ("mirrored", np.bool_)])

_CROWD = 1024  # candidates a query may have in a block: thousands of nearly blank pictures are not worth hours
_TILE = 512  # queries multiplied at once: tile x block float32 is 16 MB
_CHUNK = 256  # candidates aligned at once: about 2 MB, which stays in the cache
# Gauss-Newton steps, and the correlation below which a pair is given up after them: twice at half resolution, then at
# full. Of 1,000 near-duplicates at most 5 have less; of candidates that are strangers, 65 % and 75 % have.
_STAGES = ((1, 0.55), (2, 0.62), (4, -1.0))
_REACH = 0.16  # of the side: how far an edge of one picture may lie inside or outside the other


@dataclass(frozen=True)
class Queries:
    """Test images, ready to be searched for.

    Attributes:
        coarse: float32 [windows, mirrored, n, 128].
        fine: int8 [mirrored, n, 24, 24].
    """

    coarse: np.ndarray
    fine: np.ndarray

    @classmethod
    def of(cls, grids: np.ndarray) -> Queries:
        """From luminance [n, 32, 32], uint8."""
        coarse, fine = views(grids)
        mirrored = np.stack([mirror_coarse(window) for window in coarse])
        return cls(np.stack([coarse, mirrored], axis=1), np.stack([fine, fine[:, :, ::-1]]))

    def __len__(self) -> int:
        return self.fine.shape[1]

    def search(
        self, prints: np.ndarray, first: int = 0, threshold: float = THRESHOLD, workers: int | None = None
    ) -> np.ndarray:
        """Pairs at most `threshold` apart, as an array of HIT ordered by (query, row); each pair once.

        Args:
            prints: fingerprints [n, BYTES] of the corpus rows `first`, `first` + 1, ….
            first: row of the first one.
            threshold: largest distance, at most FARTHEST.
            workers: threads; all cores by default. The result does not depend on it.
        """
        coarse, fine = split(prints)
        turned = np.ascontiguousarray(coarse.T)

        def tile(start: int) -> np.ndarray:
            pairs = self._candidates(turned, start, min(start + _TILE, len(self)))
            distance = self.distances(pairs, coarse, fine)
            near = distance <= threshold
            out = np.empty(int(near.sum()), HIT)
            for name, column in zip(HIT.names or (), (*pairs[near].T[:2], distance[near], pairs[near, 2]), strict=True):
                out[name] = column
            # A picture that is its own mirror image is found both ways: the nearer one counts.
            out = out[np.lexsort((out["mirrored"], out["distance"], out["row"], out["query"]))]
            again = (np.diff(out["query"], prepend=-1) == 0) & (np.diff(out["row"], prepend=-1) == 0)
            out["row"] += first
            return out[~again]

        with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
            return np.concatenate([np.empty(0, HIT), *pool.map(tile, range(0, len(self), _TILE))])

    def _candidates(self, turned: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Pairs [k, 3] (query, row, mirrored) of queries start to stop whose coarse vectors [128, n] agree enough."""
        found = []
        for side in (0, 1):
            best = self.coarse[0, side, start:stop] @ turned
            for window in range(1, len(self.coarse)):
                np.maximum(best, self.coarse[window, side, start:stop] @ turned, out=best)
            query, row = np.divmod(np.flatnonzero(best >= CANDIDATE), turned.shape[1])
            if len(query) > _CROWD and np.bincount(query).max() > _CROWD:
                query, row = _thin(query, row, best[query, row])
            found.append(np.stack([query + start, row, np.full_like(query, side)], axis=1))
        return np.concatenate(found)

    def distances(self, pairs: np.ndarray, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
        """Distance of pairs [k, 3] (query, row, mirrored): 1 - correlation of what both show, once aligned.

        0 for the same picture, about 1 for strangers; above FARTHEST only an estimate.
        """
        out = np.empty(len(pairs), np.float32)
        for first in range(0, len(pairs), _CHUNK):
            query, row, side = pairs[first : first + _CHUNK].T
            other = coarse[row]
            agree = np.stack([(window[side, query] * other).sum(axis=1) for window in self.coarse])
            start = _STARTS[agree.argmax(axis=0)]
            out[first : first + _CHUNK] = 1 - correlation(self.fine[side, query], fine[row], start)
        return out


def _thin(query: np.ndarray, row: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The _CROWD best candidates of each query, in order of (query, row)."""
    order = np.lexsort((row, -score, query))
    starts = np.flatnonzero(np.diff(query[order], prepend=-1))
    nth = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    kept = np.sort(order[nth < _CROWD])
    return query[kept], row[kept]


def _starts() -> np.ndarray:
    """For each query window where the query's edges (x0, x1, y0, y1) lie in the corpus picture if it fits exactly."""
    cuts = [INNER - cut / (1 - 2 * cut) * (1 - 2 * INNER) for cut in WINDOWS]
    return np.array([(cut, 1 - cut, cut, 1 - cut) for cut in cuts], np.float32)


_STARTS = _starts()
_HALVING = (smoothing(FINE // 2, 0.6) @ np.kron(np.eye(FINE // 2), [0.5, 0.5])).astype(np.float32)


def correlation(a: np.ndarray, b: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Correlation of pictures `a` and `b` [n, 24, 24], int8, after laying `a` on `b`.

    Args:
        window: [n, 4] where the edges (x0, x1, y0, y1) of `a` lie in `b` at the beginning, as fractions of its side.

    The best shift and stretch of each axis is found by Gauss-Newton on `a`'s gradient (inverse compositional: the
    Hessian is made once), first at half resolution. Only the part that both show is correlated.
    """
    x, y = a.astype(np.float32), b.astype(np.float32)
    half_x, half_y = _HALVING @ x @ _HALVING.T, _HALVING @ y @ _HALVING.T
    best = np.full(len(a), -1, np.float32)
    going = np.arange(len(a))
    for stage, (steps, least) in enumerate(_STAGES):
        left, right = (x, y) if stage == len(_STAGES) - 1 else (half_x, half_y)
        best[going], window = _align(left[going], right[going], window, steps)
        still = best[going] >= least
        going, window = going[still], window[still]
    return best


def _sampling(low: np.ndarray, high: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation [n, size, size] at `size` places between low and high, and which lie inside [n, size]."""
    pixel = np.arange(size, dtype=np.float32)
    place = (low[:, None] + (high - low)[:, None] * ((pixel + 0.5) / size)) * size - 0.5
    inside = (place > -0.3) & (place < size - 0.7)
    weights = place[:, :, None] - pixel
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    np.maximum(weights, 0, out=weights)
    weights *= inside[:, :, None]
    return weights, inside


def _align(a: np.ndarray, b: np.ndarray, window: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Best correlation [n] and its window [n, 4] on the way of `steps` Gauss-Newton steps from `window`."""
    n, size = a.shape[:2]
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size
    slopes = np.zeros((n, 4, size, size), np.float32)  # of a, when its edges x0, x1, y0, y1 move
    across = (a[:, :, 2:] - a[:, :, :-2]) * (size / 2)
    down = (a[:, 2:] - a[:, :-2]) * (size / 2)
    np.multiply(across, 1 - centre[1:-1], out=slopes[:, 0, :, 1:-1])
    np.multiply(across, centre[1:-1], out=slopes[:, 1, :, 1:-1])
    np.multiply(down, (1 - centre[1:-1])[:, None], out=slopes[:, 2, 1:-1])
    np.multiply(down, centre[1:-1, None], out=slopes[:, 3, 1:-1])
    slope = slopes.reshape(n, 4, size * size)
    hessian = slope @ slope.transpose(0, 2, 1)
    hessian += np.eye(4, dtype=np.float32) * (0.01 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] + 1e-3)
    inverse = np.linalg.inv(hessian)
    best, kept = np.full(n, -1, np.float32), window
    low = np.array([-_REACH, 1 - _REACH] * 2, np.float32)
    for step in range(steps + 1):
        columns, in_columns = _sampling(window[:, 0], window[:, 1], size)
        rows, in_rows = _sampling(window[:, 2], window[:, 3], size)
        seen = (rows @ b @ columns.transpose(0, 2, 1)).reshape(n, size * size, 1)
        mine = (a * (in_rows[:, :, None] & in_columns[:, None])).reshape(n, 1, size * size)
        both = (mine @ seen)[:, 0, 0]
        aa = (mine @ mine.transpose(0, 2, 1))[:, 0, 0]
        bb = (seen.transpose(0, 2, 1) @ seen)[:, 0, 0]
        r = both / np.sqrt(np.maximum(aa * bb, 1e-6))
        better = r > best
        best = np.where(better, r, best)
        kept = np.where(better[:, None], window, kept)
        if step < steps:
            gain = aa / np.maximum(both, 0.05 * aa + 1e-6)
            error = seen * gain[:, None, None]
            error -= mine.transpose(0, 2, 1)
            move = np.clip((inverse @ (slope @ error))[:, :, 0], -0.08, 0.08)
            window = np.clip(_compose(window, move), low, low + np.float32(2 * _REACH))
    return np.minimum(best, 1), kept


def _compose(window: np.ndarray, move: np.ndarray) -> np.ndarray:
    """The window after the edges of `a` were moved by -`move` inside it."""
    low, high = window[:, 0::2], window[:, 1::2]
    shift = move[:, 0::2]
    stretch = 1 + move[:, 1::2] - shift
    out = np.empty_like(window)
    out[:, 0::2] = low - (high - low) * shift / stretch
    out[:, 1::2] = low + (high - low) * (1 - shift) / stretch
    return out
