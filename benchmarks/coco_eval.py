"""COCO box evaluation from predictions on disk to the 12 numbers, against pycocotools.

Annotations have COCO val2017's size: 5,000 images, 36,800 boxes of 80 categories, a long tail of images and categories,
1 % crowds, sizes as COCO has them (41 % small, 34 % medium, 24 % large). Detections are noisy copies, doubles and false
ones, at most 100 an image. Both sides read the same two JSON files; the 12 numbers must agree to 1e-6. pycocotools is
used as its demo does: load both files, evaluate, accumulate, summarise.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Benchmark, Ratio, Values

CATEGORIES = 80


def write(folder: Path, images: int, annotations: int) -> int:
    """Write truth.json and found.json; returns the number of detections."""
    rng = np.random.default_rng(0)
    often = rng.gamma(1.2, 1.0, images) + 0.02
    image = np.sort(rng.choice(images, annotations, p=often / often.sum()))
    popular = 1 / np.arange(1, CATEGORIES + 1) ** 0.9
    cls = rng.permutation(CATEGORIES)[rng.choice(CATEGORIES, annotations, p=popular / popular.sum())]
    side = np.exp(rng.normal(np.log(46), 1.1, annotations)).clip(4, 450)
    aspect = np.exp(rng.normal(0, 0.4, annotations))
    size = np.stack([(side * aspect).clip(3, 600), (side / aspect).clip(3, 440)], 1)
    boxes = np.concatenate([rng.random((annotations, 2)) * (np.array([640, 480]) - size), size], 1).round(2)
    crowd = rng.random(annotations) < 0.01
    share = rng.uniform(0.4, 0.9, annotations)

    copies = rng.integers(1, 7, annotations)  # detections around each object, the first the best
    of = np.repeat(np.arange(annotations), copies)
    noise = rng.normal(0, 1, (len(of), 4)) * np.tile(size[of], 2) * rng.uniform(0.01, 0.18, (len(of), 1))
    near = boxes[of] + noise
    wild = int(images * 25)
    far = np.concatenate([rng.random((wild, 2)) * 400, np.exp(rng.normal(4, 0.9, (wild, 2)))], 1)
    found = np.concatenate([near, far])
    found[:, 2:] = found[:, 2:].clip(1)
    where = np.concatenate([image[of], rng.integers(0, images, wild)])
    guessed = np.where(rng.random(len(of)) < 0.85, cls[of], rng.integers(0, CATEGORIES, len(of)))
    guessed = np.concatenate([guessed, rng.choice(CATEGORIES, wild, p=popular / popular.sum())])
    score = np.concatenate([rng.beta(2, 2, len(of)), rng.beta(1, 5, wild)])
    order = np.lexsort((-score, where))
    rank = np.arange(len(order)) - np.searchsorted(where[order], where[order])
    kept = order[rank < 100]

    ids = 139 + 37 * np.arange(images)
    truth = {
        "images": [{"id": int(i), "width": 640, "height": 480, "file_name": f"{i:012}.jpg"} for i in ids],
        "categories": [{"id": c + 1, "name": f"category {c}"} for c in range(CATEGORIES)],
        "annotations": [
            {
                "id": k + 1,
                "image_id": int(ids[image[k]]),
                "category_id": int(cls[k]) + 1,
                "bbox": boxes[k].tolist(),
                "area": float(round(boxes[k, 2] * boxes[k, 3] * share[k], 2)),
                "iscrowd": int(crowd[k]),
            }
            for k in range(annotations)
        ],
    }
    results = [
        {
            "image_id": int(ids[where[k]]),
            "category_id": int(guessed[k]) + 1,
            "bbox": found[k].round(2).tolist(),
            "score": float(score[k].round(5)),
        }
        for k in kept
    ]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(results))
    return len(results)


def benchmark(scale: float) -> Benchmark:
    """Both sides read the files and deliver COCO's 12 numbers."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    from tenfold.metrics import coco

    folder = tempfile.TemporaryDirectory()
    images, annotations = max(20, int(5000 * scale)), max(100, int(36_800 * scale))
    detections = write(Path(folder.name), images, annotations)
    truth, found = str(Path(folder.name) / "truth.json"), str(Path(folder.name) / "found.json")
    numbers: dict[str, np.ndarray] = {}

    def ours() -> Values:
        start = time.perf_counter()
        measured = coco.from_files(truth, found)
        result = measured.compute()
        numbers["tenfold"] = np.array([v.value for v in result.details.values()])
        seconds = time.perf_counter() - start
        measured.compute(bootstrap=20)
        return {"seconds": seconds, "20 resamples": time.perf_counter() - start - seconds}

    def pycocotools() -> Values:
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            annotated = COCO(truth)
            judge = COCOeval(annotated, annotated.loadRes(found), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        seconds = time.perf_counter() - start
        numbers["pycocotools"] = np.array(judge.stats)
        if "tenfold" in numbers:
            np.testing.assert_allclose(numbers["tenfold"], numbers["pycocotools"], atol=1e-6)
        return {"seconds": seconds, "AP": float(judge.stats[0])}

    def parsing() -> str:
        start = time.perf_counter()
        text = Path(found).read_bytes()
        read = time.perf_counter() - start
        json.loads(text)
        return (
            f"reading the {len(text) / 1e6:.0f} MB of predictions takes {read:.3f} s, "
            f"Python's JSON parser alone {time.perf_counter() - start - read:.2f} s"
        )

    return Benchmark(
        what=f"COCO's 12 numbers of {images:,} images, {annotations:,} boxes, {detections:,} detections in JSON files",
        sides={"tenfold": ours, "pycocotools": pycocotools},
        ratios=[Ratio("time", "seconds", "lower", aim=15)],
        limits={"input": parsing},
        close=folder.cleanup,
    )
