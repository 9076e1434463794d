"""Worker processes for long work on files that may kill their reader.

A decoder can crash on one file in a million, or be killed for its memory. Then only that worker is lost: its task is
given out again, and if the same item kills a second worker the task is given out without it.

Workers are started as `python -m tenfold.corpus.pool`, not forked and not by multiprocessing's spawn: nothing of the
parent is inherited or imported again (a user's `__main__` with torch in it would cost each worker 300 MB), and they end
when the parent does, however it ends.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, cast

PROGRESS_SECONDS = 0.3
STARTS = 3  # deaths in a row before the first item of a task, after which we give up

# What a worker runs: settings, task and the numbers of items to leave out; calls `report(item, done, bad)` as it goes.
Work = Callable[[Any, Any, frozenset[int], Callable[[int, int, int], None]], Any]


def cores() -> int:
    """Processor cores that this process may use: by affinity and, in a container, by its quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()
        count = min(count, max(1, int(int(quota) / int(period)))) if quota != "max" else count
    return count


class Pool:
    """A number of workers.

    Args:
        workers: processes.
        work: the function they run, as `package.module:name` (see Work).
        settings: handed to it with every task; pickled.
    """

    def __init__(self, workers: int, work: str, settings: Any) -> None:
        self._work = work
        self._settings = settings
        self._workers = [_Worker(work, settings) for _ in range(workers)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def map(
        self, tasks: Iterable[tuple[int, Any]], progress: Callable[[int, int], None] = lambda done, bad: None
    ) -> Iterator[tuple[int, Any]]:
        """Run numbered tasks; yields their numbers and results as they come.

        Args:
            tasks: number and task; taken from the iterable only as workers become free.
            progress: called with what was done since the last call: items, and bad ones among them.

        Raises what a task raises.
        """
        todo = iter(tasks)
        again: deque[tuple[int, Any, frozenset[int]]] = deque()
        deaths: Counter[tuple[int, int]] = Counter()
        starts = 0
        while True:
            for worker in self._workers:
                if worker.task is None:
                    if again:
                        worker.give(*again.popleft())
                    elif (following := next(todo, None)) is not None:
                        worker.give(*following, frozenset())
            busy = {worker.connection: worker for worker in self._workers if worker.task}
            if not busy:
                return
            for ready in wait(list(busy)):
                worker = busy[cast(Connection, ready)]
                assert worker.task
                number, task, skip = worker.task
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    item = worker.item()
                    code = worker.end()
                    deaths[number, item] += 1
                    starts = starts + 1 if item < 0 else 0
                    if starts >= STARTS:
                        raise RuntimeError(f"workers die as they start ({_how(code)})") from None
                    if item >= 0 and deaths[number, item] >= 2:
                        skip |= {item}
                    again.append((number, task, skip))
                    self._workers[self._workers.index(worker)] = _Worker(self._work, self._settings)
                    continue
                if kind == "progress":
                    progress(*value)
                elif kind == "done":
                    worker.task = None
                    starts = 0
                    yield number, value
                else:
                    raise value


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Worker:
    """A process at the other end of a socket, and a page of shared memory with the item it is at."""

    def __init__(self, work: str, settings: Any) -> None:
        ours, theirs = socket.socketpair()
        self._page = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._page.truncate(8)
        self._at = mmap.mmap(self._page.fileno(), 8)
        fds = (theirs.fileno(), self._page.fileno())
        command = [sys.executable, "-m", "tenfold.corpus.pool", *map(str, fds)]
        self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=2)
        theirs.close()
        self.connection = Connection(ours.detach())
        self.task: tuple[int, Any, frozenset[int]] | None = None
        with suppress(OSError):  # it died already; `recv` will tell
            self.connection.send((work, settings))

    def give(self, number: int, task: Any, skip: frozenset[int]) -> None:
        self.task = number, task, skip
        self._at[:] = struct.pack("=q", -1)
        with suppress(OSError):
            self.connection.send((task, skip))

    def item(self) -> int:
        return int(struct.unpack("=q", self._at[:])[0])

    def end(self) -> int:
        self.connection.close()
        self._process.kill()
        self._at.close()
        self._page.close()
        return self._process.wait()


def _main(connection_fd: int, page_fd: int) -> None:
    """What a worker process runs, until its parent closes the connection or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends us
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not one item more once the parent is gone
    connection = Connection(connection_fd)
    at = mmap.mmap(page_fd, 8)
    pending = [0, 0]
    last = time.monotonic()

    def report(item: int, done: int, bad: int) -> None:
        nonlocal last
        struct.pack_into("=q", at, 0, item)
        pending[0] += done
        pending[1] += bad
        if (now := time.monotonic()) - last > PROGRESS_SECONDS:
            flush()
            last = now

    def flush() -> None:
        if any(pending):
            connection.send(("progress", tuple(pending)))
            pending[:] = [0, 0]

    try:
        name, settings = connection.recv()
        module, _, function = name.partition(":")
        work: Work = getattr(importlib.import_module(module), function)
        while True:
            task, skip = connection.recv()
            try:
                answer = ("done", work(settings, task, skip, report))
                flush()
            except Exception as error:
                answer = ("error", _portable(error))
            connection.send(answer)
    except (EOFError, ConnectionError):
        return


def _portable(error: Exception) -> Exception:
    """The error, or its traceback as text where it does not survive pickling."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            error.add_note("".join(traceback.format_exception(error)))
            return error
    except Exception:  # whatever its constructor does
        pass
    return RuntimeError("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
