"""The class-sharded head equals the unsplit one: loss, gradients, optimizer steps; over processes, and re-sharded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rank_processes import run_ranks
from torch import Tensor, nn

from tenfold.engine.optim import OptimizerConfig, build_optimizer, set_learning_rate
from tenfold.errors import InputError
from tenfold.pretrain import fused
from tenfold.pretrain.head import HeadConfig, HeadOptimizer, ShardedHead, shard_bounds

FEATURES, CLASSES, IMAGES = 24, 101, 12
OPTIMIZERS = [
    OptimizerConfig(learning_rate=1e-2, weight_decay=1e-2, epsilon=1e-8),
    OptimizerConfig(learning_rate=1e-2, weight_decay=1e-2, epsilon=1e-8, convention="torch", decay_on="all"),
    OptimizerConfig(learning_rate=1e-2, momentum=0.0, epsilon=1e-3),
    OptimizerConfig(name="momentum", learning_rate=1e-2, weight_decay=1e-2),
    OptimizerConfig(name="momentum", learning_rate=1e-2, momentum=0.0),
]
RATES = (1e-2, 1e-2, 3e-3)


def examples(images: int = IMAGES, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, offsets and labels; an image without labels and one with a label given twice are among them."""
    random = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (images,), generator=random)
    counts[min(1, images - 1)] = 0
    labels = [torch.randperm(classes, generator=random)[:count] for count in counts.tolist()]
    labels[0] = torch.cat([labels[0], labels[0][:1]])
    offsets = torch.tensor([0, *np.cumsum([len(of) for of in labels])])
    return torch.randn(images, FEATURES, generator=random), offsets, torch.cat(labels)


def dense(offsets: Tensor, labels: Tensor, classes: int = CLASSES) -> Tensor:
    targets = torch.zeros(len(offsets) - 1, classes)
    targets[torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff()), labels] = 1.0
    return targets


def linear_like(head: ShardedHead) -> nn.Linear:
    linear = nn.Linear(head.in_features, head.classes)
    linear.weight.data, linear.bias.data = head.weight.detach().clone(), head.bias.detach().clone()
    return linear


def dense_loss(linear: nn.Linear, features: Tensor, targets: Tensor, kind: str = "sigmoid") -> Tensor:
    if kind == "sigmoid":
        return F.binary_cross_entropy_with_logits(linear(features), targets, reduction="sum") / len(features)
    shares = targets / targets.sum(1, keepdim=True).clamp(min=1)
    return F.cross_entropy(linear(features), shares, reduction="none").mean()


def test_shards_of_the_paper() -> None:
    sizes = [hi - lo for lo, hi in shard_bounds(18_291, 50)]
    assert sizes == [366] * 41 + [365] * 9  # T-12


@given(classes=st.integers(1, 20_000), shards=st.integers(1, 200))
@settings(max_examples=50)
def test_shards_cover_all_classes_evenly(classes: int, shards: int) -> None:
    if shards > classes:
        with pytest.raises(InputError, match="cannot be split"):
            shard_bounds(classes, shards)
        return
    bounds = shard_bounds(classes, shards)
    assert [lo for lo, _ in bounds] == [0, *(hi for _, hi in bounds[:-1])]
    assert bounds[-1][1] == classes
    sizes = {hi - lo for lo, hi in bounds}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 49, 50])
