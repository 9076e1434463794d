"""The small trunk for images of 32 to 64 px: about 0.3 M parameters, shaped for accuracy a CPU second."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1


class SpaceToDepth(nn.Module):
    """Fold blocks of `stride` x `stride` pixels into channels: [b, c, H, W] -> [b, c s², H / s, W / s]."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Pads height and width up to a multiple of the stride with zeros (mid grey after `normalise`)."""
        below, right = -x.shape[-2] % self.stride, -x.shape[-1] % self.stride
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        return F.pixel_unshuffle(x, self.stride)


def set_stride(downsample: nn.Module, stride: int) -> None:
    """Set the stride of a block's projection."""
    first = cast(nn.Conv2d, cast(nn.Sequential, downsample)[0])
    first.stride = (stride, stride)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Module:
    projection = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, projection)


def stages(width: float) -> dict[str, nn.Module]:
    """The five stages; `width` multiplies all channels."""
    c1, c2, c3, c4, c5 = (max(8, round(width * c / 8) * 8) for c in (16, 16, 32, 64, 96))
    return {
        "conv1": nn.Sequential(
            nn.Conv2d(3, c1, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c1), nn.ReLU(inplace=True)
        ),
        "conv2": _stage(c1, c2, 1),
        "conv3": _stage(c2, c3, 2),
        "conv4": _stage(c3, c4, 2),
        "conv5": _stage(c4, c5, 2),
    }
