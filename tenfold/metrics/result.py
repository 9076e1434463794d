"""What all metrics share: a result with its interval, resampling over images, and images that are left out.

A state is first `prepared`: its images are put in the order of their ids and everything that does not depend on which
images count is worked out once. A prepared metric then gives its values for any number of copies of each image. So
the bootstrap (Efron 1979: images drawn with replacement, percentiles of the values) never matches a box twice, the
same seed gives the same interval however states were merged, and two models can be compared on the same draws.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tenfold.errors import InputError

THREADS_FROM = 0.002  # seconds a draw from which handing it to another thread costs less than it gains


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; all three are equal where no bootstrap was asked for."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Values:
    """A metric for one weighing of the images: named values, the main one first, and [classes] of the main one."""

    named: Mapping[str, float]
    per_class: np.ndarray = field(repr=False)

    @property
    def main(self) -> float:
        """The value that the metric is known by."""
        return next(iter(self.named.values()))


@dataclass(frozen=True)
class Result:
    """A computed metric.

    Attributes:
        name: of the main value, such as "mIoU".
        value: main value, 0 to 1; NaN where nothing could be counted.
        low, high: 95 % bootstrap interval over images; both equal `value` without a bootstrap.
        images: number of images counted.
        resamples: number of bootstrap draws behind the intervals.
        per_class: [classes] main value of each class; NaN where a class has nothing to find.
        details: all named values, the main one among them.
    """

    name: str
    value: float
    low: float
    high: float
    images: int
    resamples: int
    per_class: np.ndarray = field(repr=False)
    details: Mapping[str, Interval] = field(repr=False)

    def as_dict(self, categories: Sequence[str] = ()) -> dict[str, Any]:
        """Ready for JSON (NaN becomes null); `per_class` by name where the names are given."""
        names = categories or [str(i) for i in range(len(self.per_class))]
        if len(names) != len(self.per_class):
            raise InputError(f"{len(names)} names for {len(self.per_class)} classes", "give one name a class")
        return {
            "metric": self.name,
            "value": _plain(self.value),
            "low": _plain(self.low),
            "high": _plain(self.high),
            "images": self.images,
            "resamples": self.resamples,
            "per_class": {n: _plain(v) for n, v in zip(names, self.per_class.tolist(), strict=True)},
            "details": {
                n: {"value": _plain(i.value), "low": _plain(i.low), "high": _plain(i.high)}
                for n, i in self.details.items()
            },
        }


class Prepared(Protocol):
    """A metric ready to be weighed."""

    @property
    def ids(self) -> np.ndarray:
        """[images] str, sorted, each once."""

    def at(self, counts: np.ndarray) -> Values:
        """The values when image i counts `counts[i]` times, [images] int64. Called from several threads."""


class Measured:
    """Base of all metric states: how a result is computed once a state can be prepared."""

    def prepared(self) -> Prepared:
        """Everything that does not depend on how often each image counts."""
        raise NotImplementedError

    def compute(self, *, bootstrap: int = 0, seed: int = 0, without: Collection[str] = ()) -> Result:
        """The metric over all images but those in `without`, with 95 % intervals from `bootstrap` resamples.

        Raises InputError where no image is left or one was added twice.
        """
        return summarise(self.prepared(), bootstrap, seed, without)


def keep(ids: np.ndarray, without: Collection[str]) -> np.ndarray:
    """[images] int64: 1 for images that count, 0 for those left out; raises InputError where none is left.

    Ids that the metric has not seen are no error: a list of near-duplicates may be of a larger set.
    """
    if isinstance(without, str):
        raise InputError(f"without is the text {without!r}", "give a list of image ids")
    kept = ~np.isin(ids, np.array(sorted(set(without)), dtype=str)) if without else np.ones(len(ids), bool)
    if not kept.any():
        raise InputError("no image is left to evaluate", "add at least one image that is not left out")
    return kept.astype(np.int64)


def draws(kept: np.ndarray, bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """`bootstrap` times [images] int64: how often each image is drawn; images with kept = 0 never are."""
    if bootstrap < 0:
        raise InputError(f"bootstrap is {bootstrap}", "give a number of resamples, or 0 for no interval")
    where = np.flatnonzero(kept)
    generator = np.random.default_rng(seed)
    for _ in range(bootstrap):
        yield np.bincount(where[generator.integers(0, len(where), len(where))], minlength=len(kept))


def weigh(prepared: Prepared, weighings: Iterator[np.ndarray]) -> list[Values]:
    """The values of each weighing, in order; on all cores where that pays (numpy leaves the interpreter's lock)."""
    start = time.perf_counter()
    results = [prepared.at(counts) for counts in itertools.islice(weighings, 2)]
    threads = min(8, len(os.sched_getaffinity(0)))
    if time.perf_counter() - start < 2 * THREADS_FROM or threads == 1:
        return results + [prepared.at(counts) for counts in weighings]
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Values]] = deque()
        for counts in weighings:  # a few at a time: each holds as many numbers as there are images
            pending.append(pool.submit(prepared.at, counts))
            if len(pending) > 2 * threads:
                results.append(pending.popleft().result())
        return results + [p.result() for p in pending]


def interval(value: float, sampled: Sequence[float]) -> Interval:
    """95 % percentile interval around a value; draws in which nothing could be counted (NaN) are left out."""
    known = np.asarray(sampled, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(value, value, value)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def summarise(prepared: Prepared, bootstrap: int, seed: int, without: Collection[str] = ()) -> Result:
    """A prepared metric's result; see `Measured.compute`."""
    kept = keep(prepared.ids, without)
    values = prepared.at(kept)
    sampled = weigh(prepared, draws(kept, bootstrap, seed))
    details = {name: interval(v, [s.named[name] for s in sampled]) for name, v in values.named.items()}
    name, main = next(iter(details.items()))
    return Result(name, main.value, main.low, main.high, int(kept.sum()), bootstrap, values.per_class, details)


def ordered(ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted ids [images] and place[i] of the i-th image added among them; raises InputError naming one added twice."""
    if not len(ids):
        raise InputError("nothing was added to the metric", "evaluate at least one image")
    names, place, times = np.unique(np.asarray(ids, dtype=str), return_inverse=True, return_counts=True)
    if (times > 1).any():
        raise InputError(
            f"image {names[times > 1][0]} was added {times.max()} times",
            "give each image to one rank and once only; a sampler that pads the last batch repeats images",
        )
    return names, place


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def mean(values: np.ndarray) -> float:
    """Mean of the values that are known (not NaN); NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
