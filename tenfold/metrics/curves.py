"""Interpolated average precision of many ranked lists at once, for any number of copies of each image.

The lists (one for each class, threshold and range of sizes) lie one behind the other. Interpolated precision at a
recall is the best precision at that recall or any higher one, so it changes at true positives only: everything is
worked out there, and false positives are only counted. Drawing an image c times puts c copies of each of its
detections next to each other in the list; between them lie only points of lower recall and lower precision (copies of
a true positive) or of equal recall (copies of a false one), so a weight of c gives the same curve as c copies.
"""

from __future__ import annotations

import numpy as np


def envelope(precision: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Best precision from each point to the end of its list.

    Args:
        precision: [m] in 0 to 1.
        lists: [m] non-decreasing number of the list that each point belongs to.
    """
    if not len(precision):
        return precision
    # One running maximum from the end serves all lists: each stands 2 higher than the one behind it. The offset costs
    # at most 1e-11 of precision for 50,000 lists.
    offset = 2.0 * (lists[-1] - lists)
    return np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset


def interpolated(
    found: np.ndarray, seen: np.ndarray, lists: np.ndarray, positives: np.ndarray, recalls: np.ndarray
) -> np.ndarray:
    """Mean interpolated precision at the given recalls, for every list.

    Args:
        found, seen: [m] at each true positive, in order of rank: weight of true positives, and of all that was
            retrieved, up to and including it.
        lists: [m] non-decreasing list numbers.
        positives: [lists] weight of what there is to find.
        recalls: [r] rising recall thresholds.
    Returns: [lists] float64; NaN where there is nothing to find.
    """
    recall = found / np.maximum(positives[lists], 1e-300)
    precision = np.divide(found, seen, out=np.zeros(len(found)), where=seen > 0)
    # A threshold takes the first point that reaches it; so a point serves the thresholds between the last point's
    # recall and its own. Points of weight 0 serve none, but the first would serve the threshold 0: it may, since the
    # best precision from there on is the same.
    reached = np.searchsorted(recalls, recall, side="right")
    served = np.diff(reached, prepend=0)
    if len(lists):
        starts = np.flatnonzero(np.append(True, lists[1:] != lists[:-1]))
        served[starts] = reached[starts]
    area = np.bincount(lists, weights=served * envelope(precision, lists), minlength=len(positives))
    return np.where(positives > 0, area / len(recalls), np.nan)


def area(found: np.ndarray, seen: np.ndarray, lists: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Area under the interpolated curve, exactly (every step of recall); arguments and result as in `interpolated`."""
    precision = np.divide(found, seen, out=np.zeros(len(found)), where=seen > 0)
    gained = np.diff(found, prepend=0.0)
    if len(lists):
        starts = np.flatnonzero(np.append(True, lists[1:] != lists[:-1]))
        gained[starts] = found[starts]
    total = np.bincount(lists, weights=gained * envelope(precision, lists), minlength=len(positives))
    return np.divide(total, positives, out=np.full(len(positives), np.nan), where=positives > 0)


def running(weights: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Running sum of [m] weights that starts anew with every list ([m] non-decreasing list numbers)."""
    if not len(weights):
        return np.zeros(0)
    total = np.cumsum(weights, dtype=np.float64)
    starts = np.flatnonzero(np.append(True, lists[1:] != lists[:-1]))
    before = np.append(0.0, total)[starts]
    return total - np.repeat(before, np.diff(np.append(starts, len(lists))))
