"""The class-sharded head against nn.Linear + BCEWithLogitsLoss + torch.optim.RMSprop(foreach): one training step.

Forward, backward (to the features too) and optimizer step at B = 32, 2,048 x 18,291, one shard, all cores. Both sides
get the same features and ragged labels and compute in float32. Memory is the growth of the peak resident size from
before the weights are made: weights, optimizer state and whatever a step allocates.
"""

from __future__ import annotations

import os
import time

from benchmarks import harness
from benchmarks.harness import Benchmark, Ratio, Values

IMAGES, FEATURES, CLASSES, LABELS = 32, 2_048, 18_291, 3
WARM_UP, STEPS = 2, 8


def benchmark(scale: float) -> Benchmark:
    classes = max(64, int(CLASSES * scale))
    return Benchmark(
        what=f"multi-label head, forward + backward + RMSProp, B = {IMAGES}, {FEATURES:,} x {classes:,}, float32",
        sides={
            "tenfold": lambda: harness.in_child(ours, classes),
            "torch": lambda: harness.in_child(peer, classes),
        },
        ratios=[
            Ratio("time", "step_seconds", "lower", 2.0),
            Ratio("memory", "peak_bytes", "lower", 2.0),
        ],
        limits={"memory traffic": lambda: traffic(classes)},
    )


def inputs(classes: int):  # type: ignore[no-untyped-def]
    """Features [32, 2,048], offsets and labels: three positives an image."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(IMAGES, FEATURES, generator=generator).relu_()
    labels = torch.randint(0, classes, (IMAGES * LABELS,), generator=generator)
    return features.requires_grad_(), torch.arange(0, IMAGES * LABELS + 1, LABELS), labels


def ours(classes: int) -> Values:
    from tenfold.engine.optim import OptimizerConfig
    from tenfold.pretrain.head import HeadOptimizer, ShardedHead

    features, offsets, labels = inputs(classes)
    harness.mark_start()
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4, epsilon=1e-8, convention="torch")
    head = ShardedHead(FEATURES, classes)
    optimizer = HeadOptimizer(head, config)

    def step() -> float:
        features.grad = None
        loss = head(features, offsets, labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return timed(step)


def peer(classes: int) -> Values:
    import torch

    features, offsets, labels = inputs(classes)
    harness.mark_start()
    head = torch.nn.Linear(FEATURES, classes)
    criterion = torch.nn.BCEWithLogitsLoss(reduction="sum")
    optimizer = torch.optim.RMSprop(
        head.parameters(), lr=1e-3, alpha=0.9, eps=1e-8, momentum=0.9, weight_decay=1e-4, foreach=True
    )
    images = torch.repeat_interleave(torch.arange(IMAGES), offsets.diff())

    def step() -> float:
        features.grad = None
        optimizer.zero_grad(set_to_none=True)
        targets = torch.zeros(IMAGES, classes)
        targets[images, labels] = 1.0
        loss = criterion(head(features), targets) / IMAGES
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return timed(step)


def timed(step) -> Values:  # type: ignore[no-untyped-def]
    losses = [step() for _ in range(WARM_UP)]
    start = time.perf_counter()
    losses += [step() for _ in range(STEPS)]
    return {"step_seconds": (time.perf_counter() - start) / STEPS, "last_loss": losses[-1]}


def traffic(classes: int) -> str:
    """The least a step can move: read the weight once; read and write weight, square average and momentum once."""
    import torch

    size = classes * FEATURES * 4
    a, b = torch.ones(size // 4), torch.ones(size // 4)
    b.copy_(a)
    start = time.perf_counter()
    for _ in range(3):
        b.copy_(a)
    rate = 3 * 2 * size / (time.perf_counter() - start)
    least = 7 * size
    return f"{least / 1e9:.2f} GB at {rate / 1e9:.0f} GB/s (copying here) are {least / rate * 1000:.0f} ms a step"
