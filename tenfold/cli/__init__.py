"""The `tenfold` command. Verbs are named like the library functions and the components they call.

Each module below holds the verbs of one area. They import the library inside the verb, not at the top: `tenfold --help`
answers in under half a second because torch is not loaded for it.
"""

from __future__ import annotations

import sys

import typer

from tenfold import __version__
from tenfold.cli import corpus_gate as _corpus_gate  # noqa: F401 - gate joins corpus_app
from tenfold.cli import corpus_labels as _corpus_labels  # noqa: F401 - close, subset and report join corpus_app
from tenfold.cli.corpus import corpus_app
from tenfold.cli.dataset import dataset_app
from tenfold.cli.fetch import fetch as fetch_verb
from tenfold.cli.pretrain import pretrain as pretrain_verb
from tenfold.cli.probe import probe as probe_verb
from tenfold.cli.recipes import recipes_app
from tenfold.errors import TenfoldError

app = typer.Typer(
    name="tenfold",
    help="What would ten times the data buy? From a pile of images to an answer with error bars.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """What would ten times the data buy? From a pile of images to an answer with error bars."""


# Verbs register here, one line an area.
app.command("fetch")(fetch_verb)
app.add_typer(corpus_app, name="corpus")
app.add_typer(recipes_app, name="recipes")
app.command("pretrain")(pretrain_verb)
app.command("probe")(probe_verb)
app.add_typer(dataset_app, name="dataset")


def main() -> None:
    """Entry point: errors meant for people are printed without a traceback, and exit codes mean something."""
    try:
        app()
    except TenfoldError as error:
        print(f"tenfold: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("tenfold: interrupted", file=sys.stderr)
        sys.exit(130)
