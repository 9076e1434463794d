"""Miniature data sets in the official layouts of COCO 2017, VOC 2012, ImageNet and BOP, written by the tests.

The images are cut from a real photograph, so that they are what their names say: JPEG, PNG.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def jpeg(path: Path, photograph: Path, seed: int, size: int = 40) -> None:
    """A crop of the photograph as JPEG or PNG, by the path's suffix."""
    rng = np.random.default_rng(seed)
    with Image.open(photograph) as image:
        left, top = (int(rng.integers(0, side - size)) for side in image.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        crop = image.convert("RGB").crop((left, top, left + size, top + size))
        crop.save(path, "PNG" if path.suffix == ".png" else "JPEG")


COCO_CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 2, "name": "bicycle", "supercategory": "vehicle"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
]


def coco(root: Path, photograph: Path, splits: tuple[str, ...] = ("train", "val")) -> dict[str, dict[str, list[str]]]:
    """Returns the labels by split and file. Ids are not in order, annotations are shuffled, one image has none."""
    truth: dict[str, dict[str, list[str]]] = {}
    for number, split in enumerate(splits):
        ids = [581921, 9, 139, 30 + number]
        present = {581921: [18, 18, 1], 9: [90], 139: [1, 1, 2], 30 + number: []}
        annotations: list[dict[str, Any]] = [
            {"id": i, "image_id": image, "category_id": category, "iscrowd": int(i == 2), "bbox": [1, 2, 3, 4.5],
             "area": 13.5, "segmentation": [[1.0, 2.0, 3.0, 4.0]]}
            for i, (image, category) in enumerate((im, c) for im in ids for c in present[im])
        ]  # fmt: skip
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 40, "license": 3} for i in ids]
        document = {
            "info": {"description": "COCO 2017 Dataset"},
            "licenses": [{"id": 3, "name": "Attribution-NonCommercial-NoDerivs License"}],
            "images": images,
            "annotations": annotations[::-1],
            "categories": COCO_CATEGORIES[::-1],
        }
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
        names = {c["id"]: str(c["name"]) for c in COCO_CATEGORIES}
        truth[split] = {}
        for image in ids:
            file = f"{split}2017/{image:012d}.jpg"
            jpeg(root / file, photograph, image)
            truth[split][file] = [names[c] for c in sorted(set(present[image]))]  # type: ignore[index]
    return truth


def voc(root: Path, photograph: Path) -> dict[str, dict[str, list[str]]]:
    """`root` becomes VOC2012. Returns the labels by split and file, in the order of the official lists."""
    objects = {
        "2008_000008": [("horse", 0), ("person", 0)],
        "2007_000027": [("person", 0), ("person", 1)],
        "2011_003276": [("tvmonitor", 1)],  # only a difficult one
    }
    splits = {"train": ["2008_000008", "2011_003276"], "val": ["2007_000027"]}
    for name, things in objects.items():
        jpeg(root / "JPEGImages" / f"{name}.jpg", photograph, int(name[-3:]))
        inner = "".join(
            f"<object><name>{thing}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin></bndbox>"
            f"<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part></object>"
            for thing, difficult in things
        )
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation><folder>VOC2012</folder><filename>{name}.jpg</filename>{inner}</annotation>")
    for folder in ("Main", "Segmentation"):
        (root / "ImageSets" / folder).mkdir(parents=True, exist_ok=True)
        for split, names in splits.items():
            (root / "ImageSets" / folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "ImageSets" / "Main" / "horse_train.txt").write_text("2008_000008  1\n2011_003276 -1\n")
    return {
        split: {f"JPEGImages/{n}.jpg": sorted({thing for thing, _ in objects[n]}) for n in names}
        for split, names in splits.items()
    }


# number, synset, words, children; 1 to 3 are classes, the others inner nodes, as in the development kit.
SYNSETS: list[tuple[int, str, str, list[int]]] = [
    (1, "n02119789", "kit fox, Vulpes macrotis", []),
    (2, "n01440764", "tench, Tinca tinca", []),
    (3, "n02100735", "English setter", []),
    (4, "n00015388", "animal, animate being", [2, 5]),
    (5, "n02083346", "canine, canid", [1, 3]),
]
VAL = [3, 1, 1, 2]


def imagenet(root: Path, photograph: Path, *, devkit: bool = True, val_in_folders: bool = False) -> None:
    """Three classes with two training images each, four validation images, the development kit."""
    names = {number: synset for number, synset, _, _ in SYNSETS}
    for number in (1, 2, 3):
        for i in (10026, 7):
            jpeg(root / "train" / names[number] / f"{names[number]}_{i}.JPEG", photograph, i + number)
    for i, number in enumerate(VAL, start=1):
        folder = root / "val" / (names[number] if val_in_folders else "")
        jpeg(folder / f"ILSVRC2012_val_{i:08d}.JPEG", photograph, i)
    if devkit:
        write_devkit(root / "ILSVRC2012_devkit_t12" / "data")


def write_devkit(data: Path) -> None:
    """`meta.mat` with the fields and types of the official one, and the validation labels."""
    import scipy.io

    data.mkdir(parents=True)
    fields = [(n, object) for n in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
                                    "wordnet_height", "num_train_images")]  # fmt: skip
    table = np.empty((len(SYNSETS), 1), dtype=fields)
    for i, (number, synset, words, children) in enumerate(SYNSETS):
        row = (number, synset, words, "a gloss", len(children), np.array([children], np.uint16), 0, 2)
        for (name, _), value in zip(fields, row, strict=True):
            table[name][i, 0] = value
    scipy.io.savemat(data / "meta.mat", {"synsets": table})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, VAL)) + "\n")


def bop(root: Path, photograph: Path, *, official: bool) -> None:
    """LineMOD-Occluded: five frames around the cuts between the splits; as BOP ships it, or as the package does."""
    scene = root / "test" / "000002"
    frames = {3: [1, 5], 695: [8], 703: [12, 1], 1001: [11, 11], 1012: [9]}
    for frame in frames:
        jpeg(scene / "rgb" / f"{frame:06d}.png", photograph, frame)
        if official:
            jpeg(scene / "depth" / f"{frame:06d}.png", photograph, frame)
    pose = {"cam_R_m2c": [1.0, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [0.0, 0, 1000]}
    truth = {str(frame): [{**pose, "obj_id": i} for i in objects] for frame, objects in frames.items()}
    (scene / "scene_gt.json").write_text(json.dumps(truth))
    if official:
        matrix = [572.4114, 0.0, 325.2611, 0.0, 573.57043, 242.04899, 0.0, 0.0, 1.0]
        cameras = {str(frame): {"cam_K": matrix, "depth_scale": 1.0} for frame in frames}
        (scene / "scene_camera.json").write_text(json.dumps(cameras))
        models = root / "models"
    else:
        camera = {"cx": 325.2611, "cy": 242.04899, "depth_scale": 1.0, "fx": 572.4114, "fy": 573.57043}
        (scene / "camera.json").write_text(json.dumps({**camera, "height": 480, "width": 640}))
        models = scene / "models"
    models.mkdir(parents=True)
    for i in (1, 5):
        (models / f"obj_{i:06d}.ply").write_text(f"ply {i}")
