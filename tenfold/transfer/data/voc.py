"""Pascal VOC: detection (boxes, difficult) and segmentation (class maps), 2007 to 2012 in the official layout."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tenfold.corpus.sources.voc import GROUPS
from tenfold.errors import InputError
from tenfold.transfer.data.faults import Faults, Report, clip_box
from tenfold.transfer.data.reader import About, Item, Reader, gather
from tenfold.transfer.data.table import IGNORE, Annotations

CATEGORIES = tuple(sorted((*(name for members in GROUPS.values() for name in members), "person")))
Kind = Literal["detection", "segmentation"]
LISTS = {"detection": "Main", "segmentation": "Segmentation"}


class VocReader(Reader):
    """A VOC folder (the one that holds JPEGImages).

    VOC counts pixels from 1 and includes the last: a box xmin 1, xmax 3 covers [0, 3) here. Images of the segmentation
    lists have their boxes, too. Image ids are places in the list, annotation ids place * 1000 + object.

    Args:
        folder: with JPEGImages, Annotations, ImageSets.
        kind: which task's lists.
        splits: the lists to take; train and val (and test, where there is one) by default.
        name: of the data set.
        inputs: digests of what it is made from.
    """

    def __init__(
        self,
        folder: Path,
        kind: Kind = "detection",
        splits: list[str] | None = None,
        name: str = "voc",
        inputs: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.kind = folder, kind
        lists = folder / "ImageSets" / LISTS[kind]
        there = [split for split in splits or ("train", "val", "test") if (lists / f"{split}.txt").is_file()]
        if not there or (splits and len(there) < len(splits)):
            wanted = ", ".join(f"{split}.txt" for split in splits or ("train", "val"))
            raise InputError(f"{lists} lacks {wanted}", "pass the folder that holds JPEGImages/ and ImageSets/")
        self.splits, self.listed = tuple(there), lists
        self.about = About(
            name=name,
            categories=CATEGORIES,
            has=("boxes", "labels", *(["map"] if kind == "segmentation" else [])),
            protocol=f"the official lists ImageSets/{LISTS[kind]}",
            inputs=inputs,
            more={"mirror": True},
        )

    def items(self, split: str, faults: Faults) -> list[Item]:
        """Images in the order of the list."""
        names = [line.split()[0] for line in (self.listed / f"{split}.txt").read_text().splitlines() if line.strip()]
        files = [f"JPEGImages/{name}.jpg" for name in names]
        return [Item(file, self.folder / file, i) for i, file in enumerate(files)]

    def annotations(self, split: str, item: Item, size: tuple[int, int], faults: Faults) -> Annotations | None:
        """Objects and, for segmentation, the class map; without that the image is left out."""
        name = Path(item.file).stem
        class_map = self._map(name, size, faults) if self.kind == "segmentation" else None
        if self.kind == "segmentation" and class_map is None:
            return None
        path = self.folder / "Annotations" / f"{name}.xml"
        objects = []
        try:
            things = ET.parse(path).getroot().findall("object")  # not .iter(): parts of a body are nested objects
        except (OSError, ET.ParseError) as error:
            faults.add("annotation-malformed", str(path), "", str(error))
            things = []
        for number, thing in enumerate(things):
            report = Report(faults, str(path), f"object {number}")
            label = (thing.findtext("name") or "").strip()
            if label not in CATEGORIES:
                report("category-unknown", f"{label!r} is no class of VOC")
                continue
            try:
                corners = [float(thing.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
            except ValueError:
                corners = []
            if not np.isfinite(corners).all() or not corners:
                report("box-malformed", "bndbox lacks four numbers")
                continue
            x1, y1, x2, y2 = corners
            if (box := clip_box((x1 - 1, y1 - 1, x2, y2), size, report)) is not None:
                difficult = (thing.findtext("difficult") or "0").strip() == "1"
                category = CATEGORIES.index(label)
                id = item.image_id * 1000 + number
                objects.append({"id": id, "category": category, "box": box, "difficult": difficult})
        return gather(size, objects, class_map=class_map)

    def _map(self, name: str, size: tuple[int, int], faults: Faults) -> np.ndarray | None:
        path = self.folder / "SegmentationClass" / f"{name}.png"
        try:
            with Image.open(path, formats=["PNG"]) as opened:
                if opened.mode not in ("P", "L"):
                    raise OSError(f"it is {opened.mode}, not a palette of class indices")
                classes = np.array(opened)
        except (OSError, SyntaxError) as error:
            faults.add("map-missing", str(path), "", str(error))
            return None
        if classes.shape != (size[1], size[0]):
            faults.add("map-size", str(path), "", f"it is {classes.shape[1]} x {classes.shape[0]}, the image {size}")
            return None
        strange = (classes > len(CATEGORIES)) & (classes != IGNORE)
        if strange.any():
            faults.add("map-values", str(path), "", f"values {np.unique(classes[strange]).tolist()[:5]}")
            classes[strange] = IGNORE
        return classes
