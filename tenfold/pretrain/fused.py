"""The arithmetic of the head in blocks of classes that stay in cache: what makes it fast and small.

The weight [18,291, 2,048] is 150 MB; a step through `nn.Linear` and `torch.optim.RMSprop` moves it and its gradient and
state some 25 times between memory and processor. Here it is twice: once for logits, loss and the gradients of logits
and features, once for its own gradient, weight decay and update. Nothing of its size is allocated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.engine.optim import OptimizerConfig

BLOCK_BYTES = 2 << 20  # of weight; with its state and gradient four times that: fits a share of the last-level cache

Positives = tuple[Tensor, Tensor]


def block_rows(weight: Tensor) -> int:
    """Rows a block."""
    return max(16, BLOCK_BYTES // (weight.shape[-1] * weight.element_size()))


def sigmoid_loss(
    features: Tensor, weight: Tensor, bias: Tensor, positives: Positives, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logistic losses of a shard and their gradients.

    Args:
        features: [B, d] float32.
        weight: [rows, d], and `bias` [rows].
        positives: local row and image of every positive label.
        wanted: whether gradients are wanted.

    Returns the losses [B] float64 (summed over the rows of this shard), d loss / d logits [rows, B] and
    d loss / d features [B, d], of the **sum** over images. The latter two are empty where not wanted.
    """
    rows, images = weight.shape[0], features.shape[0]
    losses = torch.zeros(images, dtype=torch.float64, device=features.device)
    step = block_rows(weight)
    logits = features.new_empty((rows if wanted else min(step, rows), images))
    gradient = torch.zeros_like(features) if wanted else features.new_empty(0)
    order = positives[0].argsort()
    row, image = positives[0][order], positives[1][order]
    starts = torch.arange(0, rows + step, step, device=row.device)
    edges = torch.searchsorted(row, starts).tolist()
    transposed = features.T
    for block, first in enumerate(range(0, rows, step)):
        last = min(first + step, rows)
        z = logits[first:last] if wanted else logits[: last - first]
        w = weight[first:last]
        torch.addmm(bias[first:last, None], w, transposed, out=z)
        at = row[edges[block] : edges[block + 1]] - first, image[edges[block] : edges[block + 1]]
        z[at] = -z[at]
        losses += F.softplus(z).sum(0, dtype=torch.float64)
        if wanted:
            z.sigmoid_()
            z[at] = -z[at]
            gradient.addmm_(z.T, w)
    return losses, logits if wanted else features.new_empty(0), gradient


def softmax_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    positives: Positives,
    wanted: bool,
    sum_: Callable[[Tensor], Tensor],
    max_: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy over the classes of all shards, an image's target spread evenly over its labels.

    As `sigmoid_loss`, but losses are complete: `sum_` and `max_` reduce over the ranks.
    """
    row, image = positives
    logits = torch.addmm(bias[:, None], weight, features.T)
    highest = max_(logits.amax(0))
    weights = torch.zeros_like(logits)
    weights[row, image] = 1.0
    count = sum_(weights.sum(0)).clamp_(min=1.0)
    weights /= count
    at_labels = sum_(((logits - highest) * weights).sum(0, dtype=torch.float64))
    has_labels = sum_(weights.sum(0, dtype=torch.float64))
    logits.sub_(highest).exp_()
    total = sum_(logits.sum(0, dtype=torch.float64))
    losses = total.log() * has_labels - at_labels
    if not wanted:
        return losses, features.new_empty(0), features.new_empty(0)
    logits.mul_((has_labels / total).float()).sub_(weights)
    return losses, logits, logits.T @ weight


def update(
    parameter: Tensor,
    gradient: tuple[Tensor, Tensor | None],
    state: dict[str, Tensor],
    config: OptimizerConfig,
    rate: float,
    weight_decay: float,
) -> None:
    """One optimizer step in place, in blocks of rows.

    Args:
        parameter: [rows, d] or [rows].
        gradient: left [rows, B] and right [B, d], whose product is the gradient; or the gradient itself and None.
        state: `square_average` and `momentum` of the parameter, as the optimizer's name and momentum need them.
        config: optimizer, constants, convention.
        rate: learning rate.
        weight_decay: added to the gradient as weight_decay * parameter.
    """
    left, right = gradient
    rows = parameter.shape[0]
    step = block_rows(parameter) if right is not None else rows
    scratch = torch.empty_like(parameter[: min(step, rows)])
    for first in range(0, rows, step):
        last = min(first + step, rows)
        g = left[first:last] if right is None else torch.mm(left[first:last], right, out=scratch[: last - first])
        p = parameter[first:last]
        block = {key: value[first:last] for key, value in state.items()}
        _apply(p, g, block.get("square_average"), block.get("momentum"), config, rate, weight_decay)


def _apply(
    p: Tensor,
    g: Tensor,
    square: Tensor | None,
    momentum: Tensor | None,
    config: OptimizerConfig,
    rate: float,
    weight_decay: float,
) -> None:
    """The optimizer on one block; `g` is overwritten. The formulas stand in tenfold/engine/optim.py."""
    if weight_decay:
        g.add_(p, alpha=weight_decay)
    if square is not None:
        square.mul_(config.square_decay).addcmul_(g, g, value=1 - config.square_decay)
        epsilon = config.epsilon
        g.div_((square + epsilon).sqrt_() if config.epsilon_inside else square.sqrt().add_(epsilon))
    if momentum is None:
        p.add_(g, alpha=-rate)
        return
    momentum.mul_(config.momentum).add_(g, alpha=rate if config.rate_in_momentum else 1.0)
    p.add_(momentum, alpha=-1.0 if config.rate_in_momentum else -rate)
