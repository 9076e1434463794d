"""The small trunk for images of 32 to 64 px: about 0.3 M parameters, shaped for accuracy a CPU second.

What pays on a CPU: halve the resolution at once, 3x3 convolutions with channels in multiples of 16, few layers. What
does not: bottlenecks, whose 1x1 convolutions and batch norms move as much memory as a 3x3 for a ninth of the work. What
was measured, and that the channels below are not yet the best found, stands in docs/decisions.md.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm: the first may stride and change channels, the second is residual.

    No projection: the shortcut starts behind the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, H, W] -> [b, outputs, H / stride, W / stride]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + x, inplace=True)


def stages(width: float) -> dict[str, nn.Module]:
    """The five stages; `width` multiplies all channels (rounded to multiples of 8)."""
    c1, c2, c3, c4, c5 = (max(8, round(width * channels / 8) * 8) for channels in (16, 16, 32, 64, 96))
    stem = nn.Conv2d(3, c1, 3, stride=2, padding=1, bias=False)
    return {
        "conv1": nn.Sequential(stem, nn.BatchNorm2d(c1), nn.ReLU(inplace=True)),
        "conv2": Block(c1, c2, 1),
        "conv3": Block(c2, c3, 2),
        "conv4": Block(c3, c4, 2),
        "conv5": Block(c4, c5, 2),
    }
