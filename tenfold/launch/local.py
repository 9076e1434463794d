"""Ranks on this machine: torchrun as a subprocess, rendezvous on a free port of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tenfold.errors import InputError, TrainingError
from tenfold.launch.job import Outcome, RankFailure

LAST_LINES = 12


def threads_per_rank(ranks: int) -> int:
    """CPU threads of each rank: this process's cores shared out, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


class LocalLauncher:
    """Starts ranks on this machine.

    Args:
        grace_s: how long ranks may take to save when they are asked to end; then they are killed.
    """

    def __init__(self, grace_s: int = 120) -> None:
        self.grace_s = grace_s

    def start(self, command: Sequence[str], env: Mapping[str, str], ranks: int) -> LocalJob:
        """See Launcher.start."""
        if ranks < 1:
            raise InputError(f"ranks = {ranks} must be at least 1", "pass --ranks 1 or more")
        return LocalJob(command, env, ranks, self.grace_s)


class LocalJob:
    """A torchrun with its ranks.

    Ranks get a session of their own, so that Ctrl-C in a terminal reaches only this process, which then asks them to
    end in an orderly way. When this process is killed, the kernel ends the agent, and with it the ranks.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], ranks: int, grace_s: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tenfold-launch-"))
        self.account = self.folder / "account.json"
        self.ranks = ranks
        self._asked = 0
        arguments = [
            *("-m", "tenfold.launch.agent", str(self.account)),
            *("--standalone", f"--nproc-per-node={ranks}", "--max-restarts=0", f"--shutdown-timeout={grace_s}"),
            *("--redirects=3", "--tee=3", "--log-line-prefix-template=[rank ${rank}] "),
            f"--log-dir={self.folder / 'logs'}",
            *("--no-python", sys.executable, "-u", *command),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "LOGLEVEL": "CRITICAL", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )

    def follow(self, write: Callable[[str], None]) -> Outcome:
        """See Job.follow."""
        assert self.process.stdout is not None
        agent: deque[str] = deque(maxlen=LAST_LINES)
        for line in self.process.stdout:
            line = line.rstrip("\n")
            if line.startswith("[rank "):
                write(line)
            elif line:
                agent.append(line)
        code = self.process.wait()
        try:
            account = json.loads(self.account.read_text())
            failures = [
                RankFailure(f["rank"], f["exit_code"], f["error"], self._last_lines(f["rank"]))
                for f in account["failures"]
            ]
            return Outcome(tuple(failures), bool(self._asked) or account["cancelled"])
        except FileNotFoundError:
            if self._asked:
                return Outcome(cancelled=True)
            raise TrainingError(
                f"torchrun ended with exit code {code} before its ranks did: " + "\n    ".join(["", *agent]),
                "run the same command again; if it happens again, try --ranks 1",
            ) from None
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def cancel(self) -> None:
        """See Job.cancel."""
        self._asked += 1
        if self.process.poll() is None:
            # A killed agent takes its ranks with it: the kernel sends them SIGKILL (see die_with_parent).
            self.process.send_signal(signal.SIGTERM if self._asked == 1 else signal.SIGKILL)

    def _last_lines(self, rank: int) -> tuple[str, ...]:
        lines: list[str] = []
        for path in sorted(self.folder.glob(f"logs/**/{rank}/stderr.log")):
            lines += path.read_text(errors="replace").splitlines()
        return tuple(lines[-LAST_LINES:])
