"""Is one model better than another, and do near-duplicates matter? Differences with intervals, on the same images.

Two models see the same images, so their values rise and fall together when images are drawn anew; the interval of the
difference from paired draws is far narrower than two separate intervals suggest. The same holds for one model with
and without some of its images: the paper removed near-duplicates from test sets and found no significant difference
(D-16); `with_and_without` asks that of any metric, with the image ids that the gate reports.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold.errors import InputError
from tenfold.metrics import result

RESAMPLES = 1000


@dataclass(frozen=True)
class Comparison:
    """One metric of two sides that are judged on the same draws of the images.

    Attributes:
        first, second: results of both sides.
        difference: of the main value, second minus first, with its 95 % interval.
        details: the same for all named values.
        per_class: [classes] difference of each class; NaN where a class has nothing to find.
        better: share of draws in which the second side is better (equal counts half); 0.5 without draws.
    """

    first: result.Result
    second: result.Result
    difference: result.Interval
    details: dict[str, result.Interval]
    per_class: np.ndarray
    better: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0 (two-sided, 5 %); False without resamples."""
        known = self.first.resamples > 0 and not np.isnan(self.difference.value)
        return known and (self.difference.low > 0 or self.difference.high < 0)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        d = self.difference
        numbers = {"value": d.value, "low": d.low, "high": d.high}
        return {
            "first": self.first.as_dict(),
            "second": self.second.as_dict(),
            "difference": {k: None if np.isnan(v) else v for k, v in numbers.items()},
            "better": self.better,
            "significant": self.significant,
        }


def paired(
    first: result.Measured,
    second: result.Measured,
    *,
    bootstrap: int = RESAMPLES,
    seed: int = 0,
    without: Collection[str] = (),
) -> Comparison:
    """Compare two models' states of the same metric, over the same images but those in `without`.

    Raises InputError naming an image that only one of them has seen, or where the metrics differ.
    """
    a, b = first.prepared(), second.prepared()
    if len(a.ids) != len(b.ids) or (a.ids != b.ids).any():
        lone = sorted(set(a.ids.tolist()) ^ set(b.ids.tolist()))
        raise InputError(
            f"{len(lone)} images were seen by one side only, {lone[0]} among them", "evaluate both on the same images"
        )
    kept = result.keep(a.ids, without)
    sides = _Sides(a.ids, a, b, None)
    return _compare(sides, kept, int(kept.sum()), int(kept.sum()), bootstrap, seed)


def with_and_without(
    state: result.Measured, ids: Collection[str], *, bootstrap: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """A metric over all images (first) and over those not in `ids` (second), such as the gate's near-duplicates (D-16).

    Both sides share the draws of all images; `images` of the second result says how many remain.
    Raises InputError where none does.
    """
    prepared = state.prepared()
    kept = result.keep(prepared.ids, ids)
    every = np.ones(len(kept), np.int64)
    return _compare(_Sides(prepared.ids, prepared, prepared, kept), every, len(kept), int(kept.sum()), bootstrap, seed)


@dataclass(frozen=True)
class _Sides:
    """Both sides as one metric, so that both are weighed by the same draws."""

    ids: np.ndarray
    first: result.Prepared
    second: result.Prepared
    mask: np.ndarray | None  # images that the second side counts

    def pair(self, counts: np.ndarray) -> tuple[result.Values, result.Values]:
        other = counts if self.mask is None else counts * self.mask
        first = self.first.at(counts)
        if not other.any():  # every image of a draw is one that is left out
            nothing = {name: float("nan") for name in first.named}
            return first, result.Values(nothing, np.full_like(first.per_class, np.nan))
        return first, self.second.at(other)

    def at(self, counts: np.ndarray) -> result.Values:
        """Values of the first side as `0 name`, of the second as `1 name`."""
        first, second = self.pair(counts)
        if list(first.named) != list(second.named) or len(first.per_class) != len(second.per_class):
            raise InputError(
                f"the sides measure {', '.join(first.named)} of {len(first.per_class)} classes and "
                f"{', '.join(second.named)} of {len(second.per_class)}",
                "compare the same metric of the same dataset",
            )
        named = {f"{k} {n}": v for k, side in enumerate((first, second)) for n, v in side.named.items()}
        return result.Values(named, np.stack([first.per_class, second.per_class]))


def _compare(
    sides: _Sides, kept: np.ndarray, first_images: int, second_images: int, bootstrap: int, seed: int
) -> Comparison:
    values = sides.at(kept)
    sampled = result.weigh(sides, result.draws(kept, bootstrap, seed))
    names = [name[2:] for name in values.named if name.startswith("0 ")]
    both, difference = [], {}
    for side, images in ((0, first_images), (1, second_images)):
        key = {n: f"{side} {n}" for n in names}
        details = {n: result.interval(values.named[k], [s.named[k] for s in sampled]) for n, k in key.items()}
        main = details[names[0]]
        both.append(
            result.Result(names[0], main.value, main.low, main.high, images, bootstrap, values.per_class[side], details)
        )
    for n in names:
        gaps = [s.named[f"1 {n}"] - s.named[f"0 {n}"] for s in sampled]
        difference[n] = result.interval(values.named[f"1 {n}"] - values.named[f"0 {n}"], gaps)
    main_gaps = np.array([s.named[f"1 {names[0]}"] - s.named[f"0 {names[0]}"] for s in sampled])
    known = main_gaps[~np.isnan(main_gaps)]
    better = float(((known > 0) + 0.5 * (known == 0)).mean()) if len(known) else 0.5
    gap = values.per_class[1] - values.per_class[0]
    return Comparison(both[0], both[1], difference[names[0]], difference, gap, better)
