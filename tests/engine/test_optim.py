"""Optimizers against a numpy oracle of TensorFlow's update and against torch's own; schedules against closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from tenfold.engine.optim import (
    Clock,
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    factor_at,
    learning_rate_at,
    set_learning_rate,
)
from tenfold.errors import InputError

RATES = (1e-2, 1e-2, 3e-3, 3e-3, 1e-3)  # a rate that changes tells the conventions apart
CLOCK = Clock(batch=32, epoch_images=320, total_steps=1000)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, rates: tuple[float, ...] = RATES, seed: int = 0) -> None:
    for step, rate in enumerate(rates):
        torch.manual_seed(100 * seed + step)
        optimizer.zero_grad()
        net(torch.randn(6, 3, 4, 4)).square().mean().backward()
        set_learning_rate([optimizer], rate)
        optimizer.step()


def tensorflow_rmsprop(
    p: np.ndarray, grads: list[np.ndarray], rates: tuple[float, ...], config: OptimizerConfig
) -> np.ndarray:
    """tf.train.RMSPropOptimizer's kernel (ApplyRMSProp), in float64: rms starts at ones, mom at zeros."""
    p, rms, mom = p.astype(np.float64), np.ones_like(p, np.float64), np.zeros_like(p, np.float64)
    for g, rate in zip(grads, rates, strict=True):
        g = g + config.weight_decay * p
        rms += (g * g - rms) * (1 - config.square_decay)
        mom = mom * config.momentum + g * rate / np.sqrt(rms + config.epsilon)
        p = p - mom
    return p


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("epsilon", [1e-10, 1.0])
def test_rmsprop_equals_tensorflow(momentum: float, epsilon: float) -> None:
    config = OptimizerConfig(learning_rate=1e-2, momentum=momentum, weight_decay=1e-2, epsilon=epsilon)
    random = np.random.default_rng(0)
    start = random.normal(size=(7, 3)).astype(np.float32)
    grads = [random.normal(size=(7, 3)).astype(np.float32) for _ in RATES]
    net = nn.Linear(3, 7, bias=False)
    net.weight.data = torch.from_numpy(start.copy())
    optimizer = build_optimizer(net, config)
    for grad, rate in zip(grads, RATES, strict=True):
        net.weight.grad = torch.from_numpy(grad.copy())
        set_learning_rate([optimizer], rate)
        optimizer.step()
    expected = tensorflow_rmsprop(start, grads, RATES, config)
    np.testing.assert_allclose(net.weight.detach().numpy(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay_on", ["weights", "all"])
def test_rmsprop_equals_torch(momentum: float, decay_on: str) -> None:
    config = OptimizerConfig(
        learning_rate=1e-2, momentum=momentum, weight_decay=1e-2, epsilon=1e-6, convention="torch", decay_on=decay_on
    )
    ours, theirs = network(), network()
    train(ours, build_optimizer(ours, config))
    weights = [p for p in theirs.parameters() if p.ndim > 1 or decay_on == "all"]
    rest = [p for p in theirs.parameters() if not (p.ndim > 1 or decay_on == "all")]
    groups = [{"params": weights}, *([{"params": rest, "weight_decay": 0.0}] if rest else [])]
    train(theirs, torch.optim.RMSprop(groups, lr=1.0, alpha=0.9, eps=1e-6, momentum=momentum, weight_decay=1e-2))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_conventions_differ_when_the_rate_changes() -> None:
    nets = [network(), network()]
    for net, convention in zip(nets, ("tensorflow", "torch"), strict=True):
        train(net, build_optimizer(net, OptimizerConfig(learning_rate=1e-2, epsilon=1e-6, convention=convention)))
    assert (nets[0][0].weight - nets[1][0].weight).abs().max() > 1e-4


def test_momentum_equals_its_definition() -> None:
    config = OptimizerConfig(name="momentum", learning_rate=5e-2, momentum=0.9, weight_decay=1e-4)
    net = nn.Linear(3, 2)
    optimizer = build_optimizer(net, config)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    m_weight, m_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for rate in RATES:
        net.weight.grad, net.bias.grad = torch.randn(2, 3), torch.randn(2)
        m_weight = 0.9 * m_weight + net.weight.grad + 1e-4 * weight
        m_bias = 0.9 * m_bias + net.bias.grad  # decay_on="weights": none on biases
        weight, bias = weight - rate * m_weight, bias - rate * m_bias
        set_learning_rate([optimizer], rate)
        optimizer.step()
    torch.testing.assert_close(net.weight.detach(), weight)
    torch.testing.assert_close(net.bias.detach(), bias)


@pytest.mark.parametrize("name", ["rmsprop", "momentum"])
def test_resume_is_bitwise(name: str) -> None:
    config = OptimizerConfig(name=name, learning_rate=1e-2, weight_decay=1e-3)
    whole = network()
    optimizer = build_optimizer(whole, config)
    train(whole, optimizer)
    net_state, optimizer_state = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(whole, optimizer, seed=1)
    resumed = network()
    resumed.load_state_dict(net_state)
    again = build_optimizer(resumed, config)
    again.load_state_dict(optimizer_state)
    train(resumed, again, seed=1)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_rmsprop_has_its_state_before_the_first_step() -> None:
    net = network()
    before = build_optimizer(net, OptimizerConfig(learning_rate=1e-2))
    shapes = {k: {n: t.shape for n, t in v.items()} for k, v in before.state_dict()["state"].items()}
    train(net, before)
    assert shapes == {k: {n: t.shape for n, t in v.items()} for k, v in before.state_dict()["state"].items()}
    assert all("square_average" in v and "momentum" in v for v in shapes.values())


def test_frozen_parameters_are_left_out() -> None:
    net = network()
    net[0].requires_grad_(False)
    optimizer = build_optimizer(net, OptimizerConfig(learning_rate=1e-2))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters())) - 1
    net.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter wants a gradient"):
        build_optimizer(net, OptimizerConfig(learning_rate=1e-2))


