"""Workers that die take nothing with them, and die with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenfold.corpus.pool import Pool, cores
from tenfold.errors import InputError

WORK = """
import os, time
from tenfold.errors import InputError

def square(settings, task, skip, report):
    for item in range(task):
        report(item, 1, item % 2)
    return task * task + settings

def deadly(settings, task, skip, report):
    left_out = []
    for item in range(10):
        report(item, 0, 0)
        if item in skip:
            left_out.append(item)
        elif (task, item) in settings:
            os.kill(os.getpid(), 9)
        elif item == 5 and not os.path.exists(f"once-{task}"):  # an accident that does not happen again
            open(f"once-{task}", "w").close()
            os._exit(1)
        report(item, 1, 0)
    return left_out

def wrong(settings, task, skip, report):
    raise InputError("row 7 is wrong", "correct it")

class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

def odd(settings, task, skip, report):
    raise Odd("this", "that")

def sleep(settings, task, skip, report):
    open(f"pid-{task}", "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pool_work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_results_and_progress() -> None:
    seen = []
    with Pool(2, "pool_work:square", 1000) as pool:
        results = dict(pool.map(((n, n) for n in range(9)), lambda done, bad: seen.append((done, bad))))
        assert dict(pool.map([(5, 3)])) == {5: 1009}  # the workers are still there
    assert results == {n: n * n + 1000 for n in range(9)}
    assert tuple(map(sum, zip(*seen, strict=True))) == (36, 16)


def test_an_item_that_kills_twice_is_left_out_and_nothing_else() -> None:
    with Pool(2, "pool_work:deadly", {(1, 3), (1, 8), (2, 0)}) as pool:
        assert dict(pool.map((n, n) for n in range(4))) == {0: [], 1: [3, 8], 2: [0], 3: []}


def test_errors_come_through() -> None:
    with Pool(1, "pool_work:wrong", None) as pool, pytest.raises(InputError) as caught:
        list(pool.map([(0, 0)]))
    assert caught.value.cure == "correct it"
    with Pool(1, "pool_work:odd", None) as pool, pytest.raises(RuntimeError, match="this and that"):
        list(pool.map([(0, 0)]))


def test_workers_that_cannot_start_are_not_started_for_ever() -> None:
    with Pool(1, "pool_work_missing:work", None) as pool, pytest.raises(RuntimeError, match="die as they start"):
        list(pool.map([(0, 0)]))


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "from tenfold.corpus.pool import Pool\nwith Pool(2, 'pool_work:sleep', 0) as p: list(p.map([(0, 0), (1, 1)]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    pids = [tmp_path / "pid-0", tmp_path / "pid-1"]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    workers = [int(path.read_text()) for path in pids]
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, workers))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_cores() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
