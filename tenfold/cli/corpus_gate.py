"""`tenfold corpus gate`: which test images have a near-duplicate in the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.common import JsonFlag, emit, progress
from tenfold.cli.corpus import CorpusArgument, corpus_app

if TYPE_CHECKING:
    from tenfold.corpus.gate import Gate


@corpus_app.command()
def gate(
    corpus: CorpusArgument,
    test: Annotated[
        str | None, typer.Option(help="Test set: a fetched source (DIR/NAME:SPLIT), another corpus, or a folder.")
    ] = None,
    self_: Annotated[bool, typer.Option("--self", help="Duplicates inside the corpus instead.")] = False,
    name: Annotated[str, typer.Option(help="Name of the gate. Default: that of the test set.")] = "",
    threshold: Annotated[
        float | None, typer.Option(help="Largest distance of near-duplicates. Default: 0.15; see docs/gate.md.")
    ] = None,
    max_share: Annotated[
        float | None, typer.Option(help="Fail (exit code 4) where a larger share has near-duplicates; 0.05 is 5 %.")
    ] = None,
    gallery: Annotated[int, typer.Option(help="Pairs in each part of the gallery; 0: no gallery.")] = 60,
    workers: Annotated[int | None, typer.Option(help="Threads. Default: all cores.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find test images that have a near-duplicate in the corpus, to evaluate with and without them (D-16)."""
    from pydantic import ValidationError

    from tenfold.corpus import gate as library
    from tenfold.corpus.table import Corpus
    from tenfold.errors import InputError

    if (test is None) != self_:
        raise InputError("give either --test or --self", "for example --test data/cifar10n:test")
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is no number of threads", "give 1 or more")
    given = {"threshold": threshold, "max_share": max_share, "gallery": gallery}
    try:
        config = library.GateConfig.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise InputError(f"{flag}: {first['msg']}", "see `tenfold corpus gate --help`") from None
    opened = Corpus.open(corpus)
    if test is None:
        found = library.run_self(opened, config, name=name or "self", workers=workers, bars=_bars)
    else:
        found = library.run(opened, test, config, name=name, workers=workers, bars=_bars)
    emit(found, as_json, _show)
    found.check()


@contextmanager
def _bars(description: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    with progress(description, total) as advance:
        yield lambda amount: advance(amount, "")


def _show(found: Gate) -> None:
    before = " (found before)" if found.existed else ""
    print(f"{found.near_duplicates:,} of {found.tested:,} images of {found.test} have a near-duplicate{before}")
    print(f"  share        {found.share:.2%}" + (f", {found.max_share:.2%} allowed" if found.max_share else ""))
    print(f"  exact        {found.exact:,} are there byte for byte")
    if found.unreadable:
        print(f"  unreadable   {found.unreadable:,} test images")
    print(f"  threshold    {found.threshold:g}; docs/gate.md says what it finds and how often it errs")
    print(f"  gate         {found.uri}.json  {found.digest[:19]}…")
    print(f"  look at      {found.uri}/gallery.html")
