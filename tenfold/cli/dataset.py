"""`tenfold dataset convert|info|check|draw`: annotated images for detection, segmentation, pose and classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.common import JsonFlag, emit, progress
from tenfold.errors import InputError

if TYPE_CHECKING:
    from tenfold.transfer.data.reader import Reader

dataset_app = typer.Typer(name="dataset", no_args_is_help=True, help="Annotated data sets: convert, check, look.")

SourceArgument = Annotated[
    str | None,
    typer.Argument(help="A fetched source: data/lmo, data/coco2017, data/voc2012, data/imagenet.", show_default=False),
]
CocoOption = Annotated[
    list[str] | None, typer.Option("--coco", help="COCO JSON, [SPLIT=]FILE; once a split.", show_default=False)
]
ImagesOption = Annotated[
    list[str] | None,
    typer.Option("--images", help="Folder of images for --coco, [SPLIT=]DIR; once a split.", show_default=False),
]
VocOption = Annotated[
    str | None, typer.Option("--voc", help="A VOC folder (with JPEGImages) of any year.", show_default=False)
]
FolderOption = Annotated[
    str | None, typer.Option("--folder", help="A folder of SPLIT/CLASS/image; labels only.", show_default=False)
]
KindOption = Annotated[
    str | None,
    typer.Option(help="coco2017: instances or keypoints; VOC: detection or segmentation.", show_default=False),
]
PaintOption = Annotated[bool, typer.Option("--paint", help="COCO: make class maps of the masks, for segmentation.")]
SplitsOption = Annotated[str | None, typer.Option(help="Only these splits, separated by commas.", show_default=False)]
DatasetArgument = Annotated[str, typer.Argument(help="A folder that `convert` wrote (a path or s3://…).")]


def _reader(
    source: str | None,
    coco: list[str] | None,
    images: list[str] | None,
    voc: str | None,
    folder: str | None,
    kind: str | None,
    paint: bool,
) -> Reader:
    """The one reader that the options name."""
    from pathlib import Path

    from tenfold.transfer.data import check

    if sum(value is not None for value in (source, coco or None, voc, folder)) != 1:
        raise InputError("name one input", "pass a source's folder, or one of --coco with --images, --voc, --folder")
    if coco:
        files, folders = _by_split("--coco", coco), _by_split("--images", images or [])
        if files.keys() != folders.keys():
            raise InputError(
                f"--coco is for {', '.join(files)}, --images for {', '.join(folders) or 'no split'}",
                "give both once for each split: --coco val=FILE --images val=DIR",
            )
        if kind:
            raise InputError("--kind does not go with --coco", "the annotations say what they are")
        return check.open_coco({s: (files[s], folders[s]) for s in files}, Path(coco[0]).stem, paint)
    if images:
        raise InputError("--images goes with --coco only", "leave it away")
    if voc:
        return check.open_voc(voc, kind, Path(voc).resolve().name.lower())
    if folder:
        from tenfold.transfer.data.imagenet import FolderReader

        return FolderReader(Path(folder))
    return check.open_source(str(source), kind, paint)


def _by_split(option: str, values: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        split, equals, path = value.partition("=")
        split, path = (split, path) if equals else ("train", value)
        if not split.isidentifier() or split in found:
            raise InputError(f"{option} {value}: the split {split!r} is given twice or no plain word", "write val=PATH")
        found[split] = path
    return found


@dataset_app.command()
def convert(
    source: SourceArgument = None,
    to: Annotated[str, typer.Option("--to", help="Folder of the data set (a path or s3://…).")] = "",
    coco: CocoOption = None,
    images: ImagesOption = None,
    voc: VocOption = None,
    folder: FolderOption = None,
    kind: KindOption = None,
    paint: PaintOption = False,
    splits: SplitsOption = None,
    max_side: Annotated[int, typer.Option(min=0, help="Scale down to this longest side, px. 0: never.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing where any annotation is faulty.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished data set.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert annotated images into a data set: one table a split, in random order.

    Faulty annotations are left out and counted; `tenfold dataset check` names each.
    """
    from tenfold import storage
    from tenfold.transfer.data.faults import Faults
    from tenfold.transfer.data.write import write_dataset

    if not to:
        raise InputError("where to?", "pass --to FOLDER")
    storage.preflight(storage.normalise(to))
    reader, faults = _reader(source, coco, images, voc, folder, kind, paint), Faults()
    stated = {"source": source, "coco": coco, "images": images, "voc": voc, "folder": folder, "kind": kind}
    written = write_dataset(
        to,
        reader,
        faults=faults,
        splits=splits.split(",") if splits else None,
        max_side=max_side,
        strict=strict,
        overwrite=overwrite,
        recipe={name: value for name, value in stated.items() if value} | {"paint": paint},
        bars=progress,
    )
    emit(written.manifest, as_json, _show)
    if faults.total and not as_json:
        print(f"  {faults.total:,} faults, the first: {faults.found[0]}")


