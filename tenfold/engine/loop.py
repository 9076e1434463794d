"""The training loop, one for all tasks: batches in, checkpoints, telemetry and losses out.

A task brings a `Learner`: what is trained, and how a batch becomes a loss and an update. Everything else is here: where
to go on from, when to save, what to do on a signal or a loss that is not a number.

A run that was killed at any moment, started again, gives the same losses bit for bit (on CPU, at the same number of
ranks and threads). For that, all that a step depends on is the checkpoint's tensors and the step's number: the batch
(engine.streams), the random seed (`step_seed`), the learning rate (engine.optim).
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from tenfold.engine.checkpoint import Checkpoint, Checkpointer
from tenfold.engine.distributed import World
from tenfold.engine.steplog import StepLog
from tenfold.engine.streams import mix
from tenfold.errors import InterruptedRun, TrainingError
from tenfold.telemetry import Telemetry

B_contra = TypeVar("B_contra", contravariant=True)
B = TypeVar("B")
log = logging.getLogger(__name__)


class LoopConfig(BaseModel):
    """How long to train, and when to save and look.

    Attributes:
        steps: optimizer steps of the whole run.
        seed: of whatever draws random numbers inside the network (dropout); the loader has its own.
        checkpoint_steps: save each so many steps; 0: only by time.
        checkpoint_seconds: save when so long has passed since the last save began; 0: only by steps. A save is always
            made at the end and on SIGTERM.
        keep_last: finished checkpoints to keep.
        keep_every: steps whose multiples are kept for good; 0: none.
        log_steps: a line of telemetry each so many steps. The loss is logged at every step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    checkpoint_steps: int = Field(default=0, ge=0)
    checkpoint_seconds: float = Field(default=600.0, ge=0)
    keep_last: int = Field(default=3, ge=1)
    keep_every: int = Field(default=0, ge=0)
    log_steps: int = Field(default=50, ge=1)


class Learner(Protocol[B_contra]):
    """What is trained: networks and optimizers, and what one step does to them."""

    def state(self) -> Mapping[str, Tensor]:
        """All tensors that a later step depends on, by name, **live**: a checkpoint is read into them in place.

        The names are the same before the first step and after. Weights of the trunk are `trunk.…`. Tensors that differ
        between ranks are marked with `checkpoint.shard`.
        """

    def loss(self, step: int, batch: B_contra) -> Tensor:
        """Forward pass: this rank's loss, a scalar; the loop takes the mean over ranks for the log."""

    def update(self, step: int) -> float:
        """Apply the gradients that `loss.backward()` left, and forget them; returns the learning rate."""

    def samples(self, batch: B_contra) -> Sequence[str]:
        """Ids of a batch's samples, for the error that names them. Its length is the number of images."""


@dataclass(frozen=True)
class Hook:
    """Something to do between steps: a monitor, an evaluation. All ranks call it together.

    Attributes:
        name: prefix of its values in the log.
        every: after each so many steps. At the end of the run every hook is called, when the last checkpoint is
            written; again, when the process ended inside a hook and the run is started again.
        run: steps done -> values by name.
    """

    name: str
    every: int
    run: Callable[[int], Mapping[str, float]]


class NonFiniteLossError(TrainingError):
    """The loss is not a number. Weights and the last checkpoint are as they were before the step.

    Attributes:
        step: counted from 0.
        loss: nan, inf or -inf.
        samples: ids of all samples of the step, of all ranks.
    """

    def __init__(self, step: int, loss: float, samples: list[str], kept: Checkpoint | None) -> None:
        self.step, self.loss, self.samples = step, loss, samples
        shown = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
        super().__init__(
            f"the loss is {loss} at step {step}; its samples: {shown}. "
            + (f"The checkpoint of step {kept.step} is good: {kept.uri}" if kept else "There is no checkpoint yet"),
            "start a new run from it (--init) with a lower learning rate, or look at these samples",
        )


@dataclass
class Outcome:
    """What a call of `train` did.

    Attributes:
        first: step it began with.
        steps: steps done in all.
        loss: of the last step; None where no step was left to do.
        checkpoint: of the last step.
        seconds: of the steps themselves, waiting for data included.
        hooks: newest values of every hook.
    """

    first: int
    steps: int
    loss: float | None = None
    checkpoint: Checkpoint | None = None
    seconds: float = 0.0
    hooks: dict[str, float] = field(default_factory=dict)


