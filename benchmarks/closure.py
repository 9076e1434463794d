"""Closing a million rows of labels under 18,291 classes (D-03, D-05, D-10), against pandas explode + merge + groupby.

Both sides run in a fresh process, get the same ragged labels in memory (a pandas frame with a list column for the
peer) and leave every (row, class, votes) in order. The peer may keep its result in long form, as a pandas user would:
folding it back into lists takes pandas longer than everything before, and is not counted against it. The first round
checks that both results are equal. Memory is the growth of the peak over the inputs, the result included.
"""

from __future__ import annotations

import hashlib
import time

import numpy as np

from benchmarks import harness
from tenfold.corpus.hierarchy import Hierarchy, close_labels, jft_like

ROWS = 1_000_000


def inputs(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, labels and votes of `rows` rows with 1 to 5 distinct labels each, drawn from a Zipf-like tail."""
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(1, 6, rows))])
    order = random.permutation(18_291)
    first = (18_291 ** random.random(rows)).astype(np.int64) - 1
    row = np.repeat(np.arange(rows), np.diff(offsets))
    nth = np.arange(len(row)) - offsets[row]
    labels = order[(first[row] + nth * 37) % 18_291].astype(np.int32)
    return offsets, labels, random.integers(1, 4, len(labels)).astype(np.float32)


def _digest(row: np.ndarray, label: np.ndarray, votes: np.ndarray) -> float:
    state = hashlib.sha256()
    for array, kind in ((row, "<i4"), (label, "<i4"), (votes, "<f4")):
        for start in range(0, len(array), 1 << 20):
            state.update(array[start : start + (1 << 20)].astype(kind).tobytes())
    return float(int.from_bytes(state.digest()[:6], "big"))


def _ours(rows: int, compare: bool) -> harness.Values:
    offsets, labels, votes = inputs(rows)
    hierarchy = Hierarchy.of(jft_like())
    harness.mark_start()
    start = time.perf_counter()
    ends, closed, sums = close_labels(offsets, labels, votes, hierarchy)
    seconds = time.perf_counter() - start
    values = {"seconds": seconds, "labels_out": float(len(closed))}
    if compare:
        values["result"] = _digest(np.repeat(np.arange(rows), np.diff(ends)), closed, sums)
    return values


def _pandas(rows: int, compare: bool) -> harness.Values:
    import pandas

    offsets, labels, votes = inputs(rows)
    hierarchy = Hierarchy.of(jft_like())
    lineage = pandas.DataFrame(
        {
            "label": np.repeat(np.arange(18_291, dtype=np.int32), np.diff(hierarchy.offsets)),
            "ancestor": hierarchy.lineage,
        }
    )
    frame = pandas.DataFrame(
        {
            "row": np.arange(rows, dtype=np.int32),
            "label": np.split(labels, offsets[1:-1]),
            "votes": np.split(votes, offsets[1:-1]),
        }
    )
    del offsets, labels, votes
    harness.mark_start()
    start = time.perf_counter()
    long = frame.explode(["label", "votes"]).astype({"label": "int32", "votes": "float32"})
    merged = long.merge(lineage, on="label")[["row", "ancestor", "votes"]]
    result = merged.groupby(["row", "ancestor"], as_index=False)["votes"].sum()
    seconds = time.perf_counter() - start
    values = {"seconds": seconds, "labels_out": float(len(result))}
    if compare:
        values["result"] = _digest(result["row"].values, result["ancestor"].values, result["votes"].values)
    return values


def benchmark(scale: float) -> harness.Benchmark:
    """1M rows at scale 1."""
    rows = max(1, int(ROWS * scale))
    results: dict[str, float] = {}

    def side(name: str) -> harness.Values:
        function = _ours if name == "tenfold" else _pandas
        compare = name not in results  # hashing costs memory of its own, so only in the uncounted round
        values = harness.in_child(function, rows, compare)
        if compare:
            results[name] = values.pop("result")
            if len(set(results.values())) > 1:
                raise RuntimeError("tenfold and pandas closed the same labels differently")
        return values

    def limit() -> str:
        data = np.ones(64 << 20, np.uint8)
        start = time.perf_counter()
        data.copy()
        rate = 2 * data.nbytes / (time.perf_counter() - start)
        written = side("tenfold")["labels_out"] * 8
        return f"{written / 1e6:,.0f} MB of labels and votes to write; at {rate / 1e9:.1f} GB/s {written / rate:.3f} s"

    return harness.Benchmark(
        what=f"close {rows:,} rows of 1 to 5 labels under 18,291 classes, depth 12",
        sides={"tenfold": lambda: side("tenfold"), "pandas": lambda: side("pandas")},
        ratios=[
            harness.Ratio("time", "seconds", "lower", aim=5),
            harness.Ratio("memory", "peak_bytes", "lower", aim=3),
        ],
        limits={"memory bandwidth": limit},
    )
