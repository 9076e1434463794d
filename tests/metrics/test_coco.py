"""COCO's AP and AR against pycocotools; re-weighed matches against the engine and against copied images."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tenfold.errors import InputError
from tenfold.metrics import coco
from tenfold.metrics.coco import CocoAP, Settings
from tenfold.metrics.predictions import Boxes, Poses, Truth

CLASSES = 4
SIGMAS = (0.03, 0.05, 0.1, 0.08, 0.06)
POSE = Settings("keypoints", sigmas=SIGMAS)
Sample = tuple[list[str], list, list[Truth]]


def make(images: int, seed: int, *, pose: bool = False, ties: bool = False) -> Sample:
    """Varied sizes, crowds, images without annotations or without detections, duplicates, chance finds."""
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(images):
        g = int(rng.integers(0, 9))
        size = np.exp(rng.uniform(np.log(6), np.log(250), (g, 2)))
        corner = rng.uniform(0, 300, (g, 2))
        boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
        cls = rng.integers(0, CLASSES, g)
        keypoints = np.zeros((g, len(SIGMAS), 3), np.float32)
        keypoints[..., :2] = corner[:, None] + rng.random((g, len(SIGMAS), 2)) * size[:, None]
        keypoints[..., 2] = rng.integers(0, 3, (g, len(SIGMAS)))
        keypoints[rng.random(g) < 0.15] = 0
        truths.append(
            Truth(boxes, cls, rng.random(g) < 0.15, areas=size.prod(1) * rng.uniform(0.4, 1, g), keypoints=keypoints)
        )
        pick = rng.integers(0, g, int(rng.integers(0, 2 * g + 1))) if g else np.zeros(0, int)
        d = len(pick)
        noisy = boxes[pick] + rng.normal(0, 0.1, (d, 4)) * np.tile(size[pick], 2)
        noisy[:, 2:] = np.maximum(noisy[:, 2:], noisy[:, :2] + 1)
        scores = np.round(rng.random(d), 1) if ties else rng.random(d)
        guessed = np.where(rng.random(d) < 0.8, cls[pick], rng.integers(0, CLASSES, d))
        if pose:
            points = keypoints[pick] + rng.normal(0, 1, (d, len(SIGMAS), 3)) * size[pick].mean(1)[:, None, None] * 0.08
            found.append(Poses(points, scores, noisy, guessed))
        else:
            found.append(Boxes(noisy, scores, guessed))
    return [f"{i:04}.jpg" for i in range(images)], found, truths


def files(sample: Sample, folder: Path, *, pose: bool) -> tuple[str, str]:
    """The same as COCO's two files."""
    ids, found, truths = sample
    annotations, results = [], []
    for i, truth in enumerate(truths):
        for k, (x1, y1, x2, y2) in enumerate(truth.boxes.astype(float).tolist()):
            record = {
                "id": len(annotations) + 1,
                "image_id": 7 * i + 3,
                "category_id": int(truth.categories[k]) * 2 + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(truth.areas[k]),
                "iscrowd": int(truth.crowd[k]),
                "ignore": k % 2,  # COCO overwrites it
            }
            if pose:
                record["keypoints"] = truth.keypoints[k].astype(float).ravel().tolist()
                record["num_keypoints"] = int((truth.keypoints[k, :, 2] > 0).sum())
            annotations.append(record)
        for k, (x1, y1, x2, y2) in enumerate(found[i].boxes.astype(float).tolist()):
            record = {"image_id": 7 * i + 3, "category_id": int(found[i].classes[k]) * 2 + 1}
            if pose:
                record["keypoints"] = found[i].keypoints[k].astype(float).ravel().tolist()
            else:
                record["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            results.append({**record, "score": float(found[i].scores[k])})
    truth_file, found_file = folder / "truth.json", folder / "found.json"
    images = [{"id": 7 * i + 3, "width": 640, "height": 480} for i in range(len(ids))]
    categories = [{"id": 2 * c + 1, "name": f"class {c}"} for c in range(CLASSES)]
    truth_file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    found_file.write_text(json.dumps(results))
    return str(truth_file), str(found_file)


def oracle(truth_file: str, found_file: str, how: Settings, without: tuple[int, ...] = ()) -> np.ndarray:
    """pycocotools' numbers (12, or 10 for keypoints), NaN for its -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(truth_file)
        judge = COCOeval(truth, truth.loadRes(found_file), coco.ENGINE[how.kind])
        judge.params.imgIds = [i for i in judge.params.imgIds if i not in without]
        judge.params.maxDets = list(how.max_dets)
        if how.sigmas:
            judge.params.kpt_oks_sigmas = np.array(how.sigmas)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return np.where(judge.stats < 0, np.nan, judge.stats)


def values(details: coco.Mapping) -> np.ndarray:
    return np.array([v.value for v in details.values()])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.sampled_from([(1, 10, 100), (1, 2, 3)]))
def test_equals_pycocotools(tmp_path_factory, seed: int, pose: bool, ties: bool, most: tuple[int, ...]) -> None:
    how = POSE if pose else Settings(max_dets=most)
    sample = make(25, seed, pose=pose, ties=ties)
    paths = files(sample, tmp_path_factory.mktemp("coco"), pose=pose)
    expected = oracle(*paths, how) if most[-1] == 100 or pose else None
    state = CocoAP.empty(CLASSES, how).update(*sample)
    for measured in (state, coco.from_files(*paths, how)):
        prepared = measured.prepared()
        engine = prepared.engine(np.ones(25, bool))
        for ours, theirs in zip(prepared.matches.weigh(np.ones(25, int)), engine, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9)
        if expected is not None:  # pycocotools' summary looks for 100 detections
            np.testing.assert_allclose(values(measured.compute().details), expected, atol=1e-6)


@pytest.mark.parametrize("pose", [False, True])
def test_a_count_is_as_many_copies(pose: bool) -> None:
    how = POSE if pose else Settings()
    ids, found, truths = make(20, 3, pose=pose)
    counts = np.random.default_rng(1).integers(0, 4, 20)
    index = np.repeat(np.arange(20), counts)
    copies = [f"{ids[i]} {k}" for k, i in enumerate(index)]
    copied = CocoAP.empty(CLASSES, how).update(copies, [found[i] for i in index], [truths[i] for i in index]).compute()
    got = CocoAP.empty(CLASSES, how).update(ids, found, truths).prepared().at(counts)
    np.testing.assert_allclose(list(got.named.values()), values(copied.details), atol=1e-9)
    np.testing.assert_allclose(got.per_class, copied.per_class, atol=1e-9)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(8)))
def test_order_and_merging_change_neither_value_nor_interval(seed: int, order: list[int]) -> None:
    ids, found, truths = make(8, seed, ties=True)
    whole = CocoAP.empty(CLASSES).update(ids, found, truths).compute(bootstrap=8, seed=2)
    state = CocoAP.empty(CLASSES)
    for k, i in enumerate(order):
        one = CocoAP.empty(CLASSES).update([ids[i]], [found[i]], [truths[i]])
        state = one.merge(state) if k % 2 else state.merge(one)
    again = state.compute(bootstrap=8, seed=2)
    np.testing.assert_equal(again.as_dict(), whole.as_dict())


def test_left_out_images_equal_pycocotools_without_them(tmp_path: Path) -> None:
    sample = make(30, 11)
    paths = files(sample, tmp_path, pose=False)
    out = [0, 4, 21]
    expected = oracle(*paths, Settings(), tuple(7 * i + 3 for i in out))
    state = CocoAP.empty(CLASSES).update(*sample)
    result = state.compute(without=[sample[0][i] for i in out], bootstrap=20)
    np.testing.assert_allclose(values(result.details), expected, atol=1e-6)
    assert result.images == 27
    assert result.low < result.value < result.high
    of_files = coco.from_files(*paths).compute(without=[str(7 * i + 3) for i in out])
    np.testing.assert_allclose(values(of_files.details), expected, atol=1e-6)


def test_masks_from_files_equal_pycocotools(tmp_path: Path) -> None:
    from pycocotools import mask

    rng = np.random.default_rng(0)
    images = [{"id": i, "width": 60, "height": 50} for i in range(1, 9)]
    annotations, results = [], []
    for i in range(1, 9):
        for _ in range(4):
            y, x, h, w = rng.integers(1, 25, 4)
            true, guess = np.zeros((2, 50, 60), np.uint8)
            true[y : y + h, x : x + w] = 1
            guess[y : y + h + int(rng.integers(0, 4)), x + int(rng.integers(0, 4)) : x + w] = 1
            for where, m in ((annotations, true), (results, guess)):
                rle = mask.encode(np.asfortranarray(m))
                rle["counts"] = rle["counts"].decode()
                where.append({"image_id": i, "category_id": 1, "segmentation": rle})
            annotations[-1] |= {"id": len(annotations), "area": float(true.sum()), "iscrowd": 0, "bbox": [x, y, w, h]}
            results[-1]["score"] = float(rng.random())
    annotations = [{k: list(map(int, v)) if k == "bbox" else v for k, v in a.items()} for a in annotations]
    (tmp_path / "t.json").write_text(
        json.dumps({"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations})
    )
    (tmp_path / "f.json").write_text(json.dumps(results))
    paths = (str(tmp_path / "t.json"), str(tmp_path / "f.json"))
    how = Settings("masks")
    np.testing.assert_allclose(values(coco.from_files(*paths, how).compute().details), oracle(*paths, how), atol=1e-6)
    with pytest.raises(InputError, match="intervals of masks"):
        coco.from_files(*paths, how).compute(bootstrap=2)


@pytest.mark.parametrize("pose", [False, True])
def test_nothing_found_and_nothing_to_find(pose: bool) -> None:
    how = POSE if pose else Settings()
    empty = Poses([], [], [], []) if pose else Boxes([], [], [])
    points = np.ones((1, len(SIGMAS), 3))
    truth = Truth([[0, 0, 50, 50]], [0], keypoints=points)
    none_found = CocoAP.empty(2, how).update(["a", "b"], [empty, empty], [truth, truth]).compute(bootstrap=3)
    assert (none_found.value, none_found.low, none_found.high) == (0, 0, 0)
    assert np.isnan(none_found.per_class[1])
    nothing = Truth(np.zeros((0, 4)), [])
    found = Poses(points, [0.5], [[0, 0, 9, 9]], [1]) if pose else Boxes([[0, 0, 9, 9]], [0.5], [1])
    none_there = CocoAP.empty(2, how).update(["a", "b"], [found, empty], [nothing, nothing]).compute(bootstrap=3)
    assert np.isnan(none_there.value)


def test_errors_name_image_file_and_field(tmp_path: Path) -> None:
    state = CocoAP.empty(2)
    nothing = Truth(np.zeros((0, 4)), [])
    with pytest.raises(InputError, match=r"image a\.jpg: prediction has category 2 of 2"):
        state.update(["a.jpg"], [Boxes([[0, 0, 1, 1]], [1], [2])], [nothing])
    with pytest.raises(InputError, match="has no keypoints"):
        CocoAP.empty(2, POSE).update(["a"], [Boxes([], [], [])], [nothing])
    with pytest.raises(InputError, match=r"there are 5 sigmas|keypoints of the prediction"):
        CocoAP.empty(2, POSE).update(["a"], [Poses(np.zeros((1, 3, 3)), [1], [[0, 0, 1, 1]], [0])], [nothing])
    with pytest.raises(InputError, match="max_dets"):
        Settings(max_dets=(10, 1))
    with pytest.raises(InputError, match="kind is 'box'"):
        Settings("box")
    with pytest.raises(InputError, match="sigmas"):
        Settings("keypoints", sigmas=(0.1, 0))
    with pytest.raises(InputError, match="different settings"):
        state.merge(CocoAP.empty(2, POSE))
    with pytest.raises(InputError, match=r"missing\.json does not exist"):
        coco.from_files(str(tmp_path / "missing.json"), "x")
    truth_file, found_file = files(make(3, 0), tmp_path, pose=False)
    Path(found_file).write_text('[{"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]')
    with pytest.raises(InputError, match="has results of images that"):
        coco.from_files(truth_file, found_file)
    paths = files(make(3, 0, pose=True), tmp_path, pose=True)
    with pytest.raises(InputError, match=r"truth\.json: annotation 1 has 15 keypoint numbers where 17 sigmas need 51"):
        coco.from_files(*paths, Settings("keypoints"))
    Path(truth_file).write_text("{")
    with pytest.raises(InputError, match=r"truth\.json"):
        coco.from_files(truth_file, found_file)
