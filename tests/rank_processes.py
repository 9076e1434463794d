"""Ranks as processes of a test, quickly: forked from a server that has the heavy modules loaded already.

The real launcher starts a fresh Python for each rank, which costs seconds; tests/launch does that once.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tenfold.pretrain.run"])


class Ranks:
    """Processes that find each other as torchrun's do. Attribute `log`: what they wrote to standard error."""

    def __init__(self, world: int, folder: Path, target: Callable[..., None], *args: Any) -> None:
        self.log = folder / f"ranks-{os.urandom(3).hex()}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            env = {
                **{key: value for key, value in os.environ.items() if key.startswith(("AWS_", "TENFOLD_"))},
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
            }
            process = CONTEXT.Process(target=_rank, args=(env, str(self.log), target, args))
            process.start()
            self.processes.append(process)

    def kill(self, *ranks: int) -> None:
        """kill -9 of some ranks, or of all."""
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()

    def wait(self, timeout: float = 120) -> list[int | None]:
        """Exit codes of all ranks; they are killed when they take too long."""
        for process in self.processes:
            process.join(timeout)
        for process in self.processes:
            if process.is_alive():
                process.kill()
        return [process.exitcode for process in self.processes]


def run_ranks(world: int, folder: Path, target: Callable[..., None], *args: Any) -> None:
    """Run `target(*args)` on every rank; the test fails with their output where one does not end well."""
    ranks = Ranks(world, folder, target, *args)
    codes = ranks.wait()
    if any(codes):
        raise AssertionError(f"ranks ended with {codes}:\n{ranks.log.read_text()[-4000:]}")


def _rank(env: dict[str, str], log: str, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    for key in [key for key in os.environ if key.startswith(("AWS_", "TENFOLD_"))]:
        del os.environ[key]
    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    os.dup2(file, 1)
    try:
        target(*args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)
