"""COCO JSON into a data set: pycocotools as the oracle, every fault, S3, round trip."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import official_folders
from PIL import Image
from pycocotools.coco import COCO

from tenfold import storage
from tenfold.corpus import sources
from tenfold.corpus.table import rank_of
from tenfold.errors import InputError
from tenfold.transfer.data import check, rle
from tenfold.transfer.data.coco import PERSON, PERSON_SIGMAS, CocoReader, flip_pairs
from tenfold.transfer.data.export import coco_json
from tenfold.transfer.data.faults import Faults
from tenfold.transfer.data.table import ANNOTATED, Annotations, Dataset
from tenfold.transfer.data.write import write_dataset

W, H = 60, 44
Document = dict[str, Any]


@pytest.fixture
def document(tmp_path: Path, photographs: list[Path]) -> Document:
    """Four images of 60 x 44 px in `images/`: polygons, a crowd, keypoints, a negative; annotations in no order."""
    (tmp_path / "images").mkdir()
    with Image.open(photographs[0]) as opened:
        for i in range(4):
            opened.crop((i * 50, 100, i * 50 + W, 100 + H)).save(tmp_path / "images" / f"{i}.jpg", quality=92)
    rng = np.random.default_rng(5)
    crowd = (rng.random((H, W)) < 0.3).astype(np.uint8)
    runs = rle.unpack(rle.encode(crowd)).tolist()
    points = [10, 12, 2, 20, 20, 1, 0, 0, 0]
    notes = [
        {"id": 9, "image_id": 12, "category_id": 7, "bbox": [3.5, 4, 20, 30.25], "iscrowd": 0, "area": 321.5,
         "segmentation": [[3.5, 4, 23.5, 4.2, 20, 34.1, 5, 30], [40, 10, 50, 11, 45, 20]]},
        {"id": 4, "image_id": 10, "category_id": 7, "bbox": [0, 0, 60, 44], "iscrowd": 1,
         "segmentation": {"size": [H, W], "counts": runs}, "area": int(crowd.sum())},
        {"id": 3, "image_id": 10, "category_id": 2, "bbox": [8, 8, 20, 20], "iscrowd": 0, "keypoints": points,
         "num_keypoints": 2, "segmentation": [[8, 8, 28, 8, 28, 28, 8, 28]], "area": 400},
        {"id": 5, "image_id": 11, "category_id": 2, "bbox": [50, 30, 10.4, 14.3], "iscrowd": 0, "area": 140,
         "segmentation": {"size": [H, W], "counts": rle.encode(crowd).decode()}},
    ]  # fmt: skip
    return {
        "annotations": notes,
        "images": [{"id": 13 - i, "file_name": f"{i}.jpg", "width": W, "height": H} for i in range(4)],
        "categories": [
            {"id": 7, "name": "dog"},
            {"id": 2, "name": "person", "keypoints": ["left_eye", "nose", "right_eye"], "skeleton": [[1, 2], [2, 3]]},
        ],
    }


def reader_of(root: Path, document: Document, **options: Any) -> CocoReader:
    path = root / "instances.json"
    path.write_text(json.dumps(document))
    return CocoReader("mine", {"train": (path, root / "images")}, **options)


def convert(root: Path, document: Document, **options: Any) -> tuple[Dataset, Faults]:
    faults = Faults()
    written = write_dataset(str(root / "set"), reader_of(root, document), faults=faults, **options)
    return written, faults


def test_pycocotools_reads_the_same(tmp_path: Path, document: Document, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, faults = convert(tmp_path, document)
    assert not faults.total
    truth = COCO(str(tmp_path / "instances.json"))
    assert dataset.categories == ("person", "dog")
    assert dataset.facts["category_ids"] == [2, 7]
    assert dataset.facts["has"] == ["boxes", "labels", "masks", "keypoints"]
    assert dataset.facts["flip_pairs"] == [[0, 2]]
    assert dataset.facts["skeleton"] == [[0, 1], [1, 2]]
    assert dataset.facts["counts"]["train"]["images without annotation"] == 1
    assert dataset.facts["counts"]["train"]["crowds"] == 1
    seen = 0
    for row, found in dataset.annotations("train"):
        notes = sorted(truth.loadAnns(truth.getAnnIds(row["image_id"])), key=lambda note: note["id"])
        assert found.ids.tolist() == [note["id"] for note in notes]
        assert found.crowd.tolist() == [bool(note["iscrowd"]) for note in notes]
        assert found.labels.tolist() == sorted({[2, 7].index(note["category_id"]) for note in notes})
        assert found.keypoints.shape == (len(notes), 3, 3)
        for i, note in enumerate(notes):
            seen += 1
            assert np.array_equal(found.mask(i), truth.annToMask(note).astype(bool))
            x, y, w, h = note["bbox"]
            assert np.allclose(found.boxes[i], [x, y, min(x + w, W), min(y + h, H)])
            assert found.areas[i] == note["area"]
            assert found.keypoints[i].ravel().tolist() == note.get("keypoints", [0] * 9)
    assert seen == 4


def test_table_is_in_order_of_rank_and_keeps_bytes(tmp_path: Path, document: Document) -> None:
    dataset, _ = convert(tmp_path, document)
    table = dataset.table("train").to_table()
    assert table.schema == ANNOTATED
    rows = table.to_pylist()
    ranks = [row["rank"] for row in rows]
    assert ranks == sorted(ranks)
    assert ranks == rank_of([row["id"] for row in rows]).tolist()
    for row in rows:
        assert row["image"] == (tmp_path / "images" / row["source"]).read_bytes()
        assert (row["width"], row["height"]) == (W, H)
    again = write_dataset(str(tmp_path / "other"), reader_of(tmp_path, document))
    assert again.digest == dataset.digest


def test_round_trip(tmp_path: Path, document: Document) -> None:
    first, _ = convert(tmp_path, document)
    second = write_dataset(str(tmp_path / "again"), reader_of(tmp_path, coco_json(first, "train")), strict=True)
    assert second.digest == first.digest


def test_class_maps_of_masks(tmp_path: Path, document: Document) -> None:
    dataset = write_dataset(str(tmp_path / "set"), reader_of(tmp_path, document, paint=True))
    for row, found in dataset.annotations("train"):
        painted = found.class_map()
        assert painted is not None
        assert painted.shape == (H, W)
        if row["image_id"] == 10:
            person, crowd = found.mask(0), found.mask(1)
            assert person is not None
            assert crowd is not None
            assert (painted[person] == 1).all()
            assert (painted[crowd & ~person] == 255).all()
            assert not painted[~crowd & ~person].any()


def test_largest_side(tmp_path: Path, document: Document) -> None:
    dataset, _ = convert(tmp_path, document, max_side=30)
    plain = write_dataset(str(tmp_path / "plain"), reader_of(tmp_path, document))
    for (row, small), (_, large) in zip(
        dataset.annotations("train", images=True), plain.annotations("train"), strict=True
    ):
        with Image.open(io.BytesIO(row["image"])) as opened:
            assert opened.size == (small.width, small.height) == (30, 22)
        assert np.allclose(small.boxes, large.boxes / 2)
        assert np.allclose(small.areas, large.areas / 4)
        assert np.allclose(small.keypoints[..., :2], large.keypoints[..., :2] / 2)
        for i in range(len(small)):
            if not large.crowd[i] and row["image_id"] != 11:
                assert rle.area(small.masks[i]) == pytest.approx(rle.area(large.masks[i]) / 4, rel=0.15)


def _set(index: int, **values: Any) -> Any:
    return lambda document: document["annotations"][index].update(values)


FAULTS: list[tuple[str, str, Any]] = [
    ("box-outside", "annotation 9, image 12 (1.jpg)", _set(0, bbox=[70, 3, 10, 10])),
    ("box-clipped", "annotation 9, image 12 (1.jpg)", _set(0, bbox=[-9, 3, 20, 10])),
    ("box-empty", "annotation 9, image 12 (1.jpg)", _set(0, bbox=[5, 3, 0, 10])),
    ("box-malformed", "annotation 9, image 12 (1.jpg)", _set(0, bbox=[5, 3, float("nan"), 10])),
    ("box-malformed", "annotation 9, image 12 (1.jpg)", _set(0, bbox=None)),
    ("category-unknown", "annotation 9, image 12 (1.jpg)", _set(0, category_id=8)),
    ("mask-empty", "annotation 9, image 12 (1.jpg)", _set(0, segmentation=[])),
    ("polygon-invalid", "annotation 9, image 12 (1.jpg)", _set(0, segmentation=[[1, 2, 3, 4], [1, 1, 9, 1, 9, 9]])),
    ("rle-size", "annotation 4, image 10 (3.jpg)", _set(1, segmentation={"size": [W, H], "counts": [W * H]})),
    ("rle-invalid", "annotation 4, image 10 (3.jpg)", _set(1, segmentation={"size": [H, W], "counts": [5, 5]})),
    ("rle-invalid", "annotation 4, image 10 (3.jpg)", _set(1, segmentation={"size": [H, W], "counts": "é"})),
    ("mask-empty", "annotation 4, image 10 (3.jpg)", _set(1, segmentation={"size": [H, W], "counts": [W * H]})),
    ("keypoints-count", "annotation 3, image 10 (3.jpg)", _set(2, keypoints=[1, 2, 2])),
    ("keypoints-visibility", "annotation 3, image 10 (3.jpg)", _set(2, keypoints=[1, 2, 3] * 3)),
    ("keypoints-outside", "annotation 3, image 10 (3.jpg)", _set(2, keypoints=[1, 2, 2, 99, 2, 2, 3, 3, 1])),
    ("annotation-id-repeated", "annotation 9", _set(1, id=9)),
    ("annotation-of-no-image", "annotation 9", _set(0, image_id=99)),
    ("annotation-malformed", "annotation None", _set(0, id=None)),
    ("annotation-malformed", "annotation no. 1", lambda d: d["annotations"].insert(0, "text")),
    ("image-id-repeated", "image 13", lambda d: d["images"].append({**d["images"][0], "file_name": "x.jpg"})),
    ("image-malformed", "image 77", lambda d: d["images"].append({"id": 77})),
    ("image-missing", "image 13", lambda d: d["images"][0].update(file_name="none.jpg")),
    ("image-size", "image 13", lambda d: d["images"][0].update(width=61)),
]


@pytest.mark.parametrize(("kind", "where", "damage"), FAULTS)
def test_faults_are_named(tmp_path: Path, document: Document, kind: str, where: str, damage: Any) -> None:
    damage(document)
    reader = reader_of(tmp_path, document)
    found = check.check(reader)
    assert found.counts[kind] == 1
    fault = next(fault for fault in found.faults if fault.kind == kind)
    assert fault.id == where
    file = "images" if kind in ("image-missing", "image-size") else "instances.json"
    assert file in fault.file
    assert fault.cure
    assert fault.done
    with pytest.raises(InputError, match="faults in the annotations") as caught:
        write_dataset(str(tmp_path / "strict"), reader, strict=True)
    assert where in str(caught.value)
    assert not (tmp_path / "strict").exists()
    dataset, faults = convert(tmp_path, document)
    assert faults.counts == found.counts == dataset.facts["faults"]
    assert dataset.splits == found.images
    for _, left in dataset.annotations("train"):  # what is left is whole
        assert (left.boxes[:, :2] >= 0).all()
        assert (left.boxes[:, 2:] <= (W, H)).all()
        for i in range(len(left)):
            left.mask(i)


def test_kept_with_faults(tmp_path: Path, document: Document) -> None:
    _set(0, bbox=[-9, 3, 20, 10])(document)
    _set(1, segmentation={"size": [W, H], "counts": [W * H]})(document)
    _set(2, keypoints=[1, 2, 2, 99, 2, 2, 3, 3, 1])(document)
    dataset, _ = convert(tmp_path, document)
    by_image = {row["image_id"]: found for row, found in dataset.annotations("train")}
    assert by_image[12].boxes.tolist() == [[0, 3, 11, 13]]
    assert by_image[10].masks[1] == b""
    assert by_image[10].mask(1) is None
    assert by_image[10].keypoints[0].tolist() == [[1, 2, 2], [0, 0, 0], [3, 3, 1]]


def test_unreadable_image(tmp_path: Path, document: Document) -> None:
    path = tmp_path / "images" / "0.jpg"
    path.write_bytes(path.read_bytes()[:700])
    dataset, faults = convert(tmp_path, document)
    assert faults.counts == {"image-unreadable": 1}
    assert dataset.splits == {"train": 3}


def test_exif_orientation_is_dropped_where_annotations_ignore_it(tmp_path: Path, document: Document) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("0.jpg", "1.jpg"):
        with Image.open(tmp_path / "images" / name) as opened:
            opened.save(tmp_path / "images" / name, exif=exif)
    document["images"][1].update(width=H, height=W)  # annotated as it is seen
    dataset, faults = convert(tmp_path, document)
    assert not {k: v for k, v in faults.counts.items() if k not in ("rle-size", "box-clipped", "box-outside")}
    for row, found in dataset.annotations("train", images=True):
        with Image.open(io.BytesIO(row["image"])) as opened:
            assert opened.size == (found.width, found.height) == ((H, W) if row["source"] == "1.jpg" else (W, H))
            assert opened.getexif().get(0x0112, 1) == 1


def test_nothing_usable_and_no_coco(tmp_path: Path, document: Document) -> None:
    with pytest.raises(InputError, match="lists no categories"):
        reader_of(tmp_path, {**document, "categories": []})
    with pytest.raises(InputError, match=r"no image that can be used.*image-missing"):
        convert(tmp_path, {**document, "images": [{"id": 1, "file_name": "none.jpg"}], "annotations": []})
    assert not (tmp_path / "set" / "manifest.json").exists()
    (tmp_path / "bad.json").write_text('{"images": [')
    with pytest.raises(InputError, match="ends in the middle"):
        CocoReader("bad", {"train": (tmp_path / "bad.json", tmp_path)})
    mixed = [{"id": 1, "name": "a", "keypoints": ["x"]}, {"id": 2, "name": "b", "keypoints": ["y"]}]
    with pytest.raises(InputError, match="different keypoints"):
        reader_of(tmp_path, {**document, "categories": mixed})


def test_finished_data_set_is_not_overwritten_by_chance(tmp_path: Path, document: Document) -> None:
    dataset, _ = convert(tmp_path, document)
    with pytest.raises(InputError, match="holds a finished data set"):
        convert(tmp_path, document)
    document["annotations"].pop()
    other, _ = convert(tmp_path, document, overwrite=True)
    assert other.digest != dataset.digest == dataset.manifest.digest
    assert Dataset.open(dataset.uri).digest == other.digest
    with pytest.raises(InputError, match="no split 'test'"):
        other.table("test")
    with pytest.raises(InputError, match="has no map"):
        other.need("boxes", "map")
    with pytest.raises(InputError, match="no finished data set"):
        Dataset.open(str(tmp_path))


def test_official_layout(tmp_path: Path, photographs: list[Path]) -> None:
    folder = tmp_path / "coco"
    truth = official_folders.coco(folder, photographs[0])
    sources.fetch("coco2017", tmp_path / "data", from_dir=folder)
    reader = check.open_source(str(tmp_path / "data" / "coco2017"), paint=True)
    dataset = write_dataset(str(tmp_path / "set"), reader)
    assert dataset.splits == {"train": 4, "val": 4}
    assert dataset.categories == ("person", "bicycle", "dog", "toothbrush")
    assert dataset.facts["faults"]["polygon-invalid"] > 0  # its polygons are lines
    assert dataset.manifest.inputs == [sources.open_source(tmp_path / "data" / "coco2017").manifest.digest]
    for split in dataset.splits:
        for row, found in dataset.annotations(split):
            names = [dataset.categories[i] for i in found.labels]
            assert names == truth[split][f"{split}2017/{row['source']}"]
    with pytest.raises(InputError, match="no kind 'boxes'"):
        check.open_source(str(tmp_path / "data" / "coco2017"), kind="boxes")


def test_on_s3(tmp_path: Path, document: Document, minio: Any) -> None:
    local, _ = convert(tmp_path, document)
    remote = write_dataset(minio.uri("sets", "mine"), reader_of(tmp_path, document))
    assert remote.digest == local.digest
    opened = Dataset.open(minio.uri("sets", "mine"))
    assert opened.table("train").to_table() == local.table("train").to_table()
    again = write_dataset(minio.uri("sets", "mine"), reader_of(tmp_path, document), overwrite=True)
    assert again.table("train").count_rows() == 4
    assert all("manifest" in f or f.startswith("train.lance/") for f in storage.list_files(minio.uri("sets", "mine")))


def test_person_keypoints() -> None:
    assert len(PERSON) == len(PERSON_SIGMAS) == 17
    assert flip_pairs(PERSON) == tuple((i, i + 1) for i in range(1, 17, 2))


def test_annotations_of_an_empty_record() -> None:
    found = Annotations.from_record({"width": 4, "height": 3, "boxes": [], "keypoints": []}, keypoints=5)
    assert found.boxes.shape == (0, 4)
    assert found.keypoints.shape == (0, 5, 3)
    assert found.class_map() is None
