"""The monitor of pretraining: mAP@100 on a labelled test set that is not in the corpus (M-01).

The test set is a corpus of its own, closed under the same hierarchy; its classes are matched to the trained ones by
name.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tenfold.corpus.table import Classes, Corpus
from tenfold.engine.batches import Batch, LabelledImages
from tenfold.engine.images import CropTransform, PadTransform
from tenfold.engine.ordered import in_order
from tenfold.errors import InputError
from tenfold.metrics.average_precision import MeanAveragePrecision, Result, Scheme, read_weights
from tenfold.nets.precision import Precision, autocast
from tenfold.nets.trunk import Trunk, normalise
from tenfold.pretrain.head import ShardedHead


def evaluation_transform(transform: CropTransform | PadTransform) -> CropTransform | PadTransform:
    """The same geometry without randomness: the centre crop, never flipped."""
    return transform.model_copy(update={"random": False})


def class_map(test: Classes, trained: Classes) -> np.ndarray:
    """[len(test)] index of each test class among the trained ones, -1 where it was not trained."""
    return np.array([trained.find(name) for name in test.names], dtype=np.int64)


def map_labels(offsets: torch.Tensor, labels: torch.Tensor, mapping: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged labels in another class numbering; those that map to -1 are dropped."""
    mapped = torch.from_numpy(mapping)[labels]
    image = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    kept = mapped >= 0
    counts = torch.bincount(image[kept], minlength=len(offsets) - 1)
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]), mapped[kept]


class Monitor:
    """Computes mAP@K of the network being trained, on a test corpus. All ranks call it together.

    Args:
        test: the test corpus, labels closed under ancestors.
        trained: classes of the corpus that is trained on.
        transform: of the recipe; its evaluation form is used.
        top: predictions an image that count.
        weights: `uniform`, `log-frequency`, or a weight file (see metrics.average_precision).
        n: images of the test corpus to use, all by default.
        batch: images a forward pass, on all ranks alike.

    Raises InputError where no class of the test set is among the trained ones.
    """

    def __init__(
        self,
        test: Corpus,
        trained: Classes,
        transform: CropTransform | PadTransform,
        *,
        top: int = 100,
        weights: str = "uniform",
        n: int | None = None,
        batch: int = 256,
        precision: Precision = "auto",
        workers: int | None = None,
    ) -> None:
        self.test, self.classes, self.top, self.batch = test, len(trained), top, batch
        self.n = test.check_size(n)
        self.mapping = class_map(test.classes, trained)
        if (self.mapping < 0).all():
            raise InputError(
                f"no class of the test set {test.uri} is among the {len(trained)} trained ones",
                "make both with the same class names (`tenfold corpus info` shows them)",
            )
        self.form = LabelledImages(evaluation_transform(transform))
        self.precision, self.workers = precision, workers
        self.weights_name = weights
        self.weights: Scheme | np.ndarray
        if weights == "uniform" or weights == "log-frequency":
            self.weights = cast(Scheme, weights)
        else:
            self.weights = read_weights(weights, trained.names)

    def __call__(self, trunk: nn.Module, head: ShardedHead, bootstrap: int = 200, seed: int = 0) -> Result:
        """The metric with its interval; the same on every rank. `trunk` maps images to pooled features [b, d]."""
        state = MeanAveragePrecision.empty(self.classes, self.top)
        device = head.weight.device
        was_training = trunk.training
        trunk.eval()
        try:
            with torch.inference_mode(), autocast(self.precision, device):
                for batch in self._batches(head.rank, head.world):
                    features = trunk(normalise(batch.images.to(device))).float()
                    # Every rank has every image of its turn, so `top` may gather: shares are padded to one length.
                    values, predicted = head.top(_padded(features, self.batch), state.top)
                    offsets, labels = map_labels(batch.offsets, batch.labels, self.mapping)
                    kept = len(batch.rows)
                    state = state.update_top(values[:kept], predicted[:kept], offsets, labels)
        finally:
            trunk.train(was_training)
        return self._merged(state, head).compute(self.weights, bootstrap=bootstrap, seed=seed, name=self.weights_name)

    def _batches(self, rank: int, world: int) -> Any:
        """This rank's batches; ranks without a last batch get an empty one, for all must gather equally often."""
        rounds = math.ceil(math.ceil(self.n / self.batch) / world)
        given = 0
        for batch in in_order(
            self.test.images, self.form, n=self.n, batch=self.batch, rank=rank, world=world, workers=self.workers
        ):
            given += 1
            yield batch
        for _ in range(rounds - given):
            yield _empty_batch(self.form.transform.size)

    def _merged(self, state: MeanAveragePrecision, head: ShardedHead) -> MeanAveragePrecision:
        if head.world == 1:
            return state
        parts: list[Any] = [None] * head.world
        dist.all_gather_object(parts, state.parts, group=head.group)
        # In the order of the table, so that every rank, and every world size, computes the same bits.
        turns = tuple(part for turn in zip(*parts, strict=True) for part in turn)
        return MeanAveragePrecision(state.classes, state.top, turns)


class Pooled(nn.Module):
    """A trunk seen as images -> pooled features: what the monitor, the probe and DistributedDataParallel call."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, 3, H, W] in [-1, 1] -> [b, out_channels]."""
        return self.trunk.pooled(x)


def _padded(features: torch.Tensor, rows: int) -> torch.Tensor:
    return nn.functional.pad(features, (0, 0, 0, rows - len(features)))


def _empty_batch(size: int) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    place: Any = None
    return Batch(
        place, torch.empty((0, 3, size, size), dtype=torch.uint8), none, [], torch.zeros(1, dtype=torch.int64), none
    )
