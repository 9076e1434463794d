"""Optimizers and learning rate schedules: RMSProp in both conventions, momentum SGD; T-05 to T-10, B, E-04 to E-12.

RMSProp, for gradient g, parameter p, rate r. The papers of 2017 mean TensorFlow's:

    convention "tensorflow"                         convention "torch"
    s = d s + (1 - d) g²      s starts at 1          the same, s starts at 0
    m = b m + r g / sqrt(s + epsilon)                m = b m + g / (sqrt(s) + epsilon)
    p = p - m                                        p = p - r m

They differ in three places: epsilon inside or outside the root, the start of s, and the rate inside or outside the
momentum, which matters whenever the rate changes. Momentum SGD is the same in both (m = b m + g, p = p - r m).
Everything is deterministic: the same state and gradients give the same bits, and `state_dict` holds all of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tenfold.errors import InputError


class OptimizerConfig(BaseModel):
    """Optimizer and its constants.

    Attributes:
        name: `rmsprop` (T-06) or `momentum` (B, E-03).
        learning_rate: the rate before the schedule's factor.
        momentum: 0.9 in all recipes of the paper; 0 switches it off.
        weight_decay: added to the gradient as `weight_decay * p` (L2; T-05). RMSProp then normalises it with the
            gradient, as in TensorFlow: this is not AdamW's decoupled decay.
        decay_on: `weights` are convolution and linear weights, not biases and batch norm (TF-Slim's convention);
            `all` is every parameter (E-09).
        square_decay: RMSProp's d (T-06 does not give it; 0.9 is TensorFlow's default).
        epsilon: RMSProp's epsilon (T-06 does not give it; 1e-10 is TensorFlow's default, Inception used 1.0).
        convention: where epsilon stands, see above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["rmsprop", "momentum"] = "rmsprop"
    learning_rate: float = Field(gt=0, le=100)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    decay_on: Literal["weights", "all"] = "weights"
    square_decay: float = Field(default=0.9, ge=0, lt=1)
    epsilon: float = Field(default=1e-10, ge=0)
    convention: Literal["tensorflow", "torch"] = "tensorflow"

    @property
    def epsilon_inside(self) -> bool:
        """Whether epsilon stands inside the root."""
        return self.convention == "tensorflow"

    @property
    def square_start(self) -> float:
        """What RMSProp's square average starts at."""
        return 1.0 if self.convention == "tensorflow" else 0.0

    @property
    def rate_in_momentum(self) -> bool:
        """Whether the rate is multiplied into the momentum (so that old gradients keep the rate of their time)."""
        return self.convention == "tensorflow" and self.name == "rmsprop"


class ScheduleConfig(BaseModel):
    """A factor on the learning rate over time.

    Time is counted in `unit`, and the unit is explicit because the sources disagree on it (T-07: "every 3M steps" in
    the paper, "every 3M samples" in Xception):

    - `steps` of `images_per_step` images. The paper's step is one worker's batch of 32, so its 3M steps are 96M images
      here too, whatever the global batch of this run is. `images_per_step` None: optimizer steps of this run.
    - `epochs` over the images of this run.
    - `run`: the share of this run, 0 to 1.

    Attributes:
        kind: `constant`; `exponential`: factor ** floor(t / every) (T-07); `step`: factor ** (boundaries passed)
            (B, E-04); `poly`: (1 - t / length) ** power (E-09); `cosine`: (1 + cos(pi t / length)) / 2.
        unit: see above.
        images_per_step: images a step of this schedule; only with unit `steps`.
        factor: of `exponential` and `step`.
        every: of `exponential`: how long a stair is.
        boundaries: of `step`, ascending; the rate falls at the first step with t >= boundary.
        length: of `poly` and `cosine`; the factor is 0 from there on. With unit `run` it is 1 unless given.
        power: of `poly`.
        warm_up: duration of a linear rise from `warm_up_start` times the rate; multiplies the factor above. 0: none.
        warm_up_start: factor at t = 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["constant", "exponential", "step", "poly", "cosine"] = "constant"
    unit: Literal["steps", "epochs", "run"] = "steps"
    images_per_step: int | None = Field(default=None, gt=0)
    factor: float | None = Field(default=None, gt=0, lt=1)
    every: float | None = Field(default=None, gt=0)
    boundaries: tuple[float, ...] = ()
    length: float | None = Field(default=None, gt=0)
    power: float | None = Field(default=None, gt=0)
    warm_up: float = Field(default=0.0, ge=0)
    warm_up_start: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        needs = {
            "constant": (),
            "exponential": ("factor", "every"),
            "step": ("factor", "boundaries"),
            "poly": ("power", *(() if self.unit == "run" else ("length",))),
            "cosine": () if self.unit == "run" else ("length",),
        }[self.kind]
        allowed = {*needs, *(("length",) if self.kind in ("poly", "cosine") else ())}
        given = {n for n in ("factor", "every", "boundaries", "length", "power") if getattr(self, n) not in (None, ())}
        wrong = [f"give schedule.{name}" for name in needs if name not in given]
        wrong += [f"leave schedule.{name} out" for name in sorted(given - allowed)]
        if wrong:
            raise ValueError(f"for a {self.kind} schedule with unit '{self.unit}', {' and '.join(wrong)}")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError("boundaries: must ascend; sort them and remove doubles")
        if self.images_per_step and self.unit != "steps":
            raise ValueError("images_per_step: counts only with unit 'steps'; leave it out or set the unit")
        return self


@dataclass(frozen=True)
class Clock:
    """How a run counts time.

    Attributes:
        batch: images an optimizer step, over all ranks.
        epoch_images: images an epoch (n).
        total_steps: optimizer steps of the whole run.
    """

    batch: int
    epoch_images: int
    total_steps: int

    def time(self, step: int, schedule: ScheduleConfig) -> float:
        """Time at the start of optimizer step `step` (from 0) in the schedule's unit."""
        if schedule.unit == "run":
            return step / self.total_steps
        if schedule.unit == "epochs":
            return step * self.batch / self.epoch_images
        if schedule.images_per_step is None:
            return float(step)
        return step * self.batch / schedule.images_per_step


