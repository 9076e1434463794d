"""Ending with the process that started this one. Light on purpose (no torch)."""

from __future__ import annotations

import contextlib
import ctypes
import signal


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux), so that no rank trains on unseen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
