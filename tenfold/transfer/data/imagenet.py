"""ImageNet, or any folder of class folders: image-level labels only."""

from __future__ import annotations

import os
from pathlib import Path

from tenfold.corpus.sources import Source
from tenfold.errors import InputError
from tenfold.transfer.data.faults import Faults
from tenfold.transfer.data.reader import About, Item, Reader, gather
from tenfold.transfer.data.table import Annotations

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class LabelReader(Reader):
    """Images with labels; what ImageNetReader and FolderReader share. Image ids are places in the listing."""

    index: dict[str, int]
    labels: dict[str, list[list[int]]]

    def listing(self, split: str) -> list[tuple[str, Path, list[str]]]:
        """File, path and names of the labels of every image of a split."""
        raise NotImplementedError

    def items(self, split: str, faults: Faults) -> list[Item]:
        """Images in order of class and file name."""
        items: list[Item] = []
        kept: list[list[int]] = []
        for file, path, names in self.listing(split):
            for name in names:
                if name not in self.index:
                    faults.add("label-unknown", str(path), "", f"{name!r} is no class")
            items.append(Item(file, path, len(items)))
            kept.append([self.index[name] for name in names if name in self.index])
        self.labels[split] = kept
        return items

    def annotations(self, split: str, item: Item, size: tuple[int, int], faults: Faults) -> Annotations:
        """The labels, no objects."""
        return gather(size, [], labels=self.labels[split][item.image_id])


class ImageNetReader(LabelReader):
    """The fetched source `imagenet`: the 1,000 classes, not their ancestors, in the field's usual order."""

    def __init__(self, source: Source) -> None:
        classes = source.classes()
        inner = {parent for parents in classes.parents for parent in parents}
        leaves = [i for i in range(len(classes)) if i not in inner]
        self.source, self.splits, self.labels = source, tuple(source.splits), {}
        self.index = {classes.names[i]: place for place, i in enumerate(leaves)}
        titles = [classes.titles[i] for i in leaves]
        self.about = About(
            name="imagenet",
            categories=tuple(self.index),
            has=("labels",),
            protocol="the official training and validation sets (D-18)",
            inputs=(source.manifest.digest,),
            more={"titles": titles, "mirror": True},
        )

    def listing(self, split: str) -> list[tuple[str, Path, list[str]]]:
        """See LabelReader."""
        return [(record.file, Path(str(record.image)), record.labels) for record in self.source.records(split)]


class FolderReader(LabelReader):
    """FOLDER/SPLIT/CLASS/image: any folder of class folders; classes are those of all splits, by name."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder, self.labels = folder, {}
        found = {
            split: sorted(entry.name for entry in os.scandir(folder / split) if entry.is_dir())
            for split in ("train", "val", "test")
            if (folder / split).is_dir()
        }
        self.splits = tuple(split for split, classes in found.items() if classes)
        if not self.splits:
            raise InputError(
                f"{folder} holds no train/CLASS/, val/CLASS/ or test/CLASS/",
                "pass the folder around the splits, each with one folder a class",
            )
        self.index = {name: i for i, name in enumerate(sorted({c for classes in found.values() for c in classes}))}
        self.about = About(
            name=name or folder.resolve().name,
            categories=tuple(self.index),
            has=("labels",),
            protocol="folders as given",
            more={"mirror": True},
        )

    def listing(self, split: str) -> list[tuple[str, Path, list[str]]]:
        """See LabelReader."""
        rows = []
        for label in self.index:
            inside = self.folder / split / label
            for name in sorted(os.listdir(inside)) if inside.is_dir() else ():
                if name.lower().endswith(SUFFIXES):
                    rows.append((f"{split}/{label}/{name}", inside / name, [label]))
        return rows
