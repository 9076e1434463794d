"""What pretraining trains: the trunk on every rank, the head's classes split over the ranks (design section 5).

    images [b, 3, H, W] of this rank --trunk--> features [b, d] --head, all ranks together--> loss of the global batch

DistributedDataParallel takes the mean of the trunk's gradients; the head scales them so that the mean is the gradient
of the global loss. Batch norm normalises each rank's share of the batch by its own statistics, as the paper's workers
do; the running statistics are averaged over the ranks at every step, so that they describe the global batch and any
rank's copy is the right one to save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tenfold.engine.batches import Batch
from tenfold.engine.checkpoint import TRUNK
from tenfold.engine.distributed import World
from tenfold.engine.optim import build_optimizer, learning_rate_at, set_learning_rate
from tenfold.nets import precision
from tenfold.nets.trunk import Trunk, normalise
from tenfold.pretrain.config import PretrainRecipe
from tenfold.pretrain.head import HeadOptimizer, ShardedHead
from tenfold.pretrain.monitor import Pooled


class PretrainLearner:
    """Trunk, head and their optimizers: an engine.loop.Learner for batches of labelled images.

    Args:
        recipe: the run's settings.
        classes: of the head.
        n: images the run reads; schedules may count epochs.
        world: the ranks.

    Weights are random, a pure function of the recipe's seed; `trunk.load` and a checkpoint change them in place.
    """

    def __init__(self, recipe: PretrainRecipe, classes: int, n: int, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.clock = recipe.clock(n)
        self.optimizer_config = recipe.scaled_optimizer()
        torch.manual_seed(recipe.seed)
        self.trunk = Trunk(recipe.trunk)
        self.trunk.to(device=world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = ShardedHead(
            self.trunk.out_channels, classes, recipe.head, rank=world.rank, world=world.size, seed=recipe.seed
        ).to(world.device)
        self.statistics = _flatten_statistics(self.trunk)
        self.features = _distributed(Pooled(self.trunk), world, recipe.global_batch // world.size, recipe)
        self.trunk_optimizer = build_optimizer(self.trunk, self.optimizer_config)
        self.head_optimizer = (
            HeadOptimizer(self.head, self.optimizer_config)
            if recipe.head.fused
            else build_optimizer(self.head, self.optimizer_config)
        )
        for optimizer in (self.trunk_optimizer, self.head_optimizer):
            _start_momentum(optimizer)

    def state(self) -> dict[str, Tensor]:
        """See Learner: `trunk.…`, `head.…`, `optimizer.trunk.…`; the head's tensors know their place in the whole."""
        state = {TRUNK + name: tensor for name, tensor in self.trunk.state_dict(keep_vars=True).items()}
        for name, parameter in self.trunk.named_parameters():
            for key, value in self.trunk_optimizer.state.get(parameter, {}).items():
                state[f"optimizer.trunk.{name}.{key}"] = value
        head = self.head.checkpoint_state(cast(HeadOptimizer, self.head_optimizer))
        return state | {f"head.{name}": tensor for name, tensor in head.items()}

    def loss(self, step: int, batch: Batch) -> Tensor:
        """See Learner: the loss of the global batch, the same on every rank."""
        self.trunk.train()
        batch = batch.to(self.world.device)
        with precision.autocast(self.recipe.precision, self.world.device):
            features = self.features(normalise(batch.images))
        return cast(Tensor, self.head(features, batch.offsets, batch.labels))

    def update(self, step: int) -> float:
        """See Learner."""
        rate = learning_rate_at(self.optimizer_config, self.recipe.schedule, step, self.clock)
        optimizers = (self.trunk_optimizer, self.head_optimizer)
        set_learning_rate(optimizers, rate)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.world.size > 1:
            dist.all_reduce(self.statistics)
            self.statistics /= self.world.size
        return rate

    def samples(self, batch: Batch) -> Sequence[str]:
        """See Learner: ids of the images."""
        return batch.ids


def _distributed(features: nn.Module, world: World, images: int, recipe: PretrainRecipe) -> nn.Module:
    """Wrap in DDP where there are several ranks.

    The trap: DDP reduces everything in one bucket in its first backward pass and in other buckets from then on. With
    three ranks and more, the order in which gloo's ring adds up depends on the bucket, so a resumed run would differ
    from the uninterrupted one in the last bit. A pass over an empty batch first makes the first real step like all
    others.
    """
    if world.size == 1:
        return features
    wrapped = DistributedDataParallel(
        features,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
    if world.size > 2:
        kept = {name: buffer.clone() for name, buffer in features.named_buffers()}
        side = recipe.images.size
        with precision.autocast(recipe.precision, world.device):
            wrapped(
                normalise(torch.zeros(images, 3, side, side, dtype=torch.uint8, device=world.device))
            ).sum().backward()
        wrapped.zero_grad(set_to_none=True)
        for name, buffer in features.named_buffers():
            buffer.copy_(kept[name])
    return wrapped


def _flatten_statistics(module: nn.Module) -> Tensor:
    """Make all running means and variances views of one flat tensor, so that averaging them is one small all-reduce."""
    buffers = list(_running(module))
    flat = torch.cat([owner._buffers[name].flatten() for owner, name in buffers])  # type: ignore[union-attr]
    start = 0
    for owner, name in buffers:
        buffer = owner._buffers[name]
        assert buffer is not None
        owner._buffers[name] = flat[start : start + buffer.numel()].view_as(buffer)
        start += buffer.numel()
    return flat


def _running(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                yield owner, name


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """torch's SGD makes its momentum in the first step; a checkpoint wants it before (zeros lead to the same step)."""
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if group["momentum"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
