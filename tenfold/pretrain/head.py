"""The multi-label head, split by class over the ranks (T-02, T-12, T-13, D-03, D-11).

Every rank holds the rows `lo` to `hi` of the weight [classes, in_features]; the paper had 50 such shards. A step:

    features [b, d] --all-gather--> [B, d]      every rank sees the global batch
    logits   [rows, B] of its own classes       never gathered
    loss     sum over classes, mean over the B images, summed over the ranks
    d loss / d features [B, d] --reduce-scatter--> [b, d]

The loss of a label is logistic and every absent label is a negative. Targets are never materialised: with the logits of
the positives negated, the loss is the sum of softplus over all logits, and its gradient is the sigmoid with the
positives negated once more. That is exact for large logits too, where "softplus(z) - z" would cancel.

The gradient of the weight (150 MB for 18,291 classes) is not materialised either: `HeadOptimizer.step` forms it block
by block, in cache, and applies it at once (see fused.py).
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tenfold.engine.optim import OptimizerConfig
from tenfold.errors import InputError
from tenfold.pretrain import fused

INIT_BLOCK = 64  # rows that share one random generator: the same weights whatever the number of shards


class HeadConfig(BaseModel):
    """The head's loss and start.

    Attributes:
        loss: `sigmoid`: a logistic loss a class (T-02); `softmax`: one distribution over all classes, spread evenly
            over an image's labels (the ImageNet baseline B, where there is one).
        prior: probability that every class starts with (its bias is the logit of it); None: biases start at 0, which
            is a probability of 0.5 and, with 18,291 classes, a first loss of 12,678 an image. Only with `sigmoid`.
        init_std: standard deviation of the first weights; None: 1 / sqrt(in_features).
        fused: the optimizer forms and applies the weight's gradient in blocks. Off: ordinary `.grad`, for any
            optimizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    prior: float | None = Field(default=None, gt=0, lt=1)
    init_std: float | None = Field(default=None, ge=0)
    fused: bool = True

    @model_validator(mode="after")
    def _check(self) -> HeadConfig:
        if self.loss == "softmax" and self.prior is not None:
            raise ValueError("prior: a softmax starts uniform; leave head.prior out")
        return self


def shard_bounds(classes: int, shards: int) -> list[tuple[int, int]]:
    """First and last-plus-one class of every shard; sizes differ by at most one, the larger first.

    18,291 classes over 50 shards: 41 of 366 and 9 of 365 (T-12).
    """
    if not 1 <= shards <= classes:
        raise InputError(
            f"{classes:,} classes cannot be split over {shards} shards", f"use 1 to {classes:,} ranks, or more classes"
        )
    size, larger = divmod(classes, shards)
    starts = [i * size + min(i, larger) for i in range(shards + 1)]
    return list(itertools.pairwise(starts))


