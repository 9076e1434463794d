"""`tenfold corpus ingest|info|sample`: from a pile of images to a corpus, and what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.common import JsonFlag, emit, progress

if TYPE_CHECKING:
    from tenfold.corpus.info import Info
    from tenfold.corpus.ingest import IngestReport

corpus_app = typer.Typer(
    help="Curate: ingest, close, gate, subset, report.", no_args_is_help=True, pretty_exceptions_enable=False
)
CorpusArgument = Annotated[str, typer.Argument(help="Corpus folder, CORPUS@TAG for an earlier state, or a manifest.")]


@corpus_app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Class folders, a folder beside --labels, WebDataset shards (.tar), or what `tenfold fetch` wrote.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="The corpus to make: a folder or s3://…")],
    labels: Annotated[
        str | None, typer.Option(help="CSV, JSONL or Parquet with the columns file, labels and, perhaps, votes.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help='JSON list of {"name", "title", "parents"}: order and hierarchy of the classes.')
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a fetched source.")] = "train",
    separator: Annotated[str, typer.Option(help="Between several labels (or votes) in one field of text.")] = ";",
    max_side: Annotated[
        int, typer.Option(help="Largest short side in pixels; larger images are scaled down. 0: never.")
    ] = 340,
    quality: Annotated[int, typer.Option(help="JPEG quality where an image is encoded again.")] = 90,
    max_megapixels: Annotated[float, typer.Option(help="Above this an image is a decompression bomb.")] = 50.0,
    salt: Annotated[str, typer.Option(help="Another salt is another random order of the same images.")] = "tenfold",
    workers: Annotated[int | None, typer.Option(help="Worker processes. Default: as cores and memory allow.")] = None,
    memory: Annotated[float, typer.Option(help="GiB that all processes together may hold.")] = 1.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there and differs.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a corpus of a pile of images. Interrupted, it goes on when it is run again."""
    from pydantic import ValidationError

    from tenfold.corpus.ingest import ingest as run
    from tenfold.corpus.inputs import IngestConfig
    from tenfold.corpus.pictures import PictureConfig
    from tenfold.errors import InputError

    try:
        picture = PictureConfig(max_side=max_side, quality=quality, max_pixels=round(max_megapixels * 1e6))
        config = IngestConfig(
            input=source, labels=labels, classes=classes, split=split, separator=separator, salt=salt, picture=picture
        )
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][-1]).replace("_", "-").replace("max-pixels", "max-megapixels")
        raise InputError(f"{flag}: {first['msg']}", "see `tenfold corpus ingest --help`") from None
    if workers is not None and workers < 1:
        raise InputError(f"--workers: {workers} is no number of processes", "give 1 or more")
    report = run(config, to, workers=workers, memory=memory * 2**30, overwrite=overwrite, bars=progress)
    emit(report, as_json, _show_report)


def _show_report(report: IngestReport) -> None:
    if report.existed:
        print(f"{report.uri} is complete already: {report.rows:,} images.")
    else:
        again = f", going on from {report.resumed:,} finished parts" if report.resumed else ""
        print(f"{report.uri}: {report.rows:,} images in {report.seconds:.1f} s{again}")
    print(f"  {report.labels:,} labels of {report.classes:,} classes, {report.image_bytes / 1e6:,.1f} MB of images")
    if report.repeats:
        print(f"  {report.repeats:,} files had the same bytes as another one; their labels were united")
    if report.quarantined:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.quarantined.items())
        print(f"  {sum(report.quarantined.values()):,} files in quarantine: {reasons}")
    if report.missing:
        print(f"  {report.missing:,} rows of the labels file have no image")
    if report.unlisted:
        print(f"  {report.unlisted:,} files of the folder have no row in the labels file")
    print(f"  {report.digest}")


@corpus_app.command()
def info(corpus: CorpusArgument, as_json: JsonFlag = False) -> None:
    """Say what a corpus holds: rows, classes, labels, sizes, states, quarantine, digest."""
    from tenfold.corpus.info import describe
    from tenfold.corpus.table import Corpus

    emit(describe(Corpus.open(corpus)), as_json, _show_info)


def _show_info(found: Info) -> None:
    for name, value in found.lines():
        print(f"{name:<12}{value}")


@corpus_app.command()
def sample(
    corpus: CorpusArgument,
    out: Annotated[str, typer.Option("--out", help="Where to: a .png or a self-contained .html.")],
    n: Annotated[int, typer.Option("--n", help="The first n images, which are a random sample.")] = 24,
    as_json: JsonFlag = False,
) -> None:
    """Draw a contact sheet of the first n images with their labels."""
    from tenfold.corpus.sheet import contact_sheet
    from tenfold.corpus.table import Corpus

    shown = contact_sheet(Corpus.open(corpus), out, n)
    emit({"out": out, "images": shown}, as_json, lambda result: print(f"{result['images']} images on {result['out']}"))
