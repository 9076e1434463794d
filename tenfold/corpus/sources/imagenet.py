"""ImageNet (ILSVRC 2012): 1,000 classes below a WordNet hierarchy of 1,860 synsets.

    train/n01440764/*.JPEG …       1,281,167 images by synset
    val/ILSVRC2012_val_*.JPEG      50,000 images; labels in the development kit (or folders by synset, as many keep it)
    ILSVRC2012_devkit_t12/data/    meta.mat (synsets and hierarchy), ILSVRC2012_validation_ground_truth.txt

ImageNet is given only to people who log in and accept its terms, so nothing is downloaded: the three archives are taken
from where the user put them, or an unpacked folder is adopted.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.corpus.sources.base import Record, Source
from tenfold.corpus.sources.card import Card
from tenfold.corpus.sources.folders import FolderSource, digest_records
from tenfold.corpus.sources.places import Archive, Obtained, Place
from tenfold.corpus.sources.spec import Bars, Built, Spec
from tenfold.corpus.sources.unpack import unpack
from tenfold.corpus.table import Classes
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest, digest_json

SPLITS = ("train", "val")
DEVKIT = "ILSVRC2012_devkit_t12"
PAGE = "https://image-net.org/download-images"
ARCHIVES = (
    Archive(
        "train",
        "the training images (ImageNet)",
        (
            Place(
                "login",
                PAGE,
                "ILSVRC2012_img_train.tar",
                md5="1d675b47d978889d74fa0da5fadfb00e",
                size=147_897_477_120,
            ),
        ),
    ),
    Archive(
        "val",
        "the validation images (ImageNet)",
        (Place("login", PAGE, "ILSVRC2012_img_val.tar", md5="29b22e2961454d5413ddabcf34fc5622", size=6_744_924_160),),
    ),
    Archive(
        "devkit",
        "the development kit (ImageNet)",
        (Place("login", PAGE, f"{DEVKIT}.tar.gz", md5="fa75699e90414af021442c21a62c3abf"),),
    ),
)
LOGIN = f"""ImageNet is given only to people who accept its terms, so this part is yours:
    1. log in (or sign up) at {PAGE} and choose ILSVRC 2012
    2. download the training images (task 1 and 2, 138 GB), the validation images (6.3 GB) and the development kit
       (task 1 and 2): ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, {DEVKIT}.tar.gz
    3. put the three files into {{cache}} and run `tenfold fetch imagenet` again,
       or leave them where they are and add `--from FOLDER`
    Unpacked already? `tenfold fetch imagenet --from FOLDER` adopts a folder with train/n01440764/*.JPEG … and val/."""
CARD = Card(
    what="Photographs of widely different sizes (400x350 px on average), each with one of 1,000 classes.",
    origin="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015; Deng et al., CVPR 2009.",
    licence="For non-commercial research and education, under ImageNet's terms of access; the images belong to others.",
    labels="Images were found by searching the web for a synset's words, then accepted or refused by several workers "
    "of a crowd-sourcing market. One label an image, `votes` 1. Classes are WordNet synsets, with all the inner nodes "
    "of the development kit's hierarchy as their ancestors.",
    splits="The official training and validation sets (D-18). The test labels were never published.",
    faults=(
        "One label an image, though many images show things of several classes.",
        "About 6 % of the validation labels are wrong or ambiguous (Northcutt et al., 2021).",
        "890 validation images have near-duplicates in the training set (D-14).",
        "One training file is a PNG by content (n02105855_2933.JPEG) and 22 are CMYK; ingest takes both.",
    ),
)


@dataclass(frozen=True)
class Synset:
    """A node of the hierarchy: number in the challenge (1 to 1000 are the classes), synset id, words, children."""

    number: int
    name: str
    words: str
    children: tuple[int, ...]


def build(parts: dict[str, Obtained], into: Path, bars: Bars) -> Built:
    """Unpack the three archives; the training archive is a tar of one tar a class."""
    total = sum(part.path.stat().st_size for part in parts.values())
    with bars("unpacking, MB", total / 1e6) as advance:
        unpack(parts["devkit"].path, into, lambda name: name if "/data/" in name else None)
        unpack(parts["val"].path, into, lambda name: f"val/{name}", lambda count: advance(count / 1e6, "val"))
        _unpack_classes(parts["train"].path, into / "train", lambda count, note: advance(count / 1e6, note))
    return _describe(into)


def adopt(folder: Path) -> Built:
    """Take an unpacked folder as it is; without the development kit the classes have no hierarchy."""
    return _describe(folder)


def _unpack_classes(archive: Path, into: Path, advance: Any) -> None:
    try:
        with tarfile.open(archive, "r:") as outer:
            for member in outer:
                name = Path(member.name).stem
                if not (member.isfile() and member.name.endswith(".tar") and (inner := outer.extractfile(member))):
                    continue
                (into / name).mkdir(parents=True)
                with tarfile.open(fileobj=inner, mode="r|") as images:
                    for image in images:
                        if image.isfile() and (data := images.extractfile(image)):
                            (into / name / Path(image.name).name).write_bytes(data.read())
                advance(member.size, name)
    except (tarfile.TarError, EOFError) as error:
        raise StorageError(f"{archive.name} cannot be read: {error}", "download it again") from None


def _describe(folder: Path) -> Built:
    there = [split for split in SPLITS if (folder / split).is_dir()]
    if not there:
        raise InputError(
            f"{folder} is no ImageNet folder: neither train/ nor val/ in it", "pass the folder around them"
        )
    synsets = _synsets(folder)
    found = {split: digest_records(_records(folder, split, synsets), folder) for split in there}
    notes = [f"{split}/ is not there" for split in SPLITS if split not in there]
    if not synsets:
        notes.append(f"{DEVKIT} is not there, so the classes have synset ids for names and no hierarchy")
    return Built(
        splits={split: count for split, (count, _) in found.items()},
        digest=digest_json({split: digest for split, (_, digest) in found.items()}),
        classes=_classes(folder, there, synsets),
        notes=tuple(notes),
        folders=(*there, *([DEVKIT] if (folder / DEVKIT).is_dir() else [])),
    )


def _synsets(folder: Path) -> list[Synset]:
    """The hierarchy out of the development kit's `meta.mat`; empty where it is not there."""
    path = folder / DEVKIT / "data" / "meta.mat"
    if not path.is_file():
        return []
    import numpy as np
    import scipy.io

    try:
        table = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)["synsets"])
        return [
            Synset(
                int(row["ILSVRC2012_ID"]),
                str(row["WNID"]),
                str(row["words"]),
                tuple(int(child) for child in np.atleast_1d(row["children"])[: int(row["num_children"])]),
            )
            for row in table
        ]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path} is not the development kit's: {error}", "unpack the development kit anew") from None


def _classes(folder: Path, there: list[str], synsets: list[Synset]) -> Classes:
    """The classes by synset id (the field's usual order 0 to 999), then the inner nodes by synset id."""
    if not synsets:
        names = {entry.name for split in there for entry in os.scandir(folder / split) if entry.is_dir()}
        return Classes.flat(sorted(names))
    ordered = sorted((s for s in synsets if not s.children), key=lambda s: s.name)
    ordered += sorted((s for s in synsets if s.children), key=lambda s: s.name)
    index = {synset.number: i for i, synset in enumerate(ordered)}
    parents: list[list[int]] = [[] for _ in ordered]
    for i, synset in enumerate(ordered):
        for child in synset.children:
            parents[index[child]].append(i)
    return Classes(
        tuple(synset.name for synset in ordered),
        tuple(synset.words.split(",")[0] for synset in ordered),
        tuple(tuple(sorted(above)) for above in parents),
    )


def _records(folder: Path, split: str, synsets: list[Synset]) -> Iterator[Record]:
    """Images by synset folder, or the flat validation images with the development kit's labels."""
    with os.scandir(folder / split) as entries:
        below = sorted(entries, key=lambda entry: entry.name)
    by_synset = [entry.name for entry in below if entry.is_dir()]
    for synset in by_synset:
        for name in sorted(os.listdir(folder / split / synset)):
            file = f"{split}/{synset}/{name}"
            yield Record(file, folder / file, [synset], [1.0])
    if by_synset:
        return
    truth = folder / DEVKIT / "data" / "ILSVRC2012_validation_ground_truth.txt"
    if not (synsets and truth.is_file()):
        raise InputError(
            f"{folder / split} is flat, and {DEVKIT}/data with its labels is not beside it",
            f"unpack {DEVKIT}.tar.gz into {folder}",
        )
    numbers = [int(line) for line in truth.read_text().split()]
    images = [entry.name for entry in below if entry.is_file()]
    if len(images) != len(numbers):
        raise InputError(f"{folder / split} has {len(images):,} images, {truth.name} {len(numbers):,} labels", "")
    names = {synset.number: synset.name for synset in synsets}
    for name, number in zip(images, numbers, strict=True):
        file = f"{split}/{name}"
        yield Record(file, folder / file, [names[number]], [1.0])


class ImageNetSource(FolderSource):
    """ImageNet (ILSVRC 2012); splits `train` and `val`."""

    def records(self, split: str) -> Iterator[Record]:
        """Images in order of synset and file name."""
        yield from _records(self.data, self.check_split(split), _synsets(self.data))


def read(root: str, manifest: Manifest) -> Source:
    """The source at `root`."""
    return ImageNetSource(root, manifest)


SPEC = Spec(
    name="imagenet",
    title="ImageNet (ILSVRC 2012)",
    licence="ImageNet's terms of access: non-commercial research and education",
    archives=ARCHIVES,
    card=CARD,
    build=build,
    read=read,
    adopt=adopt,
    disk=155_000_000_000,
    login=LOGIN,
)
