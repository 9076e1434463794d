"""The measuring: interleaved rounds, medians with spread, ratios against the best peer, the limit beside them."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Values = dict[str, float]


@dataclass(frozen=True)
class Ratio:
    """One ratio to print: `metric` of ours against the best peer (or against `peer`), never below 1 when we are better.

    Attributes:
        name: short name, also the key in floors.toml.
        metric: key in the dictionaries that sides return.
        better: whether higher or lower values are better.
        aim: the ratio that the project aims for.
        peer: name of the one side compared with; the best of all peers by default.
    """

    name: str
    metric: str
    better: Literal["higher", "lower"]
    aim: float
    peer: str = ""


@dataclass(frozen=True)
class Benchmark:
    """What to measure.

    Attributes:
        what: one sentence for people.
        sides: name -> a function that does the whole work once and returns metrics; the first side is ours.
        ratios: what is compared.
        limits: name -> sentence that states the physical limit next to the result (decode rate, memory bandwidth).
        close: called at the end (remove temporary files).
    """

    what: str
    sides: dict[str, Callable[[], Values]]
    ratios: list[Ratio]
    limits: dict[str, Callable[[], str]] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


def run(bench: Benchmark, rounds: int, note: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run all sides interleaved, `rounds` times after one uncounted round; order reverses every round.

    Returns a JSON-ready dictionary: `sides` (metric -> median, min, max), `ratios` (of the paired rounds: median,
    min, max, aim, met), `limits`.
    """
    seen: dict[str, list[Values]] = {name: [] for name in bench.sides}
    try:
        for round_ in range(rounds + 1):
            names = list(bench.sides)
            for name in names if round_ % 2 else names[::-1]:
                start = time.perf_counter()
                values = bench.sides[name]()
                values.setdefault("seconds", time.perf_counter() - start)
                note(f"round {round_}/{rounds} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
                if round_:
                    seen[name].append(values)
        limits = {name: state() for name, state in bench.limits.items()}
    finally:
        bench.close()
    sides = {
        name: {metric: _spread([v[metric] for v in values]) for metric in values[0]} for name, values in seen.items()
    }
    return {
        "what": bench.what,
        "rounds": rounds,
        "sides": sides,
        "ratios": {ratio.name: _compare(ratio, seen) for ratio in bench.ratios},
        "limits": limits,
    }


def _compare(ratio: Ratio, seen: dict[str, list[Values]]) -> dict[str, Any]:
    ours, *peers = [name for name in seen if ratio.metric in seen[name][0]]
    sign = 1 if ratio.better == "higher" else -1
    peer = ratio.peer or max(peers, key=lambda p: sign * statistics.median(v[ratio.metric] for v in seen[p]))
    pairs = [
        (a[ratio.metric] / b[ratio.metric]) ** sign
        for a, b in zip(seen[ours], seen[peer], strict=True)
        if b[ratio.metric]
    ]
    spread = _spread(pairs)
    return {**spread, "against": peer, "aim": ratio.aim, "met": spread["median"] >= ratio.aim}


def _spread(values: list[float]) -> Values:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def in_child(function: Callable[..., Values], *args: Any) -> Values:
    """Run `function(*args)` in a fresh process and add `peak_bytes`: growth of its peak resident memory meanwhile.

    For memory comparisons, which need a process that has nothing else in it. `function` must be importable (top level);
    memory it allocates before calling `mark_start()` (imports, inputs) is not counted.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, function, args))
    process.start()
    send.close()
    try:
        values: Values = receive.recv()
    finally:
        process.join()
    return values


_start_bytes = 0


def mark_start() -> None:
    """Inside `in_child`: resident memory from here on counts; resets the peak that the kernel remembers."""
    global _start_bytes
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    _start_bytes = _memory("VmRSS")


def _memory(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


def _child(send: Any, function: Callable[..., Values], args: tuple[Any, ...]) -> None:
    mark_start()
    values = function(*args)
    values["peak_bytes"] = float(_memory("VmHWM") - _start_bytes)
    send.send(values)
