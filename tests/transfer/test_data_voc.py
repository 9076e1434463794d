"""Pascal VOC into a data set: one-based boxes, difficult, class maps, faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpus import official_folders
from PIL import Image

from tenfold.corpus import sources
from tenfold.errors import InputError
from tenfold.transfer.data.check import check, open_source, open_voc
from tenfold.transfer.data.write import write_dataset

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def thing(name: str, box: tuple[float, ...], difficult: int = 0) -> str:
    part = f"<part><name>head</name>{BOX.format(1, 1, 2, 2)}</part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{BOX.format(*box)}{part}</object>"


@pytest.fixture
def folder(tmp_path: Path, photographs: list[Path]) -> Path:
    """VOC2012 with three images of 40 x 40 px and class maps."""
    root = tmp_path / "VOC2012"
    official_folders.voc(root, photographs[1])
    objects = {
        "2008_000008": [thing("horse", (1, 1, 40, 40)), thing("person", (5, 6, 10.5, 20), 1)],
        "2007_000027": [thing("person", (11, 12, 13, 14))],
        "2011_003276": [thing("tvmonitor", (2, 2, 9, 9), 1)],
    }
    (root / "SegmentationClass").mkdir()
    for name, inner in objects.items():
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{''.join(inner)}</annotation>")
        classes = np.zeros((40, 40), np.uint8)
        classes[5:20, 5:30], classes[5, 5:30] = 13, 255
        picture = Image.fromarray(classes, "P")
        picture.putpalette([i for value in range(256) for i in (value, 255 - value, 0)])
        picture.save(root / "SegmentationClass" / f"{name}.png")
    return root


def test_detection(tmp_path: Path, folder: Path) -> None:
    sources.fetch("voc2012", tmp_path / "data", from_dir=folder)
    dataset = write_dataset(str(tmp_path / "set"), open_source(str(tmp_path / "data" / "voc2012")), strict=True)
    assert dataset.splits == {"train": 2, "val": 1}
    assert len(dataset.categories) == 20
    assert (dataset.categories[0], dataset.categories[-1]) == ("aeroplane", "tvmonitor")
    found = {row["source"]: a for row, a in dataset.annotations("train")}
    horse = found["JPEGImages/2008_000008.jpg"]
    assert horse.boxes.tolist() == [[0, 0, 40, 40], [4, 5, 10.5, 20]]  # the first pixel is 1, the last is inside
    assert [dataset.categories[c] for c in horse.categories] == ["horse", "person"]
    assert horse.difficult.tolist() == [False, True]
    assert horse.areas.tolist() == [1600, 6.5 * 15]
    assert [dataset.categories[c] for c in found["JPEGImages/2011_003276.jpg"].labels] == ["tvmonitor"]


def test_segmentation(tmp_path: Path, folder: Path) -> None:
    reader = open_voc(str(folder), "segmentation")
    dataset = write_dataset(str(tmp_path / "set"), reader)
    assert dataset.facts["has"] == ["boxes", "labels", "map"]
    for row, found in dataset.annotations("train"):
        with Image.open(folder / "SegmentationClass" / f"{Path(row['source']).stem}.png") as truth:
            assert np.array_equal(found.class_map(), np.array(truth))
    assert dataset.categories[13 - 1] == "horse"


def test_faults(folder: Path) -> None:
    maps = folder / "SegmentationClass"
    inner = [thing("unicorn", (1, 1, 9, 9)), thing("dog", (50, 1, 60, 9)), thing("dog", (0, 1, 50, 9))]
    bare = "<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object>"
    (folder / "Annotations" / "2008_000008.xml").write_text(f"<annotation>{''.join(inner)}{bare}</annotation>")
    (folder / "Annotations" / "2007_000027.xml").write_text("<annotation>")
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(maps / "2008_000008.png")
    Image.fromarray(np.zeros((40, 41), np.uint8)).save(maps / "2011_003276.png")
    found = check(open_voc(str(folder), "segmentation"))
    assert found.counts == {
        "annotation-malformed": 1,
        "box-clipped": 1,
        "box-malformed": 1,
        "box-outside": 1,
        "category-unknown": 1,
        "map-size": 1,
        "map-values": 1,
    }
    unicorn = next(fault for fault in found.faults if fault.kind == "category-unknown")
    assert unicorn.file.endswith("2008_000008.xml")
    assert unicorn.id == "object 0"
    (maps / "2007_000027.png").unlink()
    assert check(open_voc(str(folder), "segmentation")).counts["map-missing"] == 1


def test_other_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="lacks train"):
        open_voc(str(tmp_path))
    with pytest.raises(InputError, match="no kind 'poses'"):
        open_voc(str(folder), "poses")
    lists = folder / "ImageSets" / "Main"
    (lists / "test.txt").write_text("2007_000027\n")  # as VOC 2007 has
    assert open_voc(str(folder)).splits == ("train", "val", "test")
