"""What a pretraining run is made of: one frozen model, complete, written into every checkpoint."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tenfold.engine.images import AnyTransform
from tenfold.engine.optim import Clock, OptimizerConfig, ScheduleConfig, learning_rate_at
from tenfold.errors import InputError
from tenfold.nets.precision import Precision
from tenfold.nets.trunk_config import TrunkConfig
from tenfold.pretrain.head import HeadConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LengthConfig(_Frozen):
    """How long a run is: steps of `images_per_step` images, or epochs over its own images. Exactly one of the two.

    Attributes:
        steps: worker steps (T-09: 36M).
        images_per_step: images in one of them (T-08: 32), whatever the global batch is.
        epochs: passes over the n images of the run.
    """

    steps: int | None = Field(default=None, ge=1)
    images_per_step: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> LengthConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("steps, epochs: give exactly one of the two (null for the other)")
        if (self.steps is None) != (self.images_per_step is None):
            raise ValueError("images_per_step: belongs to steps; give both, or only epochs")
        return self


class InitConfig(_Frozen):
    """What the trunk starts from (T-14).

    Attributes:
        kind: `random`, or `checkpoint`.
        uri: of the checkpoint: a manifest of ours, or a `.pt` file with a state dict (torchvision's names are known).
    """

    kind: Literal["random", "checkpoint"] = "random"
    uri: str | None = None

    @model_validator(mode="after")
    def _check(self) -> InitConfig:
        if (self.kind == "checkpoint") != (self.uri is not None):
            raise ValueError("uri: belongs to kind 'checkpoint'; give both, or neither")
        return self


class MonitorConfig(_Frozen):
    """What is watched during the run (M-01).

    Attributes:
        every: optimizer steps between two looks at the monitor set; 0: only at the end.
        top: predictions an image that count (mAP@100).
        weights: class weights of the mean: `uniform`, `log-frequency`, or the path of a weight file. The paper's own
            weights (how common a class is in social media photographs) are private.
        probe: also train a linear probe on the pooled features at the end.
    """

    every: int = Field(default=0, ge=0)
    top: int = Field(default=100, ge=1)
    weights: str = "uniform"
    probe: bool = False


class CheckpointConfig(_Frozen):
    """When checkpoints are written, and which stay.

    Attributes:
        every: optimizer steps between two; 0: only at the end and on SIGTERM.
        keep: newest checkpoints kept.
    """

    every: int = Field(default=1000, ge=0)
    keep: int = Field(default=2, ge=1)


class PretrainRecipe(_Frozen):
    """A whole pretraining run, except where its corpus lies and how many of its images it reads.

    Attributes:
        name: of the recipe.
        trunk: the network.
        head: loss and start of the class-sharded head.
        classes: classes of the head; None: as many as the corpus has.
        images: resizing, cropping, flipping (T-03).
        batch: images a worker step (T-08).
        workers: worker steps whose gradients one optimizer step averages: the global batch is batch * workers. The
            paper's 50 workers (T-11) each update on their own; 1 is that without staleness, update for update.
        rate_scaling: how the learning rate grows with `workers`: `none`; `sqrt` (holds for RMSProp); `linear` (for
            SGD).
        optimizer: and its constants.
        schedule: learning rate over time.
        length: of the run.
        precision: `auto`: bf16 where the hardware multiplies it, else fp32 (see nets/precision.py).
        init: what the trunk starts from.
        seed: of weights, order and augmentation.
        monitor: what is watched.
        checkpoint: when checkpoints are written.
    """

    name: str
    trunk: TrunkConfig
    head: HeadConfig = HeadConfig()
    classes: int | None = Field(default=None, ge=1)
    images: AnyTransform
    batch: int = Field(ge=1)
    workers: int = Field(default=1, ge=1)
    rate_scaling: Literal["none", "sqrt", "linear"] = "none"
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    length: LengthConfig
    precision: Precision = "auto"
    init: InitConfig = InitConfig()
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    monitor: MonitorConfig = MonitorConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def global_batch(self) -> int:
        """Images an optimizer step, over all ranks."""
        return self.batch * self.workers

    def total_steps(self, n: int) -> int:
        """Optimizer steps of the run over `n` images; parts of a step count as one."""
        if n < self.global_batch:
            raise InputError(
                f"n = {n} images are fewer than a global batch of {self.global_batch}",
                "choose a larger n, or a smaller batch or fewer workers",
            )
        if self.length.epochs is not None:
            return math.ceil(self.length.epochs * (n // self.global_batch))
        steps, images = self.length.steps or 0, self.length.images_per_step or 0
        return math.ceil(steps * images / self.global_batch)

    def clock(self, n: int) -> Clock:
        """How this run counts time over `n` images."""
        return Clock(batch=self.global_batch, epoch_images=n, total_steps=self.total_steps(n))

    def epochs(self, n: int) -> float:
        """Passes over `n` images (T-09: 36M steps of 32 over 300M images are 3.84)."""
        return self.total_steps(n) * self.global_batch / n

    def scaled_optimizer(self) -> OptimizerConfig:
        """The optimizer with its rate scaled for the number of workers: what is really used."""
        factor = {"none": 1.0, "sqrt": math.sqrt(self.workers), "linear": float(self.workers)}[self.rate_scaling]
        if factor == 1.0:
            return self.optimizer
        return self.optimizer.model_copy(update={"learning_rate": self.optimizer.learning_rate * factor})

    def learning_rate(self, step: int, n: int) -> float:
        """Learning rate of optimizer step `step` (from 0) of a run over `n` images."""
        return learning_rate_at(self.scaled_optimizer(), self.schedule, step, self.clock(n))


def parse_recipe(data: dict[str, Any]) -> PretrainRecipe:
    """A recipe from plain data (a manifest's `recipe`); raises InputError naming the field that is wrong."""
    try:
        return PretrainRecipe.model_validate(data)
    except ValidationError as error:
        raise InputError(*explain(error)) from None


def explain(error: ValidationError) -> tuple[str, str]:
    """Message and cure of a validation error, in the words of a person: each field with what is wrong about it."""
    lines = []
    for found in error.errors():
        path = [str(part) for part in found["loc"]]
        text = found["msg"].removeprefix("Value error, ")
        lines.append(f"{'.'.join(path) or error.title}: {text[:1].lower()}{text[1:]}, not {found['input']!r:.80}")
        if found["type"] == "value_error":
            lines[-1] = f"{'.'.join(path) or error.title}: {text}"
    return "; ".join(lines), "`tenfold recipes show NAME` prints every field with its value"
