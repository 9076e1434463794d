"""What all verbs share: `--json`, and progress that keeps out of the way of output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on standard output.")]


def emit(result: Any, as_json: bool, render: Callable[[Any], None]) -> None:
    """Print a result: one JSON document for machines, or whatever `render` prints for people.

    Args:
        result: a pydantic model or a value of plain JSON types.
        as_json: the verb's `--json`.
        render: prints the result for people; called only without `--json`.
    """
    if as_json:
        value = result.model_dump(mode="json") if hasattr(result, "model_dump") else result
        print(json.dumps(value, indent=1))
    else:
        render(result)


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error; silent where that is no terminal.

    Yields `advance(amount, note)`: adds `amount` to the bar and shows `note` behind it.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(amount: float, note: str = "") -> None:
            bar.update(task, advance=amount, note=note)

        yield advance