def factor_at(schedule: ScheduleConfig, t: float) -> float:
    """The schedule's factor at time `t` (in its own unit)."""
    if schedule.kind == "exponential":
        factor = (schedule.factor or 1.0) ** math.floor(t / (schedule.every or 1.0))
    elif schedule.kind == "step":
        factor = (schedule.factor or 1.0) ** sum(t >= boundary for boundary in schedule.boundaries)
    elif schedule.kind in ("poly", "cosine"):
        left = max(0.0, 1 - t / (schedule.length or 1.0))
        factor = left**schedule.power if schedule.power else (1 - math.cos(math.pi * left)) / 2
    else:
        factor = 1.0
    if t < schedule.warm_up:
        factor *= schedule.warm_up_start + (1 - schedule.warm_up_start) * t / schedule.warm_up
    return factor


def learning_rate_at(config: OptimizerConfig, schedule: ScheduleConfig, step: int, clock: Clock) -> float:
    """Learning rate of optimizer step `step` (from 0): a pure function, so a resumed run continues it exactly."""
    return config.learning_rate * factor_at(schedule, clock.time(step, schedule))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the rate of every group of every optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over the parameters of `module` that want gradients; weight decay goes where `decay_on` says.

    Frozen parameters are left out, so freeze first.
    """
    wanted = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not wanted:
        raise InputError(
            "optimizer: no parameter wants a gradient", "thaw part of the network (freeze below a later stage)"
        )
    decayed = [p for _, p in wanted if p.ndim > 1 or config.decay_on == "all"]
    plain = [p for _, p in wanted if not (p.ndim > 1 or config.decay_on == "all")]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups.append({"params": plain, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if config.name == "momentum":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, foreach=True)
    return RMSProp(groups, config)


class RMSProp(torch.optim.Optimizer):
    """RMSProp with momentum in TensorFlow's or torch's convention (see the module's docstring).

    State a parameter: `square_average`, and `momentum` where momentum is not 0; made at construction, so that a
    checkpoint has the same entries before the first step and after.
    """

    def __init__(self, params: Any, config: OptimizerConfig) -> None:
        self.config = config
        super().__init__(params, {"lr": config.learning_rate, "weight_decay": config.weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["square_average"] = torch.full_like(p, config.square_start)
                if config.momentum:
                    self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient. A gradient tensor may be overwritten."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group["lr"], group["weight_decay"])
        return loss

    def _update(self, params: list[Tensor], rate: float, weight_decay: float) -> None:
        config = self.config
        grads = [p.grad for p in params if p.grad is not None]
        squares = [self.state[p]["square_average"] for p in params]
        if weight_decay:
            torch._foreach_add_(grads, params, alpha=weight_decay)
        torch._foreach_mul_(squares, config.square_decay)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - config.square_decay)
        if config.epsilon_inside:
            roots = torch._foreach_add(squares, config.epsilon)
            torch._foreach_sqrt_(roots)
        else:
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, config.epsilon)
        if not config.momentum:
            torch._foreach_addcdiv_(params, grads, roots, value=-rate)
            return
        moments = [self.state[p]["momentum"] for p in params]
        torch._foreach_mul_(moments, config.momentum)
        torch._foreach_addcdiv_(moments, grads, roots, value=rate if config.rate_in_momentum else 1.0)
        torch._foreach_add_(params, moments, alpha=-1.0 if config.rate_in_momentum else -rate)
