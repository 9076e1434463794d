"""The loop with the smallest learner there is: resume, signals, losses that are not numbers, hooks."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from rank_processes import Ranks, run_ranks
from torch import Tensor

from tenfold.engine.checkpoint import Checkpointer, latest, load_weights
from tenfold.engine.distributed import World, join, leave
from tenfold.engine.loop import Hook, LoopConfig, NonFiniteLossError, Outcome, step_seed, train
from tenfold.engine.steplog import StepLog, read_steps
from tenfold.errors import InterruptedRun, TrainingError
from tenfold.telemetry import Telemetry

Batch = tuple[Tensor, list[str]]
ALONE = World()


class Line:
    """Learns w x = 2 x by gradient descent with momentum, behind dropout: its step depends on the random seed."""

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self.weight = torch.zeros(3, requires_grad=True)
        self.momentum = torch.zeros(3)

    def state(self) -> dict[str, Tensor]:
        return {"trunk.weight": self.weight, "optimizer.momentum": self.momentum}

    def loss(self, step: int, batch: Batch) -> Tensor:
        x = torch.nn.functional.dropout(batch[0], 0.3)
        return ((self.weight * x - 2 * batch[0]) ** 2).mean()

    def update(self, step: int) -> float:
        assert self.weight.grad is not None
        (gradient,) = self.world.gather(self.weight.grad)[:1] if self.world.size > 1 else (self.weight.grad,)
        with torch.no_grad():
            self.momentum.mul_(0.9).add_(gradient)
            self.weight.sub_(self.momentum, alpha=0.01)
        self.weight.grad = None
        return 0.01

    def samples(self, batch: Batch) -> Sequence[str]:
        return batch[1]


class Batches:
    """Batches as pure functions of the step; does something at given steps."""

    def __init__(self, steps: int, start: int = 0, at: dict[int, object] | None = None) -> None:
        self.steps, self.start, self.at = steps, start, at or {}
        self.closed = False

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        try:
            for step in range(self.start, self.steps):
                x = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
                action = self.at.get(step)
                if callable(action):
                    action()
                elif action is not None:
                    x = x * float(action)  # type: ignore[arg-type]
                yield step, (x, [f"image-{step}-{i}" for i in range(4)])
        finally:
            self.closed = True


def run(
    folder: Path,
    steps: int = 30,
    *,
    at: dict[int, object] | None = None,
    world: World = ALONE,
    learner: Line | None = None,
    hooks: Sequence[Hook] = (),
    **config: float,
) -> Outcome:
    learner = learner or Line(world)
    checkpointer = Checkpointer(str(folder / "checkpoints"), recipe={}, inputs=[])
    found = checkpointer.resume(learner.state())
    start = found.step if found else 0
    losses = StepLog(str(folder / "losses"), start) if world.main else None
    with Telemetry(run="test", rank=world.rank, gpu=None, progress=False, first_step=start) as telemetry:
        try:
            return train(
                learner,
                lambda first: Batches(steps, first, at),
                LoopConfig(**{"steps": steps, "checkpoint_steps": 10, **config}),  # type: ignore[arg-type]
                world=world,
                checkpointer=checkpointer,
                telemetry=telemetry,
                start=start,
                facts=lambda done: {"images": done * 4},
                losses=losses,
                hooks=hooks,
            )
        finally:
            checkpointer.close()
            if losses:
                losses.close()


def test_trains_and_leaves_checkpoint_and_losses(tmp_path: Path) -> None:
    learner = Line()
    outcome = run(tmp_path, learner=learner)
    losses = read_steps(str(tmp_path / "losses"))
    assert list(losses) == list(range(30))
    assert outcome.steps == 30
    assert outcome.loss == losses[29]["loss"]
    assert (learner.weight > 0.2).all()  # on its way to 2
    assert outcome.checkpoint is not None
    assert outcome.checkpoint.step == 30
    assert outcome.checkpoint.manifest.facts["images"] == 120
    assert outcome.checkpoint.manifest.facts["loss"] == outcome.loss


def test_a_stop_at_any_step_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    for stop in (1, 9, 10, 23, 29):

        def interrupt() -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(InterruptedRun, match=f"after step {stop} of 30"):
            run(tmp_path / str(stop), at={stop - 1: interrupt})
        assert run(tmp_path / str(stop)).first == stop
        assert read_steps(str(tmp_path / str(stop) / "losses")) == read_steps(str(tmp_path / "whole" / "losses"))
        ends = [latest(str(tmp_path / name / "checkpoints")) for name in (str(stop), "whole")]
        assert ends[0] is not None
        assert ends[1] is not None
        assert ends[0].digest == ends[1].digest


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path, 3)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path)
    assert again.first == again.steps == 30
    assert again.loss is None
    assert again.checkpoint is not None
    assert first.checkpoint is not None
    assert again.checkpoint.digest == first.checkpoint.digest


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights(tmp_path: Path, poison: float) -> None:
    learner = Line()
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path, at={17: poison}, learner=learner)
    error = caught.value
    assert isinstance(error, TrainingError)
    assert error.exit_code == 5
    assert error.step == 17
    assert error.samples == [f"image-17-{i}" for i in range(4)]
    assert "step 17" in error.message
    assert "image-17-0" in error.message
    assert "checkpoint of step 10 is good" in error.message
    assert learner.weight.isfinite().all()
    newest = latest(str(tmp_path / "checkpoints"))
    assert newest is not None
    assert newest.step == 10
    whole = Line()
    run(tmp_path / "whole", 17, learner=whole)
    assert torch.equal(learner.weight, whole.weight)  # as it was before the step


def test_batches_are_closed_whatever_happens(tmp_path: Path) -> None:
    made: list[Batches] = []

    def batches(first: int) -> Batches:
        made.append(Batches(30, first, {5: math.nan}))
        return made[-1]

    checkpointer = Checkpointer(str(tmp_path), recipe={}, inputs=[])
    with (
        Telemetry(run="test", gpu=None, progress=False) as telemetry,
        pytest.raises(NonFiniteLossError),
    ):
        train(
            Line(),
            batches,
            LoopConfig(steps=30),
            world=World(),
            checkpointer=checkpointer,
            telemetry=telemetry,
            start=0,
        )
    assert made[0].closed


def test_hooks_run_between_steps_and_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(step: int) -> dict[str, float]:
        torch.rand(3)  # draws random numbers: the steps after must not notice
        seen.append(step)
        return {"value": step / 2}

    outcome = run(tmp_path, 25, hooks=[Hook("monitor", 10, look)])
    assert seen == [10, 20, 25]
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "failing", 25, hooks=[Hook("monitor", 50, lambda step: {"value": 1 / 0})])
    again = run(tmp_path / "failing", 25, hooks=[Hook("monitor", 50, lambda step: {"value": step})])
    assert (again.first, again.hooks) == (25, {"monitor/value": 25})
    assert outcome.hooks == {"monitor/value": 12.5}
    run(tmp_path / "plain", 25)
    assert read_steps(str(tmp_path / "losses")) == read_steps(str(tmp_path / "plain" / "losses"))


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    writer_steps = run(tmp_path, 4, checkpoint_steps=0, checkpoint_seconds=1e-6).steps
    assert writer_steps == 4
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3  # one a step, the last three are kept


def test_step_seeds_differ() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(100) for rank in range(4)}
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_torn_line_is_dropped_and_later_steps_come_again(tmp_path: Path) -> None:
    log = StepLog(str(tmp_path))
    for step in range(5):
        log.add(step, {"loss": step + 0.1})
    log.close()
    with open(tmp_path / "000000000.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    assert list(read_steps(str(tmp_path))) == [0, 1, 2, 3, 4]
    again = StepLog(str(tmp_path), 3)
    again.add(3, {"loss": 3.5})
    again.close()
    assert read_steps(str(tmp_path)) == {0: {"loss": 0.1}, 1: {"loss": 1.1}, 2: {"loss": 2.1}, 3: {"loss": 3.5}}


def test_step_log_on_minio(minio) -> None:  # type: ignore[no-untyped-def]
    uri = minio.uri("losses")
    log = StepLog(uri)
    for step in range(4):
        log.add(step, {"loss": 0.5})
        if step == 1:
            log.flush()
    log.close()
    StepLog(uri, 3)
    assert list(read_steps(uri)) == [0, 1, 2]


def _train_rank(folder: str, signalled: int) -> None:
    world = join(threads=1)

    def interrupt() -> None:
        if world.rank == signalled:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        run(Path(folder), at={12: interrupt}, world=world)
        raise AssertionError("was not interrupted")
    except InterruptedRun:
        leave()


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path, signalled: int) -> None:
    run_ranks(2, tmp_path, _train_rank, str(tmp_path), signalled)
    newest = latest(str(tmp_path / "checkpoints"))
    assert newest is not None
    assert newest.step == 13
    assert load_weights(newest.uri, "trunk.")["weight"].isfinite().all()


def _poisoned_rank(folder: str) -> None:
    world = join(threads=1)
    with pytest.raises(NonFiniteLossError) as caught:
        run(Path(folder), at={7: math.nan} if world.rank == 1 else None, world=world)
    assert caught.value.step == 7
    assert len(caught.value.samples) == 8  # of both ranks
    leave()


def test_all_ranks_stop_at_one_rank_s_loss(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, _poisoned_rank, str(tmp_path))


def _endless_rank(folder: str) -> None:
    world = join(threads=1)
    run(Path(folder), 10_000_000, world=world, checkpoint_steps=0)


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    ranks = Ranks(2, tmp_path, _endless_rank, str(tmp_path))
    while not (tmp_path / "losses").exists():
        assert all(process.is_alive() for process in ranks.processes), ranks.log.read_text()
    ranks.kill(1)
    assert ranks.wait() == [1, -signal.SIGKILL]
    assert "Connection" in ranks.log.read_text()