# ---- schedules


def test_exponential_counts_images_whatever_the_batch() -> None:
    schedule = ScheduleConfig(kind="exponential", images_per_step=32, factor=0.9, every=3_000_000)
    config = OptimizerConfig(learning_rate=1e-3)
    small = Clock(batch=32, epoch_images=300_000_000, total_steps=36_000_000)
    large = Clock(batch=1600, epoch_images=300_000_000, total_steps=720_000)
    for millions in (0, 1, 3, 6, 35, 36):
        expected = 1e-3 * 0.9 ** (millions // 3)
        assert learning_rate_at(config, schedule, millions * 1_000_000, small) == pytest.approx(expected, rel=1e-12)
        assert learning_rate_at(config, schedule, millions * 20_000, large) == pytest.approx(expected, rel=1e-12)
    assert learning_rate_at(config, schedule, 2_999_999, small) == 1e-3
    samples = schedule.model_copy(update={"images_per_step": 1})  # Xception's reading of T-07
    assert learning_rate_at(config, samples, 93_750, small) == pytest.approx(9e-4)


def test_step_decay_falls_at_its_boundaries() -> None:
    schedule = ScheduleConfig(kind="step", unit="epochs", factor=0.1, boundaries=(30, 60))
    at = {t: factor_at(schedule, t) for t in (0, 29.999, 30, 59.9, 60, 1000)}
    assert at == pytest.approx({0: 1, 29.999: 1, 30: 0.1, 59.9: 0.1, 60: 0.01, 1000: 0.01})
    assert CLOCK.time(25, schedule) == 2.5  # 25 steps of 32 over 320 images


@given(t=st.floats(0, 40_000), power=st.floats(0.1, 3))
@settings(max_examples=50)
def test_poly_and_cosine(t: float, power: float) -> None:
    poly = ScheduleConfig(kind="poly", power=power, length=30_000)
    assert factor_at(poly, t) == pytest.approx(max(0.0, 1 - t / 30_000) ** power)
    cosine = ScheduleConfig(kind="cosine", length=30_000)
    assert factor_at(cosine, t) == pytest.approx((1 + math.cos(math.pi * min(t, 30_000) / 30_000)) / 2, abs=1e-12)


@given(kind=st.sampled_from(["constant", "cosine", "poly"]), t=st.floats(0, 1), start=st.floats(0, 1))
@settings(max_examples=50)
def test_warm_up_rises_and_then_leaves_the_schedule_alone(kind: str, t: float, start: float) -> None:
    more = {"power": 0.9} if kind == "poly" else {}
    plain = ScheduleConfig(kind=kind, unit="run", **more)
    warm = ScheduleConfig(kind=kind, unit="run", warm_up=0.25, warm_up_start=start, **more)
    rise = start + (1 - start) * t / 0.25 if t < 0.25 else 1.0
    assert factor_at(warm, t) == pytest.approx(factor_at(plain, t) * rise)


def test_time_in_every_unit() -> None:
    assert CLOCK.time(500, ScheduleConfig()) == 500
    assert CLOCK.time(500, ScheduleConfig(images_per_step=16)) == 1000
    assert CLOCK.time(500, ScheduleConfig(unit="epochs")) == 50
    assert CLOCK.time(500, ScheduleConfig(unit="run")) == 0.5


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"kind": "exponential", "factor": 0.9}, "schedule.every"),
        ({"kind": "step", "factor": 0.1}, "schedule.boundaries"),
        ({"kind": "poly", "length": 3}, "schedule.power"),
        ({"kind": "poly", "power": 0.9}, "schedule.length"),
        ({"kind": "constant", "factor": 0.9}, "schedule.factor"),
        ({"kind": "step", "factor": 0.1, "boundaries": (3, 2)}, "ascend"),
        ({"unit": "epochs", "images_per_step": 32}, "images_per_step"),
        ({"kind": "exponential", "factor": 1.5, "every": 1}, "factor"),
    ],
)
def test_a_schedule_that_contradicts_itself_names_the_field(fields: dict[str, object], names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        ScheduleConfig.model_validate(fields)


@pytest.mark.parametrize("fields", [{"learning_rate": 0}, {"learning_rate": 1, "momentum": 1}, {"rate": 1}])
def test_an_optimizer_out_of_range_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OptimizerConfig.model_validate(fields)
