"""How a rank says to whoever started it why it ended: an exit code, and an error file where torchrun looks for one.

Light on purpose (no torch): the launcher reads with it what the ranks write.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable

from tenfold import errors
from tenfold.errors import TenfoldError, TrainingError

PEER_LOST = 76  # exit code of a rank that ended because another one was gone


def as_record(error: TenfoldError) -> dict[str, str]:
    """An error as a rank hands it over."""
    known = next(kind for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    return {"type": known.__name__, "message": error.message, "cure": error.cure}


def from_record(record: dict[str, str]) -> TenfoldError:
    """The error made anew: the same class, message, cure and exit code."""
    kind: type[TenfoldError] = getattr(errors, record["type"], TrainingError)
    return kind(record["message"], record["cure"])


def run_rank(body: Callable[[], None], is_peer_lost: Callable[[BaseException], bool]) -> None:
    """Run a rank's work and end the process as its launcher expects: this does not return.

    Exit codes: 0; that of a TenfoldError, which is also written to torchrun's error file; 76 where another rank is
    gone, for then that rank's end is the cause; 1 with a traceback for a fault of ours.
    """
    code = 0
    try:
        body()
    except TenfoldError as error:
        code = error.exit_code
        _write_error_file(error)
        print(error, file=sys.stderr)
    except BaseException as error:
        if is_peer_lost(error):
            code = PEER_LOST
            print("another rank is gone; this one ends too", file=sys.stderr)
        else:
            code = 1
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of a half-done checkpoint or of gloo would keep a failed rank alive, waiting for its peers.
    os._exit(code)


def _write_error_file(error: TenfoldError) -> None:
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"timestamp": str(int(time.time())), "py_callstack": str(error), "tenfold": as_record(error)}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": error.message, "extraInfo": extra}}, file)
