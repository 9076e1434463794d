"""torchrun, with an account of how each rank ended.

    python -m tenfold.launch.agent ACCOUNT.json <arguments of torchrun>

torchrun itself only prints how its ranks ended. This runs the same agent and writes it to ACCOUNT.json:
`{"cancelled": bool, "failures": [{"rank", "exit_code", "error"}]}`; it ends with 0 either way.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tenfold.engine.parent import die_with_parent


def main(path: str, arguments: list[str]) -> None:
    """Run torchrun's agent with `arguments`, then write the account to `path`."""
    die_with_parent()
    account: dict[str, Any] = {"cancelled": False, "failures": []}
    try:
        run.run(run.parse_args(arguments))
    except SignalException:
        account["cancelled"] = True
    except ChildFailedError as error:
        account["failures"] = [_describe(rank, failure) for rank, failure in sorted(error.failures.items())]
    aside = f"{path}.tmp"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(account, file)
    os.replace(aside, path)


def _describe(rank: int, failure: ProcessFailure) -> dict[str, Any]:
    message = failure.error_file_data.get("message")
    error = message.get("extraInfo", {}).get("tenfold") if isinstance(message, dict) else None
    return {"rank": rank, "exit_code": failure.exitcode, "error": error}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