def train(
    learner: Learner[B],
    batches: Callable[[int], Iterable[tuple[int, B]]],
    config: LoopConfig,
    *,
    world: World,
    checkpointer: Checkpointer,
    telemetry: Telemetry,
    start: int,
    facts: Callable[[int], dict[str, Any]] = lambda step: {},
    losses: StepLog | None = None,
    hooks: Sequence[Hook] = (),
) -> Outcome:
    """Train from step `start` to `config.steps`. All ranks call it alike.

    Args:
        learner: already holds the state of step `start` (`checkpointer.resume(learner.state())`).
        batches: first step -> (step, batch) in order, this rank's share; an engine.loader.Loader.
        config: how long, and when to save.
        world: the ranks.
        checkpointer: writes to the run's folder.
        telemetry: of this rank.
        start: steps done before.
        facts: steps done -> what a checkpoint's manifest tells (images, epoch).
        losses: log of every step; only rank 0 has one.
        hooks: called between steps.

    Raises NonFiniteLossError before such a loss touches the weights, InterruptedRun after SIGTERM or SIGINT when the
    checkpoint is written, StorageError where checkpoints cannot be written.
    """
    outcome = Outcome(start, start, checkpoint=checkpointer.newest)
    saved, saved_at, reported = start if checkpointer.newest else -1, time.monotonic(), checkpointer.newest

    def save(steps: int) -> None:
        nonlocal saved, saved_at
        if steps == saved:
            return
        if losses:
            losses.flush()
        checkpointer.save(steps, learner.state(), {**facts(steps), "loss": outcome.loss})
        saved, saved_at = steps, time.monotonic()

    def look(hook: Hook, steps: int) -> None:
        outcome.hooks |= {f"{hook.name}/{name}": value for name, value in hook.run(steps).items()}

    with stop_signals() as stopped:
        for step, batch, wait, begin in _timed(batches(start)):
            _seed(step_seed(config.seed, step, world.rank), world)

            # Forward and backward. The loss travels to the host while the backward pass runs.
            loss = learner.loss(step, batch)
            read = _read_later(loss)
            loss.backward()

            # The ranks agree on the loss, and on whether to stop or save: one sum of three numbers. Each rank may have
            # got its signal, or seen the clock, at another moment.
            due = config.checkpoint_seconds and time.monotonic() - saved_at > config.checkpoint_seconds
            total, stop, save_now = world.sum([read(), float(stopped.is_set()), float(world.main and bool(due))])
            outcome.loss = total / world.size
            if not math.isfinite(outcome.loss):
                ids = [i for part in world.gather(list(learner.samples(batch))) for i in part]
                checkpointer.wait()
                raise NonFiniteLossError(step, outcome.loss, ids, checkpointer.newest)

            # The update.
            rate = learner.update(step)
            outcome.steps = done = step + 1

            # What is told: losses, telemetry, hooks.
            if losses:
                losses.add(step, {"loss": outcome.loss})
            seconds = time.perf_counter() - begin
            outcome.seconds += seconds
            telemetry.step(
                images=len(learner.samples(batch)),
                seconds=seconds,
                wait_seconds=wait,
                loss=outcome.loss,
                learning_rate=rate,
            )
            for hook in hooks:
                if done % hook.every == 0 and done < config.steps:
                    look(hook, done)

            # Checkpoints.
            if (
                stop
                or save_now
                or done == config.steps
                or (config.checkpoint_steps and done % config.checkpoint_steps == 0)
            ):
                save(done)
            if (newest := checkpointer.newest) is not None and newest is not reported:
                telemetry.checkpoint_saved(newest.step)
                reported = newest
            if stop:
                break

    checkpointer.wait()
    outcome.checkpoint = checkpointer.newest
    if outcome.checkpoint is not None and outcome.checkpoint is not reported:
        telemetry.checkpoint_saved(outcome.checkpoint.step)
    if losses:
        losses.flush()
    if outcome.steps < config.steps:
        raise InterruptedRun(
            f"stopped by a signal after step {outcome.steps} of {config.steps}; its checkpoint is written",
            "run the same command again to go on",
        )
    for hook in hooks:  # after the last checkpoint: whatever they meet, no training is lost
        look(hook, config.steps)
    return outcome


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generators for one step of one rank; a pure function, so no random state is saved."""
    return mix(mix(seed ^ 0x5EED) ^ (step * 0x10001 + rank)) >> 1


def _seed(seed: int, world: World) -> None:
    """Seed the generators a step can draw from. torch.manual_seed would do, but asks every kind of device: 0.1 ms."""
    torch.default_generator.manual_seed(seed)
    if world.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _timed(batches: Iterable[tuple[int, B]]) -> Iterator[tuple[int, B, float, float]]:
    """(step, batch, seconds waited for it, when the waiting began); closes the loader's threads at the end."""
    iterator = iter(batches)
    with closing(iterator) if hasattr(iterator, "close") else _nothing():  # type: ignore[type-var]
        while True:
            begin = time.perf_counter()
            try:
                step, batch = next(iterator)
            except StopIteration:
                return
            yield step, batch, time.perf_counter() - begin, begin


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _read_later(loss: Tensor) -> Callable[[], float]:
    """Start the loss's way to the host; calling the result waits for it, not for what was started after it."""
    if not loss.is_cuda:
        return lambda: float(loss.detach())
    host = torch.empty((), dtype=loss.dtype, pin_memory=True)
    host.copy_(loss.detach(), non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def read() -> float:
        event.synchronize()
        return float(host)

    return read


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and SIGINT set the event instead of ending the process; a second Ctrl-C ends it as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        before[number] = signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
