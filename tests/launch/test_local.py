"""The launcher: real torchrun, real processes, real signals. Ranks are small scripts: only torchrun loads torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from small_corpus import make_corpus

from tenfold.engine.exits import PEER_LOST
from tenfold.errors import InputError, InterruptedRun, StorageError, TrainingError
from tenfold.launch.job import Outcome, RankFailure, run
from tenfold.launch.local import LocalLauncher, threads_per_rank

PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
(folder / f"pid-{rank}").write_text(str(os.getpid()))
"""


def script(folder: Path, body: str) -> list[str]:
    path = folder / "rank.py"
    path.write_text(PREAMBLE + textwrap.dedent(body))
    return [str(path), str(folder)]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_ranks_find_their_place_and_are_told_apart(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        print("rank", rank, "of", os.environ["WORLD_SIZE"], os.environ["GREETING"], os.environ["OMP_NUM_THREADS"])
        print("to stderr", file=sys.stderr)
        """,
    )
    lines: list[str] = []
    run(LocalLauncher(), command, {"GREETING": "hello", "OMP_NUM_THREADS": "1"}, 2, write=lines.append)
    assert sorted(lines) == [
        "[rank 0] rank 0 of 2 hello 1",
        "[rank 0] to stderr",
        "[rank 1] rank 1 of 2 hello 1",
        "[rank 1] to stderr",
    ]


def test_an_error_of_a_rank_is_raised_here_as_it_was(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        from tenfold.engine.exits import run_rank
        from tenfold.errors import StorageError

        def body():
            if rank == 1:
                raise StorageError("the disk is full", "delete something")
            time.sleep(60)

        run_rank(body, lambda error: False)
        """,
    )
    with pytest.raises(StorageError) as caught:
        run(LocalLauncher(), command, {"OMP_NUM_THREADS": "1"}, 2, write=lambda _: None)
    assert (caught.value.message, caught.value.cure) == ("the disk is full", "delete something")
    assert caught.value.exit_code == 3


