"""Which reader reads what a person names, and a look at everything without writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from pydantic import BaseModel, ConfigDict

from tenfold.corpus import sources
from tenfold.corpus.sources.spec import Bars, no_bars
from tenfold.errors import InputError
from tenfold.transfer.data.faults import Fault, Faults
from tenfold.transfer.data.reader import Reader
from tenfold.transfer.data.write import scan

KINDS = {"coco2017": ("instances", "keypoints"), "voc2012": ("detection", "segmentation")}


def open_source(path: str, kind: str | None = None, paint: bool = False) -> Reader:
    """The reader of a fetched source.

    Args:
        path: of the source (`data/lmo`).
        kind: coco2017: instances (default) or keypoints; voc2012: detection (default) or segmentation.
        paint: see CocoReader.
    """
    source = sources.open_source(path)
    kinds = KINDS.get(source.name, ())
    if kind is not None and kind not in kinds:
        cure = f"choose one of: {', '.join(kinds)}" if kinds else "leave --kind away"
        raise InputError(f"{source.name} has no kind {kind!r}", cure)
    inputs = (source.manifest.digest,)
    if source.name == "lmo":
        from tenfold.transfer.data.lmo import LmoReader

        return LmoReader(source)
    if source.name == "imagenet":
        from tenfold.transfer.data.imagenet import ImageNetReader

        return ImageNetReader(source)
    if source.name == "coco2017":
        from tenfold.transfer.data.coco import CocoReader

        data = source.data  # type: ignore[attr-defined]
        start = "person_keypoints" if kind == "keypoints" else "instances"
        files = {s: (data / "annotations" / f"{start}_{s}2017.json", data / f"{s}2017") for s in source.splits}
        return CocoReader(
            f"coco2017-{kind or 'instances'}", files, paint=paint, protocol="the official split (D-19)", inputs=inputs
        )
    if source.name == "voc2012":
        return open_voc(str(source.data), kind, name="voc2012", inputs=inputs)  # type: ignore[attr-defined]
    raise InputError(
        f"{source.name} is no data set with annotations",
        "make a corpus of it (`tenfold corpus ingest`), which serves classification directly",
    )


def open_voc(folder: str, kind: str | None = None, name: str = "voc", inputs: tuple[str, ...] = ()) -> Reader:
    """The reader of a VOC folder of any year."""
    from tenfold.transfer.data.voc import Kind, VocReader

    if kind not in (None, *get_args(Kind)):
        raise InputError(f"VOC has no kind {kind!r}", f"choose one of: {', '.join(get_args(Kind))}")
    return VocReader(Path(folder), cast(Kind, kind or "detection"), name=f"{name}-{kind or 'detection'}", inputs=inputs)


def open_coco(files: Mapping[str, tuple[str, str]], name: str = "coco", paint: bool = False) -> Reader:
    """The reader of COCO JSON; `files` hold annotation file and folder of images by split."""
    from tenfold.transfer.data.coco import CocoReader

    for listed, images in files.values():
        if not Path(listed).is_file():
            raise InputError(f"there is no file {listed}", "pass the annotation file in COCO's form")
        if not Path(images).is_dir():
            raise InputError(f"there is no folder {images}", "pass the folder that file_name counts from")
    return CocoReader(name, {s: (Path(a), Path(i)) for s, (a, i) in files.items()}, paint=paint)


class Checked(BaseModel):
    """What a look at everything found.

    Attributes:
        name: of the data set.
        images: that can be used, by split.
        objects: that can be used, by split.
        negatives: images without any annotation, by split; they are kept.
        crowds: objects that are crowds; they are kept as such.
        counts: faults by kind.
        faults: every fault.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    images: dict[str, int]
    objects: dict[str, int]
    negatives: dict[str, int]
    crowds: int
    counts: dict[str, int]
    faults: list[Fault]


def check(reader: Reader, splits: list[str] | None = None, bars: Bars = no_bars) -> Checked:
    """Read and decode everything, write nothing, list all faults."""
    faults = Faults(keep=None)
    images, objects, negatives, crowds = {}, {}, {}, 0
    for split in splits or reader.splits:
        if split not in reader.splits:
            raise InputError(f"{reader.about.name} has no split {split!r}", f"choose of: {', '.join(reader.splits)}")
        rows = things = empty = 0
        for _, _, _, found in scan(split, reader, faults, bars):
            rows += 1
            things += len(found)
            empty += not len(found) and not len(found.labels)
            crowds += int(found.crowd.sum())
        images[split], objects[split], negatives[split] = rows, things, empty
    return Checked(
        name=reader.about.name,
        images=images,
        objects=objects,
        negatives=negatives,
        crowds=crowds,
        counts=dict(sorted(faults.counts.items())),
        faults=faults.found,
    )
