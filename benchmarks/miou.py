"""mIoU of 1,449 class maps of 500 x 375 pixels (VOC 2012's validation set in size), against torchmetrics.

The peer is `MulticlassJaccardIndex(num_classes=21, ignore_index=255)`, updated image by image as its documentation
shows, without argument checks (its own switch for speed; ours checks always), on int64 maps that it does not have to
convert, with one thread and with all (the better one counts). Maps are made of a few large regions with ragged borders,
ignored seams and errors in patches and in specks.
"""

from __future__ import annotations

import os
import time

import numpy as np

from benchmarks.harness import Benchmark, Ratio, Values
from tenfold.metrics.miou import MeanIoU
from tenfold.metrics.predictions import ClassMap

CLASSES, HEIGHT, WIDTH = 21, 375, 500


def maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A truth and a prediction [375, 500] uint8: background, up to five objects, seams of 255, 12 % wrong pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ragged = rng.normal(0, 3, (HEIGHT, WIDTH)).cumsum(1) / 20
    truth, predicted = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for _ in range(rng.integers(1, 6)):
        cy, cx, ry, rx = rng.uniform([0, 0, 30, 30], [HEIGHT, WIDTH, 150, 180])
        inside = np.hypot((y - cy + ragged) / ry, (x - cx + ragged) / rx)
        kind = rng.integers(1, CLASSES)
        truth[inside < 1] = kind
        truth[np.abs(inside - 1) < 0.03] = 255
        predicted[np.hypot((y - cy - 4) / ry, (x - cx + 3 - ragged) / rx) < 1] = kind if rng.random() < 0.8 else 7
    specks = rng.random((HEIGHT, WIDTH)) < 0.01
    predicted[specks] = rng.integers(0, CLASSES, int(specks.sum()))
    return truth, predicted


def benchmark(scale: float) -> Benchmark:
    """Both sides get the maps in memory and deliver the mean and the classes' values."""
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    images = max(2, int(1449 * scale))
    kinds = [maps(seed) for seed in range(min(images, 100))]  # 100 different images, taken in turn: 19 MB each side
    pairs = [kinds[i % len(kinds)] for i in range(images)]
    tensors = [(torch.from_numpy(p).long(), torch.from_numpy(t).long()) for t, p in kinds]
    ids = [str(i) for i in range(images)]
    predictions = [ClassMap(p) for _, p in pairs]
    truths = [t for t, _ in pairs]
    classes: dict[str, np.ndarray] = {}

    def ours() -> Values:
        start = time.perf_counter()
        state = MeanIoU.empty(CLASSES)
        for i in range(0, images, 16):
            state = state.update(ids[i : i + 16], predictions[i : i + 16], truths[i : i + 16])
        classes["tenfold"] = state.compute().per_class
        seconds = time.perf_counter() - start
        state.compute(bootstrap=1000)
        return {"seconds": seconds, "1,000 resamples": time.perf_counter() - start - seconds}

    def torchmetrics(threads: int) -> Values:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        start = time.perf_counter()
        metric = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=255, validate_args=False)
        for i in range(images):
            metric.update(*tensors[i % len(kinds)])
        classes["torchmetrics"] = metric.compute().numpy()
        seconds = time.perf_counter() - start
        torch.set_num_threads(before)
        if "tenfold" in classes:
            np.testing.assert_allclose(classes["tenfold"], classes["torchmetrics"], atol=1e-6)
        return {"seconds": seconds}

    def bandwidth() -> str:
        start = time.perf_counter()
        for truth, predicted in pairs:
            np.bitwise_or(truth, predicted)
        return f"one byte-wise pass over both maps of all images takes {time.perf_counter() - start:.3f} s"

    return Benchmark(
        what=f"mIoU of {images:,} class maps {WIDTH}x{HEIGHT}, {CLASSES} classes with ignore, maps in memory",
        sides={
            "tenfold": ours,
            "torchmetrics, 1 thread": lambda: torchmetrics(1),
            "torchmetrics, all cores": lambda: torchmetrics(len(os.sched_getaffinity(0))),
        },
        ratios=[Ratio("time", "seconds", "lower", aim=3)],
        limits={"memory bandwidth": bandwidth},
    )