@pytest.mark.slow
def test_a_killed_rank_is_restarted_a_crash_is_not(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        (folder / f"start-{rank}-{time.time()}").touch()
        if rank == 1:
            if len(list(folder.glob("start-1-*"))) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            print("the last words", file=sys.stderr)
            raise RuntimeError("a fault of ours")
        time.sleep(60)
        """,
    )
    lines: list[str] = []
    with pytest.raises(TrainingError) as caught:
        run(LocalLauncher(), command, {"OMP_NUM_THREADS": "1"}, 2, write=lines.append, restarts=5)
    assert "rank 1 was killed by SIGKILL; starting again from the newest checkpoint (1 of 5)" in lines
    assert "rank 1 ended with exit code 1; its last lines:" in caught.value.message
    assert "the last words" in caught.value.message
    assert "RuntimeError: a fault of ours" in caught.value.message
    assert len(list(tmp_path.glob("start-1-*"))) == 2


def test_sigterm_reaches_the_ranks_and_they_may_save(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        def save(number, frame):
            time.sleep(0.5)
            (folder / f"saved-{rank}").touch()
            sys.exit(75)

        signal.signal(signal.SIGTERM, save)
        (folder / f"ready-{rank}").touch()
        time.sleep(60)
        """,
    )
    lines: list[str] = []

    def interrupt() -> None:
        wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRun):
        run(LocalLauncher(), command, {"OMP_NUM_THREADS": "1"}, 2, write=lines.append)
    thread.join()
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert lines == ["SIGINT: the ranks save and end (again: kill them)"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        from tenfold.engine.parent import die_with_parent

        die_with_parent()
        (folder / f"ready-{rank}").touch()
        time.sleep(300)
        """,
    )
    code = f"""
from tenfold.launch.job import run
from tenfold.launch.local import LocalLauncher
run(LocalLauncher(), {command!r}, {{"OMP_NUM_THREADS": "1"}}, 2, write=print)
"""
    launcher = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    assert all(map(alive, pids))
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(map(alive, pids)), 20)


class Played:
    """A launcher whose jobs end as told, for the decisions of `run`."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)

    def start(self, command: Sequence[str], env: Mapping[str, str], ranks: int) -> Played:
        return self

    def follow(self, write: Callable[[str], None]) -> Outcome:
        return self.outcomes.pop(0)

    def cancel(self) -> None:
        raise AssertionError("nobody cancels here")


KILLED = RankFailure(2, -signal.SIGKILL)
FOLLOWERS = (RankFailure(0, PEER_LOST), RankFailure(1, -signal.SIGTERM))


def test_restarts_come_to_an_end() -> None:
    lines: list[str] = []
    jobs = Played(*[Outcome((*FOLLOWERS, KILLED))] * 3)
    with pytest.raises(TrainingError, match=r"rank 2 was killed by SIGKILL \(2 restarts did not help\)"):
        run(jobs, [], {}, 3, write=lines.append, restarts=2)
    assert len(lines) == 2


def test_the_cause_is_told_from_what_follows_from_it() -> None:
    said = RankFailure(4, 5, {"type": "TrainingError", "message": "m", "cure": "c"})
    crashed = RankFailure(5, 1)
    assert Outcome((*FOLLOWERS, crashed, said, KILLED)).cause is KILLED
    assert Outcome((*FOLLOWERS, crashed, said)).cause is said
    assert Outcome((*FOLLOWERS, crashed)).cause is crashed
    assert Outcome().cause is None


def test_an_unknown_kind_of_error_is_still_one_for_people() -> None:
    failure = RankFailure(0, 5, {"type": "SomeLaterError", "message": "m", "cure": "c"})
    with pytest.raises(TrainingError, match="m"):
        run(Played(Outcome((failure,))), [], {}, 1, write=print)


def test_cores_are_shared_out() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_per_rank(1) == cores
    assert threads_per_rank(10 * cores) == 1
    with pytest.raises(InputError, match="ranks = 0"):
        LocalLauncher().start([], {}, 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pretrain_from_the_command_line(tmp_path: Path) -> None:
    """The whole way: the verb, torchrun, two ranks; one is killed, and the verb goes on by itself and says so."""
    make_corpus(str(tmp_path / "corpus"), 300)
    verb = [
        *(str(Path(sys.executable).parent / "tenfold"), "pretrain", "cifar10n", "--corpus", str(tmp_path / "corpus")),
        *("--ranks", "2", "--steps", "60", "--set", "batch=24", "--set", "checkpoint.every=5", "--json", "--out"),
    ]
    whole = subprocess.run([*verb, str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    killed = subprocess.Popen(
        [*verb, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (tmp_path / "killed" / "checkpoints").exists(), 120)
    ranks = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and _is_rank(path, str(tmp_path / "killed"))
    ]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    out, err = killed.communicate(timeout=240)
    assert killed.returncode == 0, err
    assert "was killed by SIGKILL; starting again from the newest checkpoint (1 of 3)" in err
    assert "[rank 0] " in err
    first, second = json.loads(whole.stdout), json.loads(out)
    assert first["digest"] == second["digest"]
    assert second["steps"] == 60

    again = subprocess.run([*verb, str(tmp_path / "killed")], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["trained"] is False

    stopped = subprocess.Popen(
        [*verb, str(tmp_path / "stopped")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (tmp_path / "stopped" / "losses").exists(), 120)
    stopped.terminate()
    assert stopped.wait(120) == 75
    assert list((tmp_path / "stopped" / "checkpoints").glob("*/manifest.json"))
    last = subprocess.run([*verb, str(tmp_path / "stopped")], capture_output=True, text=True, check=True)
    assert json.loads(last.stdout)["digest"] == first["digest"]


def _is_rank(process: Path, folder: str) -> bool:
    try:
        command = (process / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False
    return "tenfold.pretrain.run" in command and "tenfold.launch.agent" not in command and folder in command
