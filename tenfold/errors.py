"""The errors that a user may meet, each with a sentence that says what to do.

Every error a person can cause derives from `TenfoldError`; the CLI prints its message and cure without a traceback and
exits with its `exit_code`. Anything else that reaches the CLI is a fault of ours and keeps its traceback.
"""

from __future__ import annotations


class TenfoldError(Exception):
    """Base of all errors meant for people.

    Args:
        message: what is wrong, naming the field, file or row.
        cure: what to do about it, one sentence; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}\n  cure: {self.cure}" if self.cure else self.message

    def __reduce__(self) -> tuple[type[TenfoldError], tuple[str, str]]:
        # Exceptions cross process boundaries (torchrun, worker pools); the default would drop the cure.
        return type(self), (self.message, self.cure)


class InputError(TenfoldError):
    """Wrong or inconsistent input: a flag, a file, a row (exit code 2)."""

    exit_code = 2


class StorageError(TenfoldError):
    """Storage cannot be reached, refuses us, or holds something damaged (exit code 3)."""

    exit_code = 3


class GateError(TenfoldError):
    """A quality gate was not passed (exit code 4)."""

    exit_code = 4


class TrainingError(TenfoldError):
    """Training cannot go on: a non-finite loss, a rank lost too often (exit code 5)."""

    exit_code = 5


class InterruptedRun(TenfoldError):  # noqa: N818 — nothing went wrong
    """A signal stopped the work where it can go on later (exit code 75, `EX_TEMPFAIL`: try again)."""

    exit_code = 75
