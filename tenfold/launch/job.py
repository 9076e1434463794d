"""How a training starts, whatever it starts on: a launcher gives a job, a job is followed or cancelled.

`local.LocalLauncher` runs torchrun as a subprocess. A launcher for a cluster has the same three functions; what a rank
runs, and what is done about its end, is the same for all (`run`).
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from tenfold.engine.exits import PEER_LOST, from_record
from tenfold.errors import InterruptedRun, TrainingError


@dataclass(frozen=True)
class RankFailure:
    """How a rank ended that did not end well.

    Attributes:
        rank: its number.
        exit_code: negative for a signal (-9: killed).
        error: `{"type", "message", "cure"}` of the TenfoldError it ended with, where it was one.
        last_lines: the last that it wrote to standard error.
    """

    rank: int
    exit_code: int
    error: dict[str, str] | None = None
    last_lines: tuple[str, ...] = ()

    @property
    def lost(self) -> bool:
        """Whether the rank was killed from outside (or by a fault of the machine): starting again may help."""
        return self.exit_code < 0 and -self.exit_code != signal.SIGTERM

    @property
    def how(self) -> str:
        """How it ended, for people."""
        if self.exit_code < 0:
            return f"was killed by {signal.Signals(-self.exit_code).name}"
        return f"ended with exit code {self.exit_code}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: well, where it has no failures and was not cancelled."""

    failures: tuple[RankFailure, ...] = ()
    cancelled: bool = False

    @property
    def cause(self) -> RankFailure | None:
        """The failure that the others follow from: a killed rank, else one that says what was wrong."""

        def order(failure: RankFailure) -> tuple[int, int]:
            followers = failure.exit_code in (PEER_LOST, -signal.SIGTERM)
            return (0 if failure.lost else 1 if failure.error else 3 if followers else 2, failure.rank)

        return min(self.failures, key=order, default=None)


class Job(Protocol):
    """Ranks that are running."""

    def follow(self, write: Callable[[str], None]) -> Outcome:
        """Pass on what the ranks write, a line at a time with the rank's name before it, until all have ended."""

    def cancel(self) -> None:
        """Ask the ranks to save and end (SIGTERM); a second call kills them. Returns at once."""


class Launcher(Protocol):
    """Starts ranks somewhere."""

    def start(self, command: Sequence[str], env: Mapping[str, str], ranks: int) -> Job:
        """Start `ranks` processes `python COMMAND…` that find each other as torchrun's do.

        Args:
            command: arguments of python: `["-m", "tenfold.pretrain.run", "RUN"]`.
            env: variables to set for them.
            ranks: how many.
        """


def run(
    launcher: Launcher,
    command: Sequence[str],
    env: Mapping[str, str],
    ranks: int,
    *,
    write: Callable[[str], None],
    restarts: int = 3,
) -> None:
    """Start ranks and see them through: follow, forward signals, start again where a rank was lost.

    A rank that was killed takes the others with it, and all start again from the newest checkpoint, `restarts` times.
    A rank that ended with an error of its own would do so again, so that error is raised here: the same class, message
    and exit code as in the rank. Raises InterruptedRun when a signal to this process ended the job.
    """
    for attempt in itertools.count(1):
        job = launcher.start(command, env, ranks)
        with forward_signals(job.cancel, write):
            outcome = job.follow(write)
        cause = outcome.cause
        if cause and cause.error:
            raise from_record(cause.error)
        if outcome.cancelled:
            raise InterruptedRun("interrupted", "run the same command again to go on from the newest checkpoint")
        if cause is None:
            return
        if not cause.lost or attempt > restarts:
            raise _ended_badly(cause, restarts)
        write(f"rank {cause.rank} {cause.how}; starting again from the newest checkpoint ({attempt} of {restarts})")


def _ended_badly(cause: RankFailure, restarts: int) -> TrainingError:
    tried = f" ({restarts} restarts did not help)" if cause.lost and restarts else ""
    lines = "".join(f"\n    {line}" for line in cause.last_lines)
    return TrainingError(
        f"rank {cause.rank} {cause.how}{tried}" + (f"; its last lines:{lines}" if lines else ""),
        "run the same command again to go on from the newest checkpoint"
        + (": if the machine ran out of memory, with fewer ranks" if cause.lost else ""),
    )


@contextmanager
def forward_signals(cancel: Callable[[], None], write: Callable[[str], None]) -> Iterator[None]:
    """SIGINT and SIGTERM to this process cancel the job instead; this process then waits for its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        write(f"{signal.Signals(number).name}: the ranks save and end (again: kill them)")
        cancel()

    before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
