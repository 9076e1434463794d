"""The trunk: named stages, strides, freezing, checkpoints; its ResNets equal torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import nn

from tenfold.errors import InputError
from tenfold.nets import precision
from tenfold.nets.trunk import STAGES, Trunk, TrunkConfig, normalise


def small(**fields: object) -> Trunk:
    torch.manual_seed(0)
    return Trunk(TrunkConfig.model_validate({"name": "small", **fields}))


@pytest.mark.parametrize(
    ("name", "dilate", "stride"),
    [("resnet50", (False, True, True), 8), ("resnet50", (False, False, True), 16), ("resnet101", (False,) * 3, None)],
)
def test_equals_torchvision(name: str, dilate: tuple[bool, ...], stride: int | None) -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(name, replace_stride_with_dilation=list(dilate)).eval()
    ours = Trunk(TrunkConfig.model_validate({"name": name, "output_stride": stride})).eval()
    ours.load(theirs.state_dict())
    images = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        expected = nn.Sequential(*list(theirs.children())[:-2])(images)
        assert torch.equal(ours(images), expected)
        assert torch.equal(ours.pooled(images), expected.mean((2, 3)))


@pytest.mark.parametrize(("name", "blocks"), [("resnet50", 16), ("resnet101", 33), ("resnet152", 50)])
def test_depth(name: str, blocks: int) -> None:
    with torch.device("meta"):
        trunk = Trunk(TrunkConfig.model_validate({"name": name}))
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 1 + 3 * blocks + 4  # T-04: batch norm after every convolution
    assert all(m.bias is None for m in convolutions)
    assert trunk.out_channels == 2048  # T-01
    assert trunk.strides == dict(zip(STAGES, (2, 4, 8, 16, 32), strict=True))


@pytest.mark.parametrize("name", ["resnet50", "small"])
@pytest.mark.parametrize("stride", [None, 8, 16])
def test_strides_and_channels_are_what_comes_out(name: str, stride: int | None) -> None:
    trunk = Trunk(TrunkConfig.model_validate({"name": name, "output_stride": stride}))
    with torch.no_grad():
        found = trunk.eval().features(torch.zeros(1, 3, 96, 64))
    assert list(found) == list(STAGES)
    for stage, features in found.items():
        step = trunk.strides[stage]
        assert features.shape == (1, trunk.channels[stage], 96 // step, 64 // step)
    assert stride is None or trunk.strides["conv5"] == stride


def test_a_single_stage_keeps_its_resolution_without_dilation() -> None:
    trunk = Trunk(TrunkConfig(name="resnet50", stage_strides={"conv5": 1}))
    assert trunk.strides["conv5"] == trunk.strides["conv4"] == 16
    assert {m.dilation for m in trunk.stages["conv5"].modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    dilated = Trunk(TrunkConfig(name="resnet50", output_stride=16))
    assert (2, 2) in {m.dilation for m in dilated.stages["conv5"].modules() if isinstance(m, nn.Conv2d)}


def test_stages_in_one_pass_equal_stages_one_by_one() -> None:
    trunk = small().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = trunk.features(images, ("conv2", "conv4"))
        assert set(found) == {"conv2", "conv4"}
        for stage, features in found.items():
            assert torch.equal(features, trunk(images, upto=stage))
    for call in (lambda: trunk(images, upto="conv6"), lambda: trunk.features(images, ("conv0",))):
        with pytest.raises(InputError, match="no stage"):
            call()


def test_small_is_small_and_serves_any_size() -> None:
    trunk = small()
    assert 0.2e6 < sum(p.numel() for p in trunk.parameters()) < 0.4e6
    for height, width in ((32, 32), (64, 64), (33, 47), (224, 320)):
        assert trunk.eval().pooled(torch.zeros(1, 3, height, width)).shape == (1, trunk.out_channels)
    wide = small(width=2.0)
    assert wide.out_channels == 2 * trunk.out_channels


def test_zero_init_starts_blocks_as_identity() -> None:
    zero = [m for m in small(zero_init_residual=True).modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert zero
    assert not [
        m for m in small(zero_init_residual=False).modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()
    ]


def test_batch_norm_settings_arrive() -> None:
    trunk = small(batch_norm_momentum=0.003, batch_norm_epsilon=1e-3)
    assert {(m.momentum, m.eps) for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.003, 1e-3)}


def test_frozen_stages_do_not_move() -> None:
    trunk = small()
    trunk.freeze("conv4")
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    trunk.train()
    optimizer = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=0.1)
    trunk.pooled(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in trunk.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert {name.split(".")[1] for name in moved} == {"conv4", "conv5"}  # statistics of batch norm included
    trunk.freeze(None)
    trunk.train()
    assert all(p.requires_grad for p in trunk.parameters())
    assert all(m.training for m in trunk.modules())
    with pytest.raises(InputError, match="no stage"):
        trunk.freeze("conv9")


def test_load_takes_what_there_is_and_names_what_is_wrong() -> None:
    trunk, other = small(), Trunk(TrunkConfig(name="small"))
    wrapped = {f"module.{name}": value for name, value in other.state_dict().items()}
    trunk.load(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(trunk.state_dict().values(), other.state_dict().values(), strict=True))
    state = dict(other.state_dict())
    first = next(iter(state))
    with pytest.raises(InputError, match=f"lacks {first}"):
        trunk.load({name: value for name, value in state.items() if name != first})
    with pytest.raises(InputError, match="another shape"):
        trunk.load({**state, first: torch.zeros(1)})
    with pytest.raises(InputError, match="unknown tensor"):
        trunk.load({**state, "stages.conv9.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"name": "resnet18"}, "name"),
        ({"output_stride": 4}, "output_stride"),
        ({"name": "small", "output_stride": 32}, "output_stride"),
        ({"stage_strides": {"conv1": 1}}, "conv1"),
        ({"stage_strides": {"conv5": 3}}, "stage_strides"),
        ({"width": 0}, "width"),
    ],
)
def test_a_wrong_setting_names_its_field(fields: dict[str, object], names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        TrunkConfig.model_validate(fields)


def test_normalise_maps_bytes_to_minus_one_to_one() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    floats = normalise(images)
    assert floats.min() == -1
    assert floats.max() == 1
    torch.testing.assert_close(floats[0, 0].flatten(), torch.linspace(-1, 1, 256), atol=1e-6, rtol=0)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.uint8
    with pytest.raises(InputError, match="uint8"):
        normalise(torch.zeros(1, 3, 2, 2))


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert precision.resolve("fp32", cpu) == "fp32"
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert precision.resolve("auto", cpu) == precision.resolve("bf16", cpu) == "bf16"
    with precision.autocast("auto", cpu):
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.bfloat16
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    assert precision.resolve("auto", cpu) == "fp32"
    with precision.autocast("auto", cpu):
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.float32
    with pytest.raises(InputError, match="bf16"):
        precision.resolve("bf16", cpu)
