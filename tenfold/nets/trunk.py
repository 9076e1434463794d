"""The trunk: a residual network cut into the named stages conv1 to conv5, without its classifier (T-01, T-04).

ResNet-50, -101 and -152 are torchvision's own layers; `small` (see small.py) is for images of 32 to 64 px. All four
have the same five stages, so whatever is put on a trunk (head, detector, segmenter) works on each of them.

Stages of the ResNets at 299 px: conv1 64 x 150², conv2 256 x 75², conv3 512 x 38², conv4 1,024 x 19²,
conv5 2,048 x 10².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.errors import InputError
from tenfold.nets import small
from tenfold.nets.trunk_config import STAGES, Stage, TrunkConfig

__all__ = ["STAGES", "Stage", "Trunk", "TrunkConfig", "normalise"]

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


class Trunk(nn.Module):
    """Five stages from images to features.

    Weights are random after construction (He normal, fan out; seed torch before); `load` takes a checkpoint.

    Attributes:
        config: what it was built from.
        stages: nn.ModuleDict conv1 to conv5, in order.
        channels: stage -> channels of its output.
        strides: stage -> input pixels a step of its output.
        out_channels: channels of conv5.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleDict(_resnet(config) if config.name in BLOCKS else small.stages(config.width))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum, module.eps = config.batch_norm_momentum, config.batch_norm_epsilon
        self.channels = {stage: _out_channels(self.stages[stage]) for stage in STAGES}
        self.out_channels = self.channels["conv5"]
        self.strides = self._set_strides()
        self._initialise()
        self._frozen: tuple[Stage, ...] = ()

    def forward(self, x: Tensor, upto: Stage = "conv5") -> Tensor:
        """Features of stage `upto`: float [b, 3, H, W] in [-1, 1] -> [b, channels[upto], H / stride, W / stride]."""
        for name, stage in self.stages.items():
            x = stage(x)
            if name == upto:
                return x
        raise InputError(f"upto: no stage {upto!r} in the trunk", f"name one of {', '.join(STAGES)}")

    def features(self, x: Tensor, stages: Iterable[Stage] = STAGES) -> dict[Stage, Tensor]:
        """Features of several stages from one pass, which ends at the deepest of them."""
        wanted = set(stages)
        if unknown := wanted - set(STAGES):
            raise InputError(f"stages: no stage {min(unknown)!r} in the trunk", f"name any of {', '.join(STAGES)}")
        found: dict[Stage, Tensor] = {}
        for name in STAGES:
            if len(found) == len(wanted):
                break
            x = self.stages[name](x)
            if name in wanted:
                found[name] = x
        return found

    def pooled(self, x: Tensor) -> Tensor:
        """The representation that heads and probes see: conv5 averaged over the image, [b, out_channels]."""
        return cast(Tensor, self(x).mean(dim=(2, 3)))

    def freeze(self, below: Stage | None) -> None:
        """Freeze every stage before `below` (E-07: `conv5`): no gradients, and batch norm keeps its running statistics.

        None thaws everything. Batch norm statistics are the trap: without that a "frozen" trunk goes on drifting in
        train mode though no weight gets a gradient.
        """
        if below is not None and below not in STAGES:
            raise InputError(f"freeze: no stage {below!r} in the trunk", f"name one of {', '.join(STAGES)}")
        self._frozen = STAGES[: STAGES.index(below)] if below else ()
        for name in STAGES:
            self.stages[name].requires_grad_(name not in self._frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Trunk:
        """Set training mode, except in frozen stages, which stay in evaluation mode."""
        super().train(mode)
        for name in getattr(self, "_frozen", ()):
            self.stages[name].eval()
        return self

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights from a state dict: a Trunk's, torchvision's (without its `fc`), or a DDP-wrapped one's.

        Raises InputError naming the first tensor that is missing, left over or of another shape.
        """
        renamed = {new: value for old, value in state.items() if (new := _our_name(old)) is not None}
        mine = self.state_dict()
        counters = {name for name in mine if name.endswith("num_batches_tracked")}  # old checkpoints have none
        missing = sorted(set(mine) - set(renamed) - counters)
        extra = sorted(set(renamed) - set(mine))
        shapes = [name for name in mine if name in renamed and renamed[name].shape != mine[name].shape]
        for what, names in (("lacks", missing), ("has an unknown tensor", extra), ("has another shape of", shapes)):
            if names:
                raise InputError(
                    f"checkpoint {what} {names[0]} (and {len(names) - 1} more): it is not one of {self.config.name}",
                    "check trunk.name and trunk.width against the checkpoint",
                )
        self.load_state_dict(renamed, strict=False)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.config.zero_init_residual:
            for stage in self.stages.values():
                for block in _blocks(stage):
                    nn.init.zeros_(_last_norm(block).weight)

    def _set_strides(self) -> dict[Stage, int]:
        """Apply output_stride and stage_strides to the convolutions; returns the stride of every stage."""
        limit, total, dilation = self.config.output_stride or 32, 1, 1
        strides: dict[Stage, int] = {}
        for name in STAGES:
            stage = self.stages[name]
            stride = own = _stride(stage)
            before = dilation
            if name in self.config.stage_strides:
                stride = self.config.stage_strides[name]
            elif total * own > limit:
                stride, dilation = 1, dilation * own
            if (stride, dilation) != (own, 1):
                _restride(stage, stride, before, dilation)
            total *= stride
            strides[name] = total
        return strides


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [b, 3, H, W] -> float in [-1, 1] per channel, channels last, on the images' device (T-03)."""
    if images.dtype != torch.uint8:
        raise InputError(f"normalise takes uint8 images, not {images.dtype}", "pass the loader's images as they are")
    floats = images.to(dtype=dtype, memory_format=torch.channels_last)
    return floats.mul_(2 / 255).sub_(1)


def _resnet(config: TrunkConfig) -> dict[str, nn.Module]:
    from torchvision.models import resnet as torchvision_resnet  # here, not above: it takes seconds that `small` saves

    net: Any = torchvision_resnet.ResNet(
        torchvision_resnet.Bottleneck, list(BLOCKS[config.name]), num_classes=1, width_per_group=int(64 * config.width)
    )
    return {
        "conv1": nn.Sequential(net.conv1, net.bn1, net.relu),
        "conv2": nn.Sequential(net.maxpool, net.layer1),
        "conv3": net.layer2,
        "conv4": net.layer3,
        "conv5": net.layer4,
    }


def _blocks(stage: nn.Module) -> list[Any]:
    """Residual blocks of a stage: torchvision's Bottleneck (which has a conv3) or small.Block."""
    return [module for module in stage.modules() if hasattr(module, "conv2") and hasattr(module, "stride")]


def _last_norm(block: Any) -> nn.BatchNorm2d:
    return cast(nn.BatchNorm2d, block.bn3 if hasattr(block, "bn3") else block.bn2)


def _stride(stage: nn.Module) -> int:
    """Stride of a stage as built: of its pooling and its first block, or of its convolution."""
    blocks = _blocks(stage)
    stride = int(blocks[0].stride) if blocks else 1
    for module in stage.children():
        if isinstance(module, nn.MaxPool2d):
            stride *= int(cast(int, module.stride))
        elif isinstance(module, nn.Conv2d) and not blocks:
            stride *= module.stride[0]
    return stride


def _restride(stage: nn.Module, stride: int, before: int, dilation: int) -> None:
    """Set stride and dilation of a stage; its first convolution still dilates like the stage before."""
    for module in stage.children():
        if isinstance(module, nn.MaxPool2d):
            module.stride, stride = stride, 1
    for index, block in enumerate(_blocks(stage)):
        spatial = [block.conv2] if hasattr(block, "conv3") else [block.conv1, block.conv2]
        for place, conv in enumerate(spatial):
            conv.dilation = conv.padding = (before if index == place == 0 else dilation,) * 2
        if index == 0:
            spatial[0].stride, block.stride = (stride, stride), stride
            projection = getattr(block, "downsample", None)
            if projection is not None:
                projection[0].stride = (stride, stride)


def _out_channels(stage: nn.Module) -> int:
    blocks = _blocks(stage)
    if blocks:
        return int(_last_norm(blocks[-1]).num_features)
    return next(module.num_features for module in stage.modules() if isinstance(module, nn.BatchNorm2d))


def _our_name(name: str) -> str | None:
    """Our name of a tensor of a Trunk, of torchvision's ResNet, or of either inside wrappers; None for a classifier."""
    for prefix in ("module.", "_orig_mod.", "trunk."):
        name = name.removeprefix(prefix)
    head, _, rest = name.partition(".")
    if head == "fc":
        return None
    torchvision = {"conv1": "conv1.0", "bn1": "conv1.1", "layer1": "conv2.1", "layer2": "conv3", "layer3": "conv4"}
    torchvision["layer4"] = "conv5"
    return f"stages.{torchvision[head]}.{rest}" if head in torchvision else name
