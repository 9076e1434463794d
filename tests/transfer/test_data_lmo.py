"""LineMOD-Occluded: projection against a hand-made scene; the real poses where marked slow."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold.corpus import sources
from tenfold.corpus.sources.lmo import OBJECTS, SCENE
from tenfold.errors import InputError
from tenfold.transfer.data import lmo, rle
from tenfold.transfer.data.check import check, open_source
from tenfold.transfer.data.faults import Faults
from tenfold.transfer.data.table import Dataset
from tenfold.transfer.data.write import write_dataset

CAMERA = lmo.Camera(500.0, 500.0, 80.0, 60.0, 160, 120)
CUBE = [(x, y, z) for x in (-20, 20) for y in (-20, 20) for z in (-20, 20)]
FACES = [
    (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4),
    (1, 5, 7), (1, 7, 3),
]  # fmt: skip


def write_ply(path: Path, stretch: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["ply", "format ascii 1.0", f"element vertex {len(CUBE)}", *(f"property float {a}" for a in "xyz")]
    head += [f"element face {len(FACES)}", "property list uchar int vertex_indices", "end_header"]
    rows = [f"{x * stretch} {y} {z}" for x, y, z in CUBE] + [f"3 {a} {b} {c}" for a, b, c in FACES]
    path.write_text("\n".join([*head, *rows]) + "\n")


def cube(tmp_path: Path) -> lmo.Model:
    write_ply(tmp_path / "cube.ply")
    return lmo.Model.read(tmp_path / "cube.ply")


def test_cube_is_where_it_should_be(tmp_path: Path) -> None:
    model = cube(tmp_path)
    assert model.diameter == pytest.approx(40 * 3**0.5)
    assert sorted(map(tuple, model.keypoints.tolist())) == sorted(CUBE)  # the eight corners
    assert len(model.points) == int(6 * 40 * 40 * lmo.DENSITY)
    assert np.allclose(np.abs(model.points).max(1), 20, atol=1e-3)
    outward = (model.points * model.normals).sum(1)
    assert np.allclose(outward, 20, atol=1e-3)
    depth = lmo.depth_of(model, np.eye(3), np.array([0, 0, 520.0]), CAMERA)
    # The front face is 500 mm away: 40 px wide, centred on pixel (80, 60).
    there = np.isfinite(depth)
    assert rle.bounds(rle.encode(there), 120) == (60, 40, 101, 81)
    assert 40 * 40 <= there.sum() <= 41 * 41  # pixels on its edge are half covered
    assert np.allclose(depth[there], 500, atol=0.01)


def test_objects_cut_by_the_edge_and_behind(tmp_path: Path) -> None:
    model = cube(tmp_path)
    cut = np.isfinite(lmo.depth_of(model, np.eye(3), np.array([80.0, 0, 520.0]), CAMERA))
    assert rle.bounds(rle.encode(cut), 120) == (136, 40, 160, 81)  # its left side is seen, too
    assert not np.isfinite(lmo.depth_of(model, np.eye(3), np.array([0, 0, -520.0]), CAMERA)).any()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A source of one frame a split: two objects one behind the other, and the eggbox turned round."""
    folder = tmp_path / "bop"
    turned = [-1, 0, 0, 0, -1, 0, 0, 0, 1]
    objects = [
        {"obj_id": 1, "cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [0, 0, 520.0]},
        {"obj_id": 5, "cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [20.0, 0, 620.0]},
        {"obj_id": 10, "cam_R_m2c": turned, "cam_t_m2c": [-50.0, 0, 520.0]},
        {"obj_id": 9, "cam_R_m2c": turned, "cam_t_m2c": [0, 0, 720.0]},
    ]
    frames = {3: objects, 703: objects[:1], 1012: objects[1:3]}
    (folder / SCENE / "rgb").mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.new("RGB", (160, 120), (10 * i, 50, 90)).save(folder / SCENE / "rgb" / f"{frame:06d}.png")
    (folder / SCENE / "scene_gt.json").write_text(json.dumps(frames))
    camera = {"fx": 500.0, "fy": 500.0, "cx": 80.0, "cy": 60.0, "width": 160, "height": 120, "depth_scale": 1.0}
    (folder / SCENE / "camera.json").write_text(json.dumps(camera))
    for number in OBJECTS:
        write_ply(folder / "models" / f"obj_{number:06d}.ply")
    sources.fetch("lmo", tmp_path / "data", from_dir=folder)
    return tmp_path / "data" / "lmo"


def test_scene(tmp_path: Path, scene: Path) -> None:
    dataset = write_dataset(str(tmp_path / "set"), open_source(str(scene)), strict=True)
    assert dataset.splits == {"train": 1, "val": 1, "test": 1}
    ((row, found),) = dataset.annotations("train")
    assert row["image_id"] == 3
    assert [dataset.categories[c] for c in found.categories] == ["ape", "can", "eggbox"]  # the duck is hidden wholly
    assert found.ids.tolist() == [300, 301, 302]
    front, behind, eggbox = (found.mask(i) for i in range(3))
    assert front is not None
    assert behind is not None
    assert eggbox is not None
    assert found.boxes[0].tolist() == [60, 40, 101, 81]
    assert not (front & behind).any()
    assert found.boxes[1, 0] in (100, 101)  # it begins where the front one ends
    assert found.areas.tolist() == [front.sum(), behind.sum(), eggbox.sum()]
    classes = found.class_map()
    assert classes is not None
    assert (classes[front] == 1).all()
    assert (classes == 0).sum() == 160 * 120 - front.sum() - behind.sum() - eggbox.sum()
    corners = np.array(lmo.Model.read(scene.parent.parent / "bop" / "models" / "obj_000001.ply").keypoints)
    near = corners[:, 2] < 0
    assert (found.keypoints[0, near, 2] == 2).all()  # corners of the front face
    assert (found.keypoints[0, ~near, 2] == 1).all()
    left = near & (corners[:, 0] < 0)
    assert (found.keypoints[1, left, 2] == 1).all()  # hidden by the other object
    right = near & (corners[:, 0] > 0)
    assert (found.keypoints[1, right, 2] == 2).all()
    assert found.keypoints[0, near & left & (corners[:, 1] < 0), :2].tolist() == [[60.5, 40.5]]
    outside = found.keypoints[2, (corners[:, 0] < 0) & near]
    assert (outside[:, 0] < found.boxes[2, 2] / 2).all()  # of the two poses the one whose x axis points right
    again = write_dataset(str(tmp_path / "again"), open_source(str(scene)))
    assert again.digest == dataset.digest


def test_specks() -> None:
    mask = np.zeros((60, 60), bool)
    mask[5:35, 5:35] = True  # 900
    mask[40:45, 40:49] = True  # 45: large enough
    mask[50:52, 50:54] = True  # 8: a speck
    clean = lmo.without_specks(mask)
    assert clean.sum() == 945
    assert not clean[50:].any()
    mask[5:35, 5:35] = mask[40:45, 40:49] = False
    assert lmo.without_specks(mask).sum() == 8  # all there is


def test_models_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.ply"
    for text in ("", "ply\nformat binary_little_endian 1.0\nend_header\n", "ply\nformat ascii 1.0\nend_header\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"x\.ply cannot be read"):
            lmo.read_ply(path)


@pytest.mark.slow
def test_real(tmp_path: Path) -> None:
    there = os.environ.get("TENFOLD_LMO")
    if not there:
        sources.fetch("lmo", tmp_path)
    reader = open_source(there or str(tmp_path / "lmo"))
    found = check(reader)
    assert not found.faults
    assert found.images == {"train": 112, "val": 25, "test": 63}
    assert sum(found.objects.values()) == 1514  # three of the 1,517 cannot be seen at all
    assert isinstance(reader, lmo.LmoReader)
    ratios = []
    for item in reader.items("train", Faults()):
        for thing in reader.truth[item.image_id]:
            model, shift = reader.models[thing["obj_id"]], np.array(thing["cam_t_m2c"])
            alone = lmo.depth_of(model, np.reshape(thing["cam_R_m2c"], (3, 3)), shift, reader.camera)
            if pixels := np.isfinite(alone).sum():
                ratios.append(model.diameter * reader.camera.fx / shift[2] / pixels**0.5)
    derived = 0.1 * np.median(ratios) / (2 * (2 * np.log(2)) ** 0.5)
    assert abs(derived - lmo.SIGMA) < 5e-4


def test_dataset_verb_draws(tmp_path: Path, scene: Path) -> None:
    from typer.testing import CliRunner

    from tenfold.cli import app

    run, out = CliRunner().invoke, str(tmp_path / "set")
    done = run(app, ["dataset", "convert", str(scene), "--to", out, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["digest"] == Dataset.open(out).digest
    shown = run(app, ["dataset", "info", out])
    assert "8 categories: ape, can" in shown.output
    drawn = run(app, ["dataset", "draw", out, "--out", str(tmp_path / "sheet.png"), "--json"])
    assert json.loads(drawn.stdout)["images"] == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (640, 480)
    checked = run(app, ["dataset", "check", str(scene), "--json"])
    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["faults"] == []
    (scene.parent.parent / "bop" / SCENE / "rgb" / "000003.png").write_bytes(b"damaged")
    checked = run(app, ["dataset", "check", str(scene)])
    assert checked.exit_code == 2
    assert "image-unreadable" in checked.output
    for words in (["--coco", "x.json"], [], [str(scene), "--voc", "y"]):
        assert isinstance(run(app, ["dataset", "check", *words]).exception, InputError)
