"""`tenfold corpus …`: from a pile of images to a corpus, and what is in it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenfold.cli.common import JsonFlag, emit

corpus_app = typer.Typer(
    help="Curate: ingest, close, gate, subset, report.", no_args_is_help=True, pretty_exceptions_enable=False
)


@corpus_app.command()
def info(
    corpus: Annotated[str, typer.Argument(help="Corpus folder, CORPUS@TAG for an earlier state, or a manifest.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what a corpus holds: rows, classes, labels, sizes, states, quarantine, digest."""
    from tenfold.corpus.table import Corpus

    opened = Corpus.open(corpus)

    def render(facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            print(f"{name:<12}{value}")

    emit({"digest": opened.digest, **opened.manifest.facts}, as_json, render)