@dataset_app.command()
def info(dataset: DatasetArgument, as_json: JsonFlag = False) -> None:
    """Say what a data set holds."""
    from tenfold.transfer.data.table import Dataset

    emit(Dataset.open(dataset).manifest, as_json, _show)


def _show(manifest: Any) -> None:
    facts = manifest.facts
    print(f"{facts['name']}: {manifest.uri}")
    for split, rows in facts["splits"].items():
        counts = facts["counts"][split]
        extra = [f"{counts[name]:,} {name}" for name in ("crowds", "difficult") if counts[name]]
        empty = f", {counts['images without annotation']:,} images without annotation"
        print(f"  {split:<8}{rows:>9,} images, {counts['objects']:,} objects{empty}", *extra, sep=", " if extra else "")
    names = facts["categories"]
    print(f"  has     {', '.join(facts['has'])}")
    print(f"  {len(names):,} categories: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}")
    if facts["keypoints"]:
        print(f"  {len(facts['keypoints'])} keypoints: {', '.join(facts['keypoints'])}")
    if facts["faults"]:
        print(f"  faults  {', '.join(f'{count:,} {kind}' for kind, count in facts['faults'].items())}")
    print(f"  split   {facts['protocol']}")
    print(f"  {manifest.digest}")


@dataset_app.command()
def check(
    source: SourceArgument = None,
    coco: CocoOption = None,
    images: ImagesOption = None,
    voc: VocOption = None,
    folder: FolderOption = None,
    kind: KindOption = None,
    splits: SplitsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List every fault of annotated images, by file and id, with its cure; writes nothing. Exit code 2 for any."""
    from tenfold.transfer.data.check import check as look

    found = look(
        _reader(source, coco, images, voc, folder, kind, False), splits.split(",") if splits else None, progress
    )
    emit(found, as_json, _show_checked)
    if found.faults:
        raise typer.Exit(2)


def _show_checked(found: Any) -> None:
    for split, rows in found.images.items():
        print(
            f"{found.name} {split}: {rows:,} images, {found.objects[split]:,} objects, "
            f"{found.negatives[split]:,} images without annotation"
        )
    for fault in found.faults:
        print(f"  {fault}")
    print(f"{len(found.faults):,} faults" + "".join(f"; {count:,} {kind}" for kind, count in found.counts.items()))


@dataset_app.command()
def draw(
    dataset: DatasetArgument,
    out: Annotated[str, typer.Option("--out", help="Where to, a .png.")],
    split: Annotated[str, typer.Option(help="Which split.")] = "train",
    n: Annotated[int, typer.Option("--n", min=1, help="How many images.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Draw others than the first n.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw images with their boxes, masks and keypoints (filled: visible, hollow: hidden)."""
    from tenfold.transfer.data.draw import contact_sheet
    from tenfold.transfer.data.table import Dataset

    drawn = contact_sheet(Dataset.open(dataset), split, out, n, seed=seed)
    emit({"out": out, "images": drawn}, as_json, lambda result: print(f"{result['images']} images on {result['out']}"))
