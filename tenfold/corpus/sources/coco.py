"""COCO 2017: everyday scenes with objects of 80 categories in 12 groups.

    annotations/instances_train2017.json …   the official annotations
    train2017/*.jpg, val2017/*.jpg           118,287 and 5,000 photographs

Labels are the categories of an image's instances, crowds included; classes are the categories by their id, and the
groups (COCO's supercategories) as their parents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tenfold.corpus.sources.base import Record, Source
from tenfold.corpus.sources.card import Card
from tenfold.corpus.sources.folders import FolderSource, digest_records, unpack_all
from tenfold.corpus.sources.jsons import elements
from tenfold.corpus.sources.places import Archive, Obtained, Place
from tenfold.corpus.sources.spec import Bars, Built, Spec
from tenfold.corpus.table import Classes
from tenfold.errors import InputError
from tenfold.manifest import Manifest, digest_json

SPLITS = ("train", "val")
HOST = "http://images.cocodataset.org"  # its https certificate is another host's; the digests vouch for the content
ARCHIVES = (
    Archive(
        "train",
        "the training images (COCO 2017)",
        (
            Place(
                "http",
                f"{HOST}/zips/train2017.zip",
                "train2017.zip",
                sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                size=19_336_861_798,
            ),
        ),
    ),
    Archive(
        "val",
        "the validation images (COCO 2017)",
        (
            Place(
                "http",
                f"{HOST}/zips/val2017.zip",
                "val2017.zip",
                sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                size=815_585_330,
            ),
        ),
    ),
    Archive(
        "annotations",
        "the annotations (COCO 2017)",
        (
            Place(
                "http",
                f"{HOST}/annotations/annotations_trainval2017.zip",
                "annotations_trainval2017.zip",
                sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                size=252_907_541,
            ),
        ),
    ),
)
CARD = Card(
    what="Photographs of everyday scenes, about 640 px on the long side, with every object of 80 categories outlined.",
    origin="Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014; images from Flickr.",
    licence="Annotations: CC BY 4.0. Images: the Flickr licence of each, listed in the annotation files; COCO does not "
    "own them.",
    labels="Workers of a crowd-sourcing market named the categories in an image, marked each instance, and outlined "
    "it. `labels` are the categories with at least one instance (crowd regions count), `votes` are 1. Each category "
    "has a group (supercategory) as its parent class; `person` is its own group.",
    splits="The official split. The paper's minival* (8,000 held-out images) is another one (D-19).",
    faults=(
        "Not every instance is annotated, above all in crowds and where objects are small; about 1 % of the images "
        "carry no annotation at all and so no label.",
        "Outlines are coarse polygons, in particular for crowds.",
        "A few training images are near-duplicates of validation images: use the duplicate gate.",
    ),
)


def build(parts: dict[str, Obtained], into: Path, bars: Bars) -> Built:
    """Unpack all three archives as they are."""
    unpack_all(parts, into, bars, {})
    return _describe(into)


def adopt(folder: Path) -> Built:
    """Take a folder with COCO's layout as it is; one split is enough."""
    return _describe(folder)


def _describe(folder: Path) -> Built:
    there = [split for split in SPLITS if _annotations(folder, split).is_file()]
    if not there:
        raise InputError(
            f"{folder} is no COCO 2017 folder: no annotations/instances_train2017.json or …_val2017.json",
            "pass the folder that holds annotations/, train2017/ and val2017/",
        )
    splits, digests, classes = {}, {}, Classes.flat([])
    for split in there:
        images, masks, categories = _read(_annotations(folder, split))
        classes = _classes(categories)
        splits[split], digests[split] = digest_records(_records(folder, split, images, masks, categories), folder)
    return Built(
        splits=splits,
        digest=digest_json(digests),
        classes=classes,
        notes=tuple(f"{split}2017 is not there" for split in SPLITS if split not in there),
        folders=("annotations", *(f"{split}2017" for split in there)),
    )


def _annotations(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}2017.json"


Categories = dict[int, tuple[str, str]]  # id: (name, supercategory)


def _read(path: Path) -> tuple[dict[int, str], dict[int, int], Categories]:
    """File names by image id, categories by image id as bits (bit i: category id i), and the categories.

    One pass in bounded memory: the annotations of an image lie anywhere in the file, but one number holds its labels.
    """
    images: dict[int, str] = {}
    masks: dict[int, int] = {}
    categories: Categories = {}
    try:
        for key, value in elements(path):
            if key == "annotations":
                image = value["image_id"]
                masks[image] = masks.get(image, 0) | 1 << value["category_id"]
            elif key == "images":
                images[value["id"]] = value["file_name"]
            elif key == "categories":
                categories[value["id"]] = (value["name"], value.get("supercategory") or value["name"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not in COCO's form: {error} is missing", "fetch it anew") from None
    return images, masks, dict(sorted(categories.items()))


def _classes(categories: Categories) -> Classes:
    """The categories in order of id, then the groups by name; a group named like a category is that category."""
    names = [name for name, _ in categories.values()]
    groups = sorted({group for _, group in categories.values()} - set(names))
    index = {name: i for i, name in enumerate([*names, *groups])}
    parents = tuple((index[group],) if group != name else () for name, group in categories.values())
    every = (*names, *groups)
    return Classes(every, every, (*parents, *((),) * len(groups)))


def _records(
    folder: Path, split: str, images: dict[int, str], masks: dict[int, int], categories: Categories
) -> Iterator[Record]:
    unknown = sum(1 for image in masks if image not in images)
    if unknown:
        raise InputError(f"{_annotations(folder, split)} annotates {unknown} images that it does not list", "")
    for image, name in sorted(images.items()):
        mask = masks.get(image, 0)
        labels = [category for i, (category, _) in categories.items() if mask >> i & 1]
        file = f"{split}2017/{name}"
        yield Record(file, folder / file, labels, [1.0] * len(labels))


class CocoSource(FolderSource):
    """COCO 2017; splits `train` and `val`."""

    def records(self, split: str) -> Iterator[Record]:
        """Images in order of their id; images without annotation come without labels."""
        images, masks, categories = _read(_annotations(self.data, self.check_split(split)))
        for record in _records(self.data, split, images, masks, categories):
            yield self.checked(record)


def read(root: str, manifest: Manifest) -> Source:
    """The source at `root`."""
    return CocoSource(root, manifest)


SPEC = Spec(
    name="coco2017",
    title="COCO 2017",
    licence="annotations CC BY 4.0; images under their Flickr licences",
    archives=ARCHIVES,
    card=CARD,
    build=build,
    read=read,
    adopt=adopt,
    disk=21_000_000_000,
)