@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: f"{c.name}-{c.convention}-{c.momentum}")
def test_any_number_of_shards_equals_the_whole(
    shards: int, config: OptimizerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shard as its rank would compute it, in one process; blocks of 16 rows, so that there are several."""
    monkeypatch.setattr(fused, "BLOCK_BYTES", 1)
    heads = [ShardedHead(FEATURES, CLASSES, HeadConfig(prior=0.05), rank=r, world=shards) for r in range(shards)]
    optimizers = [HeadOptimizer(head, config) for head in heads]
    whole = linear_like(ShardedHead(FEATURES, CLASSES, HeadConfig(prior=0.05)))
    optimizer = build_optimizer(whole, config)
    for step, rate in enumerate(RATES):
        features, offsets, labels = examples(seed=step)
        features.requires_grad_()
        optimizer.zero_grad()
        expected = dense_loss(whole, features, dense(offsets, labels))
        expected.backward()
        losses, gradient = torch.zeros(IMAGES, dtype=torch.float64), torch.zeros_like(features)
        for head in heads:
            at = fused.positives(offsets.diff(), labels, head.lo, head.hi)
            with torch.no_grad():
                parts = fused.sigmoid_loss(features.detach(), head.weight, head.bias, at, True)
            losses += parts[0]
            gradient += parts[2] / IMAGES
            head.pending.append((parts[1] / IMAGES, features.detach()))
        weights, biases = zip(*(head.gradients() for head in heads), strict=True)
        assert float(losses.mean()) == pytest.approx(expected.item(), rel=1e-6)
        assert features.grad is not None
        torch.testing.assert_close(gradient, features.grad)
        torch.testing.assert_close(torch.cat(weights), whole.weight.grad)
        torch.testing.assert_close(torch.cat(biases), whole.bias.grad)
        for each in (optimizer, *optimizers):
            set_learning_rate([each], rate)
            each.step()
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if config.name == "rmsprop" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(torch.cat([head.weight.detach() for head in heads]), whole.weight.detach(), **tolerance)
    torch.testing.assert_close(torch.cat([head.bias.detach() for head in heads]), whole.bias.detach(), **tolerance)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("fuse", [True, False])
def test_one_head_equals_linear_and_torch(loss: str, fuse: bool) -> None:
    config = OPTIMIZERS[0]
    head = ShardedHead(FEATURES, CLASSES, HeadConfig.model_validate({"loss": loss, "fused": fuse}))
    whole = linear_like(head)
    ours = HeadOptimizer(head, config) if fuse else build_optimizer(head, config)
    theirs = build_optimizer(whole, config)
    for step in range(3):
        features, offsets, labels = examples(seed=step)
        a, b = features.clone().requires_grad_(), features.clone().requires_grad_()
        loss_a, loss_b = head(a, offsets, labels), dense_loss(whole, b, dense(offsets, labels), loss)
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
        loss_a.backward()
        loss_b.backward()
        assert loss_a.item() == pytest.approx(loss_b.item(), rel=1e-6)
        assert head.image_losses.mean().item() == pytest.approx(loss_b.item(), rel=1e-6)
        torch.testing.assert_close(a.grad, b.grad)
        assert (head.weight.grad is None) == fuse
        ours.step()
        theirs.step()
    torch.testing.assert_close(head.weight, whole.weight, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4, 1e30])
def test_large_logits_lose_nothing(size: float) -> None:
    """softplus(z) - z of a confident positive is e^-z; formed by subtraction it would be 0 or, at 1e30, noise."""
    head = ShardedHead(1, 3, HeadConfig(init_std=0.0))
    with torch.no_grad():
        head.bias.copy_(torch.tensor([size, -size, 0.5]))
    features = torch.zeros(2, 1, requires_grad=True)
    loss = head(features, torch.tensor([0, 1, 3]), torch.tensor([0, 0, 2]))
    loss.backward()
    big, small = math.log1p(math.exp(-size)), 0.5
    first = big + big + math.log1p(math.exp(small))
    second = big + big + math.log1p(math.exp(-small))
    assert head.image_losses.tolist() == pytest.approx([first, second], rel=1e-6)
    assert torch.isfinite(head.pending[0][0]).all()
    wrong = head(features, torch.tensor([0, 1, 2]), torch.tensor([1, 1]))
    assert wrong.item() == pytest.approx(2 * size + 2 * big + math.log1p(math.exp(small)), rel=1e-6)


def test_bf16_features_are_computed_in_float32() -> None:
    head = ShardedHead(FEATURES, CLASSES)
    features, offsets, labels = examples()
    rough = features.bfloat16()
    exact = rough.float().requires_grad_()
    rough.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(rough, offsets, labels)
    assert loss.dtype == torch.float32
    expected = head(exact, offsets, labels)
    assert loss.item() == expected.item()
    loss.backward()
    expected.backward()
    assert rough.grad is not None
    assert exact.grad is not None
    assert rough.grad.dtype == torch.bfloat16
    assert torch.equal(rough.grad, exact.grad.bfloat16())


def test_backward_passes_accumulate_until_a_step() -> None:
    config = OPTIMIZERS[0]
    features, offsets, labels = examples(8)
    half = int(offsets[4])
    apart, at_once = ShardedHead(FEATURES, CLASSES), ShardedHead(FEATURES, CLASSES)
    (apart(features[:4], offsets[:5], labels[:half]) / 2).backward()
    (apart(features[4:], offsets[4:] - half, labels[half:]) / 2).backward()
    at_once(features, offsets, labels).backward()
    for a, b in zip(apart.gradients(), at_once.gradients(), strict=True):
        torch.testing.assert_close(a, b)
    for head in (apart, at_once):
        HeadOptimizer(head, config).step()
        assert not head.pending
    torch.testing.assert_close(apart.weight, at_once.weight, rtol=1e-4, atol=1e-5)


def test_nothing_waits_without_gradients() -> None:
    head = ShardedHead(FEATURES, CLASSES)
    features, offsets, labels = examples()
    with torch.no_grad():
        quiet = head(features, offsets, labels)
    loss = head(features, offsets, labels)
    assert quiet.item() == loss.item()
    assert not head.pending
    loss.backward()
    optimizer = HeadOptimizer(head, OPTIMIZERS[0])
    optimizer.zero_grad()
    before = head.weight.detach().clone()
    optimizer.step()
    assert torch.equal(head.weight, before)


def test_steps_are_bitwise_repeatable() -> None:
    def run() -> Tensor:
        head = ShardedHead(FEATURES, CLASSES, seed=4)
        optimizer = HeadOptimizer(head, OPTIMIZERS[0])
        for step in range(3):
            head(*examples(seed=step)).backward()
            optimizer.step()
        return head.weight.detach()

    assert torch.equal(run(), run())


def test_first_weights_do_not_depend_on_the_number_of_shards() -> None:
    whole = ShardedHead(FEATURES, 300, seed=7)
    for shards in (2, 50):
        parts = [ShardedHead(FEATURES, 300, rank=rank, world=shards, seed=7) for rank in range(shards)]
        assert torch.equal(torch.cat([part.weight for part in parts]), whole.weight)
    assert not torch.equal(ShardedHead(FEATURES, 300, seed=8).weight, whole.weight)
    assert whole.weight.std().item() == pytest.approx(FEATURES**-0.5, rel=0.05)
    assert ShardedHead(4, 5, HeadConfig(prior=0.01)).bias[0].item() == pytest.approx(math.log(0.01 / 0.99))


def test_wrong_use_is_named() -> None:
    head = ShardedHead(FEATURES, CLASSES)
    features = examples(2)[0]
    for bad in (-1, CLASSES):
        with pytest.raises(InputError, match=f"class {bad} is outside"):
            head(features, torch.tensor([0, 1, 2]), torch.tensor([0, bad]))
    with pytest.raises(InputError, match="fused is off"):
        HeadOptimizer(ShardedHead(2, 3, HeadConfig(fused=False)), OPTIMIZERS[0])
    with pytest.raises(ValidationError, match="prior"):
        HeadConfig(loss="softmax", prior=0.1)


def test_top_breaks_ties_by_class() -> None:
    head = ShardedHead(FEATURES, CLASSES)
    features = examples()[0]
    values, classes = head.top(features, 9)
    order = head.logits(features).sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, order.values[:, :9])
    assert torch.equal(classes, order.indices[:, :9])
    with torch.no_grad():
        head.weight.zero_()
    assert head.top(features, 3)[1].tolist() == [[0, 1, 2]] * IMAGES
    assert head.top(features, 500)[1].shape == (IMAGES, CLASSES)


# ---- over processes


def _train(head: ShardedHead, optimizer: HeadOptimizer, steps: range, rank: int, world: int, kind: str) -> list[float]:
    losses, share = [], IMAGES // world
    for step in steps:
        features, offsets, labels = examples(seed=step)
        lo, hi = rank * share, (rank + 1) * share
        mine = features[lo:hi].clone().requires_grad_()
        loss = head(mine, offsets[lo : hi + 1] - offsets[lo], labels[offsets[lo] : offsets[hi]])
        loss.backward()
        whole = linear_like_gathered(head, world)
        every = features.clone().requires_grad_()
        expected = dense_loss(whole, every, dense(offsets, labels), kind)
        expected.backward()
        assert every.grad is not None
        assert mine.grad is not None
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(mine.grad / world, every.grad[lo:hi])  # DDP's mean makes up for the world
        weight, bias = head.gradients()
        assert whole.weight.grad is not None
        torch.testing.assert_close(weight, whole.weight.grad[head.lo : head.hi])
        torch.testing.assert_close(bias, whole.bias.grad[head.lo : head.hi])
        optimizer.step()
        losses.append(loss.item())
    return losses


def linear_like_gathered(head: ShardedHead, world: int) -> nn.Linear:
    parts: list[tuple[Tensor, Tensor]] = [(head.weight.detach(), head.bias.detach())]
    if world > 1:
        parts = [parts[0]] * world
        dist.all_gather_object(parts, (head.weight.detach(), head.bias.detach()))
    linear = nn.Linear(head.in_features, head.classes)
    linear.weight.data = torch.cat([weight for weight, _ in parts])
    linear.bias.data = torch.cat([bias for _, bias in parts])
    return linear


def _rank(folder: str, kind: str, resume: bool) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    head = ShardedHead(
        FEATURES,
        CLASSES,
        HeadConfig.model_validate({"loss": kind}),
        rank=rank,
        world=world,
        seed=0 if not resume else 9,
    )
    optimizer = HeadOptimizer(head, OPTIMIZERS[0])
    if resume:
        dcp.load(head.checkpoint_state(optimizer), checkpoint_id=folder)
        _check_reference(head, optimizer, Path(folder), steps=3)
    else:
        _train(head, optimizer, range(3), rank, world, kind)
        dcp.async_save(head.checkpoint_state(optimizer), checkpoint_id=folder).result()
    _train(head, optimizer, range(3, 5), rank, world, kind)
    features = examples()[0]
    share = IMAGES // world
    values, classes = head.top(features[rank * share : (rank + 1) * share], 7)
    with torch.no_grad():
        logits = linear_like_gathered(head, world)(features[rank * share : (rank + 1) * share])
    order = logits.sort(dim=1, descending=True, stable=True)
    assert torch.equal(classes, order.indices[:, :7])
    torch.testing.assert_close(values, order.values[:, :7])
    dist.destroy_process_group()


def _check_reference(head: ShardedHead, optimizer: HeadOptimizer, folder: Path, steps: int) -> None:
    """What was loaded is what the one-rank head has after `steps` steps."""
    whole = ShardedHead(FEATURES, CLASSES, HeadConfig(loss=head.config.loss))
    reference = HeadOptimizer(whole, OPTIMIZERS[0])
    _train(whole, reference, range(steps), 0, 1, head.config.loss)
    expected = whole.checkpoint_state(reference)
    for name, tensor in head.checkpoint_state(optimizer).items():
        torch.testing.assert_close(tensor, expected[name][head.lo : head.hi], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_ranks_equal_the_whole_and_checkpoints_reshard(kind: str, tmp_path: Path) -> None:
    """Three gloo ranks (34, 34 and 33 classes) train and save; two ranks load and go on, and so does one."""
    folder = tmp_path / "checkpoint"
    run_ranks(3, tmp_path, _rank, str(folder), kind, False)
    run_ranks(2, tmp_path, _rank, str(folder), kind, True)
    head = ShardedHead(FEATURES, CLASSES, HeadConfig.model_validate({"loss": kind}), seed=5)
    optimizer = HeadOptimizer(head, OPTIMIZERS[0])
    state = head.checkpoint_state(optimizer)
    assert set(state) == {f"{s}{p}" for s in ("", "square_average.", "momentum.") for p in ("weight", "bias")}
    dcp.load(state, checkpoint_id=folder)
    _check_reference(head, optimizer, folder, steps=3)