class ShardedHead(nn.Module):
    """This rank's share of the head.

    Args:
        in_features: features an image (2,048).
        classes: classes in all (18,291).
        config: loss and start.
        rank: this rank's index, and `world`, the number of ranks: which share it holds.
        group: process group of the ranks; None: the default group (none is needed with world 1).
        seed: of the first weights, which are the same at any world size.
        ddp: the gradients that flow back to the features are `world` times those of the global mean, because
            DistributedDataParallel takes the mean over ranks where the sum is meant. False: those of the global mean.

    Attributes:
        weight: [hi - lo, in_features], and `bias` [hi - lo]; float32.
        image_losses: [b] float64, the last forward's loss of each local image, for naming bad rows.

    Do not wrap it in DistributedDataParallel: its shares differ by design.
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        config: HeadConfig | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
        seed: int = 0,
        ddp: bool = True,
    ) -> None:
        super().__init__()
        self.config = config or HeadConfig()
        self.in_features, self.classes = in_features, classes
        self.rank, self.world, self.group = rank, world, group
        self.lo, self.hi = shard_bounds(classes, world)[rank]
        self.feature_scale = float(world) if ddp else 1.0
        self.weight = nn.Parameter(torch.empty(self.hi - self.lo, in_features))
        self.bias = nn.Parameter(torch.empty(self.hi - self.lo))
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.image_losses = torch.empty(0, dtype=torch.float64)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draw the first weights: a pure function of seed, class and in_features, so shards agree with the whole."""
        std = self.config.init_std if self.config.init_std is not None else self.in_features**-0.5
        prior = self.config.prior
        start = 0.0 if prior is None or self.config.loss == "softmax" else float(torch.logit(torch.tensor(prior)))
        block = torch.empty(INIT_BLOCK, self.in_features)
        with torch.no_grad():
            self.bias.fill_(start)
            for first in range(self.lo // INIT_BLOCK * INIT_BLOCK, self.hi, INIT_BLOCK):
                generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + first) & (2**63 - 1))
                block.normal_(0.0, std, generator=generator)
                lo, hi = max(self.lo, first), min(self.hi, first + INIT_BLOCK)
                self.weight[lo - self.lo : hi - self.lo] = block[lo - first : hi - first]

    def forward(self, features: Tensor, offsets: Tensor, labels: Tensor) -> Tensor:
        """The loss: sum over classes, mean over the global batch; a scalar, the same on every rank.

        Args:
            features: [b, in_features] of any float dtype; computed in float32. `b` is the same on every rank.
            offsets: int64 [b + 1]; labels of image i are `labels[offsets[i]:offsets[i + 1]]`.
            labels: int64, global class indices. A label given twice counts once.
        """
        return cast(Tensor, _HeadLoss.apply(features, self.weight, self.bias, offsets, labels, self))

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits of this rank's classes for this rank's images, [b, hi - lo] float32. No communication."""
        return torch.addmm(self.bias, features.float(), self.weight.T)

    @torch.no_grad()
    def top(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k highest logits over all classes, for this rank's images: values and class indices, [b, k] each.

        All ranks call it together, with equally many images. Ties go to the lower class.
        """
        gathered = self._gather(features.float())
        values, classes = _top(self.logits(gathered), min(k, self.hi - self.lo))
        classes += self.lo
        if self.world > 1:
            values = self._gather_columns(values, k, -torch.inf)
            classes = self._gather_columns(classes, k, self.classes)
            order = _top(values, min(k, self.classes))[1]  # columns are in order of rank, so ties keep their order
            values, classes = values.gather(1, order), classes.gather(1, order)
        mine = slice(self.rank * len(features), (self.rank + 1) * len(features))
        return values[mine], classes[mine]

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Materialise the gradients of weight and bias that wait for `HeadOptimizer.step` (fused mode; for tests)."""
        weight, bias = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        for logit_gradients, features in self.pending:
            weight += logit_gradients @ features
            bias += logit_gradients.sum(1)
        return weight, bias

    def checkpoint_state(self, optimizer: HeadOptimizer | None = None) -> dict[str, Tensor]:
        """Weight, bias and the optimizer's state as what torch.distributed.checkpoint saves and loads **in place**.

        The tensors alias this head's own, so `dcp.load(head.checkpoint_state(optimizer))` fills the head. They name
        their place in the whole (torch's CheckpointableTensor protocol), so a checkpoint loads at any other world size.
        DTensor's Shard(0) would not do: it cuts 18,291 rows over 50 ranks as 49 x 366 and 357.
        """
        state: dict[str, Tensor] = {"weight": self.weight, "bias": self.bias}
        if optimizer is not None:
            for name, parameter in (("weight", self.weight), ("bias", self.bias)):
                state |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
        return {name: self._placed(tensor) for name, tensor in state.items()}

    def _placed(self, tensor: Tensor) -> Tensor:
        """An alias of a local tensor that knows its place in the global one (torch.distributed.checkpoint.protocol)."""
        alias: Any = tensor.detach()
        alias.global_shape = (self.classes, *tensor.shape[1:])
        alias.global_offsets = ((self.lo, *(0,) * (tensor.ndim - 1)),)
        alias.local_offsets = ((0,) * tensor.ndim,)
        alias.local_sizes = (tuple(tensor.shape),)
        return cast(Tensor, alias)

    def _positives(self, offsets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Row (local class) and column (image of the global batch) of every positive of this shard."""
        if labels.numel():
            least, most = torch.stack(labels.aminmax()).tolist()
            if least < 0 or most >= self.classes:
                raise InputError(
                    f"labels: class {least if least < 0 else most} is outside 0 to {self.classes - 1}",
                    "train with as many classes as the corpus has (the recipe's classes, or the corpus's own table)",
                )
        counts = offsets.diff()
        if self.world > 1:
            counts, labels = self._gather_labels(counts, labels)
        return fused.positives(counts, labels, self.lo, self.hi)

    def _gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors of one shape, one below the other."""
        if self.world == 1:
            return tensor
        out = tensor.new_empty((self.world * tensor.shape[0], *tensor.shape[1:]))
        dist.all_gather_into_tensor(out, tensor.contiguous(), group=self.group)
        return out

    def _gather_labels(self, counts: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        counts = self._gather(counts)
        totals = counts.view(self.world, -1).sum(1).tolist()
        padded = labels.new_zeros(max(1, *totals))
        padded[: len(labels)] = labels
        rows = self._gather(padded).view(self.world, -1)
        return counts, torch.cat([row[:total] for row, total in zip(rows, totals, strict=True)])

    def _gather_columns(self, tensor: Tensor, k: int, fill: float) -> Tensor:
        padded = tensor.new_full((tensor.shape[0], k), fill)
        padded[:, : tensor.shape[1]] = tensor
        parts = self._gather(padded).view(self.world, *padded.shape)
        return parts.transpose(0, 1).reshape(tensor.shape[0], -1)

    def _sum(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def _max(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def _scatter_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks of [B, d]; this rank's rows of it."""
        if self.world == 1:
            return tensor
        out = tensor.new_empty((tensor.shape[0] // self.world, *tensor.shape[1:]))
        dist.reduce_scatter_tensor(out, tensor.contiguous(), group=self.group)
        return out


class _HeadLoss(torch.autograd.Function):
    """Loss and, in the same pass over the weight, the gradients of logits and features."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, labels: Tensor, head: ShardedHead
    ) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            gathered = head._gather(features.detach().float()).contiguous()
            positives = head._positives(offsets, labels)
            wanted = any(ctx.needs_input_grad[:3])
            if head.config.loss == "sigmoid":
                losses, logit_gradients, feature_gradients = fused.sigmoid_loss(
                    gathered, weight, bias, positives, wanted
                )
                losses = head._sum(losses)
            else:
                losses, logit_gradients, feature_gradients = fused.softmax_loss(
                    gathered, weight, bias, positives, wanted, head._sum, head._max
                )
            local = len(features)
            head.image_losses = losses[head.rank * local : (head.rank + 1) * local]
            if wanted:
                ctx.head, ctx.images, ctx.dtype = head, len(gathered), features.dtype
                ctx.save_for_backward(logit_gradients, gathered, head._scatter_sum(feature_gradients))
            return losses.mean().float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        logit_gradients, gathered, feature_gradients = ctx.saved_tensors
        head: ShardedHead = ctx.head
        scale = upstream / ctx.images
        features = (feature_gradients * (scale * head.feature_scale)).to(ctx.dtype)
        scaled = logit_gradients * scale
        if head.config.fused:
            head.pending.append((scaled, gathered))
            return features, None, None, None, None, None
        return features, scaled @ gathered, scaled.sum(1), None, None, None


class HeadOptimizer(torch.optim.Optimizer):
    """Applies what `backward` left pending: gradient, weight decay and update a block of classes at a time.

    Equal to the unfused optimizer of `config` up to rounding. State a parameter: `square_average` (RMSProp) and
    `momentum`, made at construction. Several backward passes before a step accumulate, as with `.grad`.
    """

    def __init__(self, head: ShardedHead, config: OptimizerConfig) -> None:
        if not head.config.fused:
            raise InputError("head.fused is off", "use build_optimizer(head, config), or switch head.fused on")
        self.head, self._update = head, fused.Update(config)
        groups = [
            {"params": [head.weight], "weight_decay": config.weight_decay},
            {"params": [head.bias], "weight_decay": config.weight_decay if config.decay_on == "all" else 0.0},
        ]
        super().__init__(groups, {"lr": config.learning_rate})
        for p in (head.weight, head.bias):
            if config.name == "rmsprop":
                self.state[p]["square_average"] = torch.full_like(p, config.square_start)
            if config.momentum:
                self.state[p]["momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply all pending gradients. Does nothing where none is pending."""
        if not self.head.pending:
            return
        lefts, rights = zip(*self.head.pending, strict=True)
        logit_gradients, features = (
            (lefts[0], rights[0]) if len(lefts) == 1 else (torch.cat(lefts, 1), torch.cat(rights))
        )
        self.head.pending.clear()
        for group in self.param_groups:
            (p,) = group["params"]
            settings = self.state[p], group["lr"], group["weight_decay"]
            if p.ndim == 2:
                self._update(p, (logit_gradients, features), *settings)
            else:
                self._update.plain(p, logit_gradients.sum(1), *settings)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what is pending."""
        self.head.pending.clear()


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row in falling order, ties to the lower column, which topk alone does not promise."""
    values = values.masked_fill(values.isnan(), -torch.inf)
    least = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > least, values == least
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = chosen.nonzero()[:, 1].view(len(values), k)
    ordered = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return ordered.values, columns.gather(1, ordered.indices)
