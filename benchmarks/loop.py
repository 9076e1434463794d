"""What the engine's loop costs: the same steps in `engine.loop.train`, with everything on, and in a bare loop.

The small trunk at batch 64 is the hardest case: a step takes milliseconds. Ours logs every loss, writes telemetry,
agrees on signals, seeds each step and saves two checkpoints meanwhile (one each second or two); the bare loop only
computes. CPU time of all threads is compared, for the wall clock of two cores that others use too says little.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator

import torch

from benchmarks import harness
from tenfold.engine.batches import Batch, Place
from tenfold.engine.checkpoint import Checkpointer
from tenfold.engine.distributed import World
from tenfold.engine.loop import LoopConfig, train
from tenfold.engine.steplog import StepLog
from tenfold.pretrain.learner import PretrainLearner
from tenfold.recipes.overrides import override
from tenfold.recipes.pretrain import recipe
from tenfold.telemetry import Telemetry

BATCH, CLASSES, ROWS = 64, 40, 50_000


def batches(first: int, steps: int) -> Iterator[tuple[int, Batch]]:
    """One batch again and again: the loader has a benchmark of its own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    offsets = torch.arange(BATCH + 1) * 2
    labels = torch.randint(0, CLASSES, (BATCH * 2,), generator=generator)
    rows = torch.arange(BATCH)
    batch = Batch(Place(0, 0, 0, range(BATCH)), images, rows, [f"{i:064d}" for i in range(BATCH)], offsets, labels)
    for step in range(first, steps):
        yield step, batch


def learner() -> PretrainLearner:
    """Trunk, head and optimizers of the CIFAR-10N recipe."""
    return PretrainLearner(override(recipe("cifar10n"), [f"batch={BATCH}"]), CLASSES, ROWS, World())


def bare(steps: int) -> harness.Values:
    trained = learner()
    start, cpu = time.perf_counter(), time.process_time()
    for step, batch in batches(0, steps):
        trained.loss(step, batch).backward()
        trained.update(step)
    return {
        "ms": (time.perf_counter() - start) / steps * 1e3,
        "cpu_ms": (time.process_time() - cpu) / steps * 1e3,
    }


def ours(folder: str, steps: int) -> harness.Values:
    shutil.rmtree(folder, ignore_errors=True)
    trained = learner()
    checkpointer = Checkpointer(f"{folder}/checkpoints", recipe={}, inputs=[])
    losses = StepLog(f"{folder}/losses")
    with Telemetry(run="benchmark", gpu=None, progress=False, log=f"{folder}/telemetry.jsonl") as telemetry:
        start, cpu = time.perf_counter(), time.process_time()
        outcome = train(
            trained,
            lambda first: batches(first, steps),
            LoopConfig(steps=steps, checkpoint_steps=steps // 2, log_steps=50),
            world=World(),
            checkpointer=checkpointer,
            telemetry=telemetry,
            start=0,
            losses=losses,
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    losses.close()
    checkpointer.close()
    times = checkpointer.times
    return {
        "ms": seconds / steps * 1e3,
        "cpu_ms": cpu / steps * 1e3,
        "step_ms": outcome.seconds / steps * 1e3,
        "stall_ms_a_save": (times.staging + times.waiting) / times.saves * 1e3,
        "writing_ms_a_save": times.writing / times.saves * 1e3,
    }


def benchmark(scale: float) -> harness.Benchmark:
    torch.set_num_threads(1)
    steps = max(30, int(100 * scale))
    folder = tempfile.mkdtemp(prefix="tenfold-loop-")
    return harness.Benchmark(
        what=f"{steps} steps of the small trunk, batch {BATCH}, 1 thread, 2 checkpoints",
        sides={"engine.loop": lambda: ours(folder, steps), "bare loop": lambda: bare(steps)},
        ratios=[harness.Ratio("cpu", "cpu_ms", "lower", 0.95)],
        close=lambda: shutil.rmtree(folder, ignore_errors=True),
    )
