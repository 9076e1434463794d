"""The line that tells people how a training goes: changing in place on a terminal, written now and then elsewhere."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from typing import TextIO

WINDOW = 30.0  # seconds of steps behind images/s, data wait and the time left
ON_TERMINAL, ELSEWHERE = 0.2, 5.0  # seconds between lines


def duration(seconds: float) -> str:
    """A time for people: `48 s`, `12 min 05 s`, `3 h 07 min`, `2 d 04 h`.

    >>> duration(725)
    '12 min 05 s'
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole // 60 % 60:02d} min"
    return f"{whole // 86400} d {whole // 3600 % 24:02d} h"


class ProgressLine:
    """Shows step, loss, images/s, share of time spent waiting for data, learning rate, and the time left.

    Args:
        stream: where to; asked whether it is a terminal.
        total: steps at the end, 0 for not known.
        world: ranks that train beside this one at the same pace; images/s are of all.
    """

    def __init__(self, stream: TextIO, total: int = 0, world: int = 1) -> None:
        self._stream, self._total, self._world = stream, total, world
        self._terminal = stream.isatty()
        self._recent: deque[tuple[int, float, float]] = deque()  # images, seconds, wait
        self._sums = [0, 0.0, 0.0]
        self._next = time.monotonic() + (0 if self._terminal else 1.0)
        self._loss = self._rate = math.nan
        self._step = self._shown = -1

    def step(
        self,
        step: int,
        images: int,
        seconds: float,
        wait: float,
        loss: float | None = None,
        rate: float | None = None,
    ) -> None:
        """Count a step, and write the line where it is time."""
        self._step = step
        self._recent.append((images, seconds, wait))
        for i, value in enumerate(self._recent[-1]):
            self._sums[i] += value
        while len(self._recent) > 1 and self._sums[1] > WINDOW:
            for i, value in enumerate(self._recent.popleft()):
                self._sums[i] -= value
        self._loss = self._loss if loss is None else loss
        self._rate = self._rate if rate is None else rate
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + (ON_TERMINAL if self._terminal else ELSEWHERE)
            self._write()

    def text(self) -> str:
        """The line as it would be written now."""
        images, seconds, wait = self._sums
        seconds = max(seconds, 1e-9)
        parts = [f"step {self._step:,}"]
        if self._total:
            parts[0] += f"/{self._total:,} ({self._step / self._total:.0%})"
        if not math.isnan(self._loss):
            parts.append(f"loss {self._loss:.4g}")
        parts.append(f"{images * self._world / seconds:,.0f} images/s")
        parts.append(f"data wait {max(0.0, wait) / seconds:.0%}")
        if not math.isnan(self._rate):
            parts.append(f"lr {self._rate:.3g}")
        if self._total and self._step < self._total:
            parts.append(f"ETA {duration((self._total - self._step) * seconds / max(1, len(self._recent)))}")
        return "  ".join(parts)

    def close(self) -> None:
        """Write the last state, and end the line on a terminal."""
        if self._step >= 0 and (self._terminal or self._shown != self._step):
            self._write()
        if self._terminal and self._step >= 0:
            self._put("\n")

    def _write(self) -> None:
        self._shown = self._step
        if self._terminal:  # a line that wraps could not be written over
            width = shutil.get_terminal_size().columns - 1
            self._put(f"\r\x1b[2K{self.text()[:width]}")
        else:
            self._put(f"{self.text()}\n")

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal went away, or the stream was closed
            pass
