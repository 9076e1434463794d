"""`tenfold fetch NAME`: a source of images and labels onto this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenfold.cli.common import JsonFlag, emit, progress
from tenfold.errors import InputError


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="cifar10n, lmo, coco2017, voc2012 or imagenet.", show_default=False)
    ] = None,
    to: Annotated[str, typer.Option(help="Folder of sources; the source becomes TO/NAME.")] = "data",
    from_dir: Annotated[
        str | None,
        typer.Option("--from", help="Take an official folder as it is, or a folder with the source's archives."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check a source that is there file by file.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Say which sources there are.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a source of images and labels: download, check, unpack; instant when it is there.

    Archives are kept in $TENFOLD_CACHE (~/.cache/tenfold), so a second checkout downloads nothing.
    """
    from tenfold.corpus import sources

    if listing:
        emit([_summary(sources.spec(one)) for one in sources.NAMES], as_json, _render_list)
        return
    if name is None:
        raise InputError("which source?", f"name one of: {', '.join(sources.NAMES)}; `tenfold fetch --list` says more")
    result = sources.fetch(name, to, from_dir=from_dir, offline=offline, verify=verify, bars=progress)
    emit(result, as_json, _render)


def _summary(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "licence": spec.licence,
        "disk_bytes": spec.disk,
        "places": [str(place) for archive in spec.archives for place in archive.places],
    }


def _render_list(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(f"{row['name']:<10}{row['title']:<40}{row['disk_bytes'] / 1e9:>7.1f} GB  {row['licence']}")


def _render(result: Any) -> None:
    done = {"fetched": "fetched", "adopted": "adopted", "present": "is there and whole"}[result.status]
    print(f"{result.name} {done}: {result.path} ({result.seconds:.1f} s)")
    rows = ", ".join(f"{split} {count:,}" for split, count in result.splits.items())
    print(f"  images   {rows}; {result.classes:,} classes; {result.bytes / 1e6:,.1f} MB")
    print(f"  digest   {result.digest}")
    for part, attempts in result.tried.items():
        *failed, last = attempts
        print(f"  {part:<12} {last['place']}: {last['answer']}")
        for attempt in failed:
            print(f"    before that {attempt['place']}: {attempt['answer']}")
    for note in result.notes:
        print(f"  note     {note}")
    print(f"  card     {result.path}/card.md")
