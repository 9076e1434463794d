"""A value for every step, on disk: `{"step": 12, "loss": 0.6931, "hex": "0x1.62e42fp-1"}`, one line a step.

    RUN/losses/000000000.jsonl   what one process wrote, from that step on: a restart begins a new file

Floats are also given in hex: two runs are the same exactly when their lines are. A restart goes on from a checkpoint,
and the lines behind it are removed, for those steps come again (with the same values). Files are appended to; on S3,
where nothing can be appended, each flush writes an object of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from tenfold import storage


class StepLog:
    """Writes the values of a run from `first_step` on.

    Args:
        uri: folder of the log's files.
        first_step: the step that comes next; lines of it and later steps are removed.
    """

    def __init__(self, uri: str, first_step: int = 0) -> None:
        self.uri = storage.normalise(uri)
        self._first: int | None = None
        self._lines: list[str] = []
        self._file: IO[str] | None = None
        _cut(self.uri, first_step)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append a line. On files it is there when this returns, also if the process is killed next."""
        line = json.dumps({"step": step, **values, "hex": float(next(iter(values.values()))).hex()})
        if storage.is_s3(self.uri):
            self._first = step if self._first is None else self._first
            self._lines.append(line)
            return
        if self._file is None:
            Path(self.uri).mkdir(parents=True, exist_ok=True)
            self._file = open(storage.join(self.uri, _name(step)), "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._file.write(line + "\n")

    def flush(self) -> None:
        """Write what waits in memory (S3)."""
        if self._lines and self._first is not None:
            storage.write_bytes(storage.join(self.uri, _name(self._first)), ("\n".join(self._lines) + "\n").encode())
            self._lines, self._first = [], None

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._file:
            self._file.close()
            self._file = None


def read_steps(uri: str) -> dict[int, dict[str, float]]:
    """All lines of a log by step, values as floats (from hex, so exactly); a torn last line is left out."""
    found: dict[int, dict[str, float]] = {}
    for path in storage.list_files(uri):
        for line in storage.read_bytes(storage.join(uri, path)).decode().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue  # the process was killed inside a write
            found[values["step"]] = {k: v for k, v in values.items() if k not in ("step", "hex")}
    return dict(sorted(found.items()))


def _name(step: int) -> str:
    return f"{step:09d}.jsonl"


def _cut(uri: str, first_step: int) -> None:
    """Remove the lines of `first_step` and later, and torn ones."""
    for path in storage.list_files(uri):
        where = storage.join(uri, path)
        if int(path.partition(".")[0]) >= first_step:
            storage.remove(where)
            continue
        lines = storage.read_bytes(where).decode().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first_step]
        if len(kept) < len(lines):
            storage.write_bytes(where, "".join(kept).encode())
