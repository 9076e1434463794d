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

BLOCK_BYTES = 8 << 20  # of weight; with its state and the buffers five times that: about a last-level cache

Positives = tuple[Tensor, Tensor]


def block_rows(weight: Tensor) -> int:
    """Rows a block. On a GPU four times as many: its kernels want more work, and its memory is fast."""
    block = BLOCK_BYTES * (4 if weight.is_cuda else 1)
    return min(max(16, block // (weight.shape[-1] * weight.element_size())), weight.shape[0])


def positives(counts: Tensor, labels: Tensor, lo: int, hi: int) -> Positives:
    """Local row and image of every label in [lo, hi), from labels an image [B] and all labels one after the other."""
    images = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    mine = (labels >= lo) & (labels < hi)
    return labels[mine] - lo, images[mine]


def sigmoid_loss(
    features: Tensor, weight: Tensor, bias: Tensor, at: Positives, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logistic losses of a shard and their gradients.

    Args:
        features: [B, d] float32.
        weight: [rows, d], and `bias` [rows].
        at: local row and image of every positive label.
        wanted: whether gradients are wanted.

    Returns the losses [B] float64 (summed over the rows of this shard), d loss / d logits [rows, B] and
    d loss / d features [B, d], of the **sum** over images. The latter two are empty where not wanted.
    """
    rows, images = weight.shape[0], features.shape[0]
    losses = torch.zeros(images, dtype=torch.float64, device=features.device)
    step = rows if weight.is_cuda else block_rows(weight)
    logits = features.new_empty((rows if wanted else step, images))
    gradient = torch.zeros_like(features) if wanted else features.new_empty(0)
    row, image, edges = _in_blocks(at, rows, step)
    transposed = features.T
    for block, first in enumerate(range(0, rows, step)):
        last = min(first + step, rows)
        z = logits[first:last] if wanted else logits[: last - first]
        w = weight[first:last]
        torch.addmm(bias[first:last, None], w, transposed, out=z)
        here = row[edges[block] : edges[block + 1]] - first, image[edges[block] : edges[block + 1]]
        z[here] = -z[here]
        losses += F.softplus(z).sum(0, dtype=torch.float64)
        if wanted:
            z.sigmoid_()
            z[here] = -z[here]
            gradient.addmm_(z.T, w)
    return losses, logits if wanted else features.new_empty(0), gradient


def _in_blocks(at: Positives, rows: int, step: int) -> tuple[Tensor, Tensor, list[int]]:
    """Positives sorted by row, and where each block of `step` rows begins among them."""
    row, image = at
    if step >= rows:
        return row, image, [0, len(row)]
    order = row.argsort()
    row = row[order]
    starts = torch.arange(0, rows + step, step, device=row.device)
    return row, image[order], torch.searchsorted(row, starts).tolist()


def softmax_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    at: Positives,
    wanted: bool,
    sum_: Callable[[Tensor], Tensor],
    max_: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy over the classes of all shards, an image's target spread evenly over its labels.

    As `sigmoid_loss`, but losses are complete: `sum_` and `max_` reduce over the ranks.
    """
    row, image = at
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


class Update:
    """Applies one optimizer step in place, in blocks of rows, through two buffers of one block that it keeps.

    Args:
        config: optimizer, constants, convention.
    """

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config
        self._buffers: list[Tensor] = []

    def __call__(
        self,
        parameter: Tensor,
        gradient: tuple[Tensor, Tensor],
        state: dict[str, Tensor],
        rate: float,
        weight_decay: float,
    ) -> None:
        """Update `parameter` [rows, d] and its state.

        Args:
            parameter: [rows, d].
            gradient: left [rows, B] and right [B, d], whose product is the gradient.
            state: `square_average` and `momentum` of the parameter, as the optimizer's name and momentum need them.
            rate: learning rate.
            weight_decay: added to the gradient as weight_decay * parameter.
        """
        left, right = gradient
        rows = parameter.shape[0]
        step = block_rows(parameter)
        if not self._buffers or self._buffers[0].shape != parameter[:step].shape:
            self._buffers = [torch.empty_like(parameter[:step]) for _ in range(2)]
        for first in range(0, rows, step):
            last = min(first + step, rows)
            g, root = (buffer[: last - first] for buffer in self._buffers)
            torch.mm(left[first:last], right, out=g)
            self._apply(
                parameter[first:last], g, root, {k: v[first:last] for k, v in state.items()}, rate, weight_decay
            )

    def plain(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], rate: float, weight_decay: float
    ) -> None:
        """Update a small parameter whose gradient is there already; overwrites the gradient."""
        self._apply(parameter, gradient, torch.empty_like(gradient), state, rate, weight_decay)

    def _apply(
        self, p: Tensor, g: Tensor, root: Tensor, state: dict[str, Tensor], rate: float, weight_decay: float
    ) -> None:
        """The optimizer on one block; `g` and `root` are overwritten. Formulas: tenfold/engine/optim.py."""
        config, square, momentum = self.config, state.get("square_average"), state.get("momentum")
        inner, outer = (rate, 1.0) if config.rate_in_momentum else (1.0, rate)
        if weight_decay:
            g.add_(p, alpha=weight_decay)
        if square is not None:
            square.mul_(config.square_decay).addcmul_(g, g, value=1 - config.square_decay)
            if config.epsilon_inside:
                torch.add(square, config.epsilon, out=root).sqrt_()
            else:
                torch.sqrt(square, out=root).add_(config.epsilon)
        if momentum is None:
            if square is None:
                p.add_(g, alpha=-rate)
            else:
                p.addcdiv_(g, root, value=-rate)
            return
        momentum.mul_(config.momentum)
        if square is None:
            momentum.add_(g, alpha=inner)
        else:
            momentum.addcdiv_(g, root, value=inner)
        p.add_(momentum, alpha=-outer)
