"""ImageNet and class folders into a data set of labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus import official_folders

from tenfold.corpus import sources
from tenfold.errors import InputError
from tenfold.transfer.data.check import check, open_source
from tenfold.transfer.data.imagenet import FolderReader
from tenfold.transfer.data.write import write_dataset


def test_imagenet(tmp_path: Path, photographs: list[Path]) -> None:
    folder = tmp_path / "imagenet"
    official_folders.imagenet(folder, photographs[0])
    sources.fetch("imagenet", tmp_path / "data", from_dir=folder)
    dataset = write_dataset(str(tmp_path / "set"), open_source(str(tmp_path / "data" / "imagenet")), strict=True)
    assert dataset.categories == ("n01440764", "n02100735", "n02119789")  # no inner nodes
    assert dataset.facts["titles"] == ["tench", "English setter", "kit fox"]
    assert dataset.facts["has"] == ["labels"]
    assert dataset.splits == {"train": 6, "val": 4}
    for row, found in dataset.annotations("train"):
        assert [dataset.categories[i] for i in found.labels] == [row["source"].split("/")[1]]
        assert not len(found)
    names = {number: synset for number, synset, _, _ in official_folders.SYNSETS}
    truth = {f"val/ILSVRC2012_val_{i + 1:08d}.JPEG": names[n] for i, n in enumerate(official_folders.VAL)}
    assert {r["source"]: dataset.categories[a.labels[0]] for r, a in dataset.annotations("val")} == truth
    assert dataset.facts["counts"]["val"]["images without annotation"] == 0


def test_class_folders(tmp_path: Path, photographs: list[Path]) -> None:
    for split, label, seed in (("train", "b", 1), ("train", "a", 2), ("val", "c", 3)):
        official_folders.jpeg(tmp_path / "mine" / split / label / "x.jpg", photographs[0], seed)
    (tmp_path / "mine" / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "mine" / "train" / "b" / "y.jpg").write_bytes(b"\xff\xd8 no image")
    reader = FolderReader(tmp_path / "mine")
    found = check(reader)
    assert found.counts == {"image-unreadable": 1}
    assert found.faults[0].file.endswith("train/b/y.jpg")
    dataset = write_dataset(str(tmp_path / "set"), reader)
    assert dataset.categories == ("a", "b", "c")
    assert dataset.splits == {"train": 2, "val": 1}
    assert {r["source"]: a.labels.tolist() for r, a in dataset.annotations("train")} == {
        "train/a/x.jpg": [0],
        "train/b/x.jpg": [1],
    }


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no train/CLASS/"):
        FolderReader(tmp_path)
