"""Which trunk, as configuration: apart from the network, because loading torchvision takes seconds and a recipe does
not need it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Stage = Literal["conv1", "conv2", "conv3", "conv4", "conv5"]
STAGES: tuple[Stage, ...] = ("conv1", "conv2", "conv3", "conv4", "conv5")


class TrunkConfig(BaseModel):
    """Which trunk, and how it strides.

    Attributes:
        name: the network.
        output_stride: input pixels a step of conv5; stages that would go beyond it keep their resolution and dilate
            instead, so that the receptive field stays (DeepLab's 8, detection's 16). None: the network's own
            (32; 16 for `small`).
        stage_strides: stride of single stages, above output_stride: `{"conv5": 1}` keeps conv5 at the resolution of
            conv4 **without** dilation. 1 or 2, of conv2 to conv5.
        width: multiplies the channels inside the bottlenecks, as torchvision's wide ResNets do; of `small`, all
            channels.
        zero_init_residual: the last batch norm of each block starts at 0, so that a block starts as the identity.
        batch_norm_momentum: torch's convention: share of the new batch in the running statistics (TF's 0.9 is 0.1
            here).
        batch_norm_epsilon: added to the variance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["resnet50", "resnet101", "resnet152", "small"] = "resnet50"
    output_stride: Literal[8, 16, 32] | None = None
    stage_strides: dict[Stage, Literal[1, 2]] = {}
    width: float = Field(default=1.0, gt=0, le=16)
    zero_init_residual: bool = True
    batch_norm_momentum: float = Field(default=0.1, gt=0, le=1)
    batch_norm_epsilon: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _check(self) -> TrunkConfig:
        if "conv1" in self.stage_strides:
            raise ValueError("stage_strides: conv1 has a fixed stride; give strides of conv2 to conv5")
        if self.name == "small" and self.output_stride == 32:
            raise ValueError("output_stride: `small` goes down to 16; leave it out, or set 8 or 16")
        return self
