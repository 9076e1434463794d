"""mAP@100 of 2,000 images x 6,000 classes (about FastEval14K's width), against torchmetrics.

torchmetrics has no top-100 rule, so its side gets what a user would give it: scores outside an image's top 100 set to
zero. It then credits the unretrieved positives at the base rate; taken off, both agree to 1e-5, which is checked.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.harness import Benchmark, Ratio, Values
from tenfold.metrics.average_precision import MeanAveragePrecision


def benchmark(scale: float) -> Benchmark:
    """Both sides get the same scores in memory and deliver the class values."""
    from torchmetrics.classification import MultilabelAveragePrecision

    images, classes = int(2000 * scale), int(6000 * scale)
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(images, classes, generator=generator) < 37 / 6000
    scores = torch.sigmoid(torch.randn(images, classes, generator=generator) + 3 * truth)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), truth.sum(1).cumsum(0)])
    labels = truth.nonzero()[:, 1]
    ours_once = MeanAveragePrecision.empty(classes).update(scores, offsets, labels).compute().per_class

    def ours() -> Values:
        start = time.perf_counter()
        state = MeanAveragePrecision.empty(classes).update(scores, offsets, labels)
        state.compute()
        return {"seconds": time.perf_counter() - start}

    def torchmetrics() -> Values:
        start = time.perf_counter()
        values, where = scores.topk(100, dim=1)
        masked = torch.zeros_like(scores).scatter_(1, where, values)
        metric = MultilabelAveragePrecision(num_labels=classes, average="none", validate_args=False)
        result = metric(masked, truth.long()).numpy()
        seconds = time.perf_counter() - start
        base = truth.float().mean(0).numpy()
        missed = 1 - ((masked > 0) & truth).sum(0).numpy() / np.maximum(truth.sum(0).numpy(), 1)
        np.testing.assert_allclose(ours_once, result - missed * base, atol=1e-5)
        return {"seconds": seconds}

    def bandwidth() -> str:
        start = time.perf_counter()
        scores.sum()
        return (
            f"one pass over the score matrix ({scores.nbytes / 1e6:.0f} MB) takes {time.perf_counter() - start:.4f} s"
        )

    return Benchmark(
        what=f"mAP@100 of {images:,} images x {classes:,} classes, scores in memory",
        sides={"tenfold": ours, "torchmetrics": torchmetrics},
        ratios=[Ratio("time", "seconds", "lower", aim=20)],
        limits={"memory bandwidth": bandwidth},
    )
