"""Pascal VOC 2012: photographs with objects of 20 classes.

    VOCdevkit/VOC2012/{JPEGImages,Annotations,ImageSets,SegmentationClass,SegmentationObject}   the official layout

Splits are those of `ImageSets/Main` (classification and detection). Labels are the classes of an image's objects, also
where the only object of a class is marked difficult: it is there, and an absent label counts as a negative (D-11).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from tenfold.corpus.sources.base import Record, Source
from tenfold.corpus.sources.card import Card
from tenfold.corpus.sources.folders import FolderSource, digest_records, unpack_all
from tenfold.corpus.sources.places import Archive, Obtained, Place
from tenfold.corpus.sources.spec import Bars, Built, Spec
from tenfold.corpus.table import Classes
from tenfold.errors import InputError
from tenfold.manifest import Manifest, digest_json

SPLITS = ("train", "val")
GROUPS = {  # the challenge's own grouping of its classes; person stands alone
    "animal": ("bird", "cat", "cow", "dog", "horse", "sheep"),
    "indoor": ("bottle", "chair", "diningtable", "pottedplant", "sofa", "tvmonitor"),
    "vehicle": ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
}
BASE = "VOCdevkit/VOC2012"
ARCHIVES = (
    Archive(
        "trainval",
        "images and annotations (Pascal VOC 2012)",
        (
            Place(
                "http",
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "VOCtrainval_11-May-2012.tar",
                sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                size=1_999_639_040,
            ),
        ),
    ),
)
CARD = Card(
    what="Photographs of up to 500 px with all objects of 20 classes boxed; some of them also segmented.",
    origin="Everingham et al., The Pascal Visual Object Classes Challenge 2012; images from Flickr.",
    licence="Use of the images must respect Flickr's terms of use; the challenge states no licence of its own.",
    labels="Annotators boxed every object of the 20 classes after written guidelines. `labels` are the classes with at "
    "least one object, `votes` are 1; a class also counts where its only object is marked difficult.",
    splits="The official train and val of the classification and detection tasks (11,540 images together). The "
    "segmentation splits (`ImageSets/Segmentation`, 1,464 and 1,449 images) are other ones and overlap with these "
    "(D-21).",
    faults=(
        "Some objects are unannotated, mostly small or occluded ones.",
        "The test labels were never published; the paper tests detection on VOC 2007 (D-20).",
        "VOC 2012 contains the images of VOC 2008 to 2011: a model trained on those has seen them.",
    ),
)


def build(parts: dict[str, Obtained], into: Path, bars: Bars) -> Built:
    """Unpack the archive as it is."""
    unpack_all(parts, into, bars, {})
    return _describe(into, BASE)


def adopt(folder: Path) -> Built:
    """Take `VOC2012`, or a folder around it, as it is."""
    for base in ("", "VOC2012", BASE):
        if (folder / base / "ImageSets" / "Main").is_dir():
            return _describe(folder, base)
    raise InputError(
        f"{folder} is no VOC folder: no ImageSets/Main in it, in VOC2012/ or in {BASE}/",
        "pass the folder that holds JPEGImages/, Annotations/ and ImageSets/",
    )


def _describe(folder: Path, base: str) -> Built:
    data = folder / base
    there = [split for split in SPLITS if _listing(data, split).is_file()]
    if not there:
        raise InputError(f"{data}/ImageSets/Main holds neither train.txt nor val.txt", "pass the whole VOC2012 folder")
    found = {split: digest_records(_records(data, split), data) for split in there}
    folders = ("JPEGImages", "Annotations", "ImageSets", "SegmentationClass", "SegmentationObject")
    return Built(
        splits={split: count for split, (count, _) in found.items()},
        digest=digest_json({split: digest for split, (_, digest) in found.items()}),
        classes=classes(),
        facts={"base": base},
        notes=tuple(f"ImageSets/Main/{split}.txt is not there" for split in SPLITS if split not in there),
        folders=tuple(f"{base}/{name}".lstrip("/") for name in folders if (data / name).is_dir()),
    )


def classes() -> Classes:
    """The 20 classes by name, then the three groups."""
    names = sorted((*(name for members in GROUPS.values() for name in members), "person"))
    every = (*names, *GROUPS)
    parents = [tuple(every.index(group) for group, members in GROUPS.items() if name in members) for name in every]
    return Classes(every, every, tuple(parents))


def _listing(data: Path, split: str) -> Path:
    return data / "ImageSets" / "Main" / f"{split}.txt"


def _records(data: Path, split: str) -> Iterator[Record]:
    known = {name for members in GROUPS.values() for name in members} | {"person"}
    for line in _listing(data, split).read_text().splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        path = data / "Annotations" / f"{name}.xml"
        try:
            objects = ET.parse(path).getroot().findall("object")  # not .iter(): parts of a body are nested objects
        except (OSError, ET.ParseError) as error:
            raise InputError(f"{path} cannot be read: {error}", "fetch VOC 2012 anew") from None
        labels = sorted({(thing.findtext("name") or "").strip() for thing in objects})
        if strange := set(labels) - known:
            raise InputError(f"{path} names {sorted(strange)[0]!r}, which is no class of VOC 2012", "check the folder")
        file = f"JPEGImages/{name}.jpg"
        yield Record(file, data / file, labels, [1.0] * len(labels))


class VocSource(FolderSource):
    """Pascal VOC 2012; splits `train` and `val`."""

    def records(self, split: str) -> Iterator[Record]:
        """Images in the order of the official lists."""
        for record in _records(self.data, self.check_split(split)):
            yield self.checked(record)


def read(root: str, manifest: Manifest) -> Source:
    """The source at `root`."""
    return VocSource(root, manifest)


SPEC = Spec(
    name="voc2012",
    title="Pascal VOC 2012",
    licence="Flickr's terms of use for the images",
    archives=ARCHIVES,
    card=CARD,
    build=build,
    read=read,
    adopt=adopt,
    disk=2_100_000_000,
)
