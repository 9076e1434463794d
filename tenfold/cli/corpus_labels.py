"""`tenfold corpus close | subset | report`: labels under their ancestors, parts of a corpus, and what it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from tenfold.cli.common import JsonFlag, emit, progress
from tenfold.cli.corpus import CorpusArgument, corpus_app


@corpus_app.command()
def close(
    corpus: CorpusArgument,
    votes: Annotated[
        Literal["sum", "max"],
        typer.Option(help="Votes of an ancestor: sum of those given at or below it (people), or the largest (scores)."),
    ] = "sum",
    hierarchy: Annotated[
        str, typer.Option(help="JSON list of {name, title, parents} to take the hierarchy from, joined by name.")
    ] = "",
    tag: Annotated[str, typer.Option(help="Name of the new state.")] = "closed",
    as_json: JsonFlag = False,
) -> None:
    """Complete labels upward: every image gets the ancestors of its labels, as a new state (D-10)."""
    from tenfold.corpus import hierarchy as library
    from tenfold.corpus.sources import read_classes
    from tenfold.corpus.table import Corpus

    opened = Corpus.open(corpus)
    classes = read_classes(hierarchy) if hierarchy else None
    with progress("closing labels"):
        closed, result = library.close(opened, votes=votes, tag=tag, hierarchy=classes)

    def render(r: library.Closing) -> None:
        h = r.hierarchy
        print("labels are closed" if r.changed else "labels were closed already; nothing to do")
        print(f"  state        {r.tag}  {r.digest[:19]}…")
        print(
            f"  hierarchy    {h.classes:,} classes, depth {h.depth} ({h.deepest}), at most {h.fan_out:,} children "
            f"({h.widest}), {h.several_parents:,} with several parents"
        )
        before, after = (n / max(r.images, 1) for n in (r.labels_before, r.labels_after))
        print(
            f"  labels       {r.labels_before:,} -> {r.labels_after:,}  ({before:.2f} -> {after:.2f} an image, "
            f"votes={r.votes})"
        )
        gains = sorted(r.per_class.items(), key=lambda item: (item[1][0] - item[1][1], item[0]))
        print(f"  {'class':<40}{'before':>12}{'after':>12}   (images; the classes that gained most)")
        for name, (was, now) in gains[:10]:
            title = closed.classes.titles[closed.classes.index(name)]
            shown = name if title == name else f"{title} ({name})"
            print(f"  {shown[:39]:<40}{was:>12,}{now:>12,}")
        if len(gains) > 10:
            print(f"  … {len(gains) - 10:,} more classes: --json has all")

    emit(result, as_json, render)


@corpus_app.command()
def subset(
    corpus: CorpusArgument,
    to: Annotated[str, typer.Option(help="Folder or s3:// address of the new corpus.")],
    n: Annotated[int | None, typer.Option(min=1, help="How many images: the first n in random order.")] = None,
    classes_file: Annotated[
        str, typer.Option(help="Keep only images and labels of these classes: names, one a line, or JSON.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Copy a part of a corpus to a corpus of its own (D-12, D-13). Verbs that take --n need no copy."""
    from tenfold.corpus import subset as library
    from tenfold.corpus.table import Corpus

    opened = Corpus.open(corpus)
    names = library.read_names(classes_file) if classes_file else None
    with progress("copying images", n or opened.rows) as advance:
        made = library.subset(opened, to, n=n, classes=names, advance=advance)

    def render(facts: dict[str, Any]) -> None:
        print(f"{made.uri}: {facts['rows']:,} of {opened.rows:,} images, {facts['labels']:,} labels")
        print(f"  {facts['classes']:,} classes, digest {facts['digest'][:19]}…")

    emit({"uri": made.uri, "digest": made.digest, **made.manifest.facts}, as_json, render)


@corpus_app.command()
def report(
    corpus: CorpusArgument,
    out: Annotated[
        str, typer.Option(help="The HTML file to write; the numbers go to .json beside it.")
    ] = "report.html",
    as_json: JsonFlag = False,
) -> None:
    """Write a self-contained HTML report: what a corpus is, its labels, tail, classes, sizes, quarantine, states."""
    from tenfold.corpus import report as library
    from tenfold.corpus.table import Corpus

    opened = Corpus.open(corpus)
    with progress("writing the report"):
        result = library.report(opened, out)

    def render(r: library.Report) -> None:
        print(r.sentence)
        print(f"  {r.html}\n  {r.json_}")

    emit(result, as_json, render)
