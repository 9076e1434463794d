"""The linear probe: what the frozen features of a trunk are worth on a labelled test set (R-1), and the same test for a
head that was trained with its trunk (R-2).

A softmax regression on the pooled features of the last stage. Its training set is fixed (the first images of a
corpus), whatever the trunk was pretrained on, so that trunks can be compared. The L2 penalty is chosen on a fifth of
the training set that is held out; nothing is chosen on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.corpus.table import Corpus
from tenfold.engine.batches import LabelledImages
from tenfold.engine.images import CropTransform, PadTransform
from tenfold.engine.ordered import in_order
from tenfold.errors import InputError
from tenfold.nets.precision import Precision, autocast
from tenfold.nets.trunk import Trunk, normalise
from tenfold.pretrain.monitor import evaluation_transform

PENALTIES = tuple(10.0**k for k in (-4, -3, -2, -1, 0))


@dataclass(frozen=True)
class Features:
    """Pooled features of a corpus and the one class that each image counts as.

    Attributes:
        values: [n, d] float32.
        targets: [n] int64 index into the target classes; -1 where an image has none or its votes tie.
        ids: image ids.
    """

    values: Tensor
    targets: Tensor
    ids: list[str]


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy of a probe, or of a trained head, on the test set.

    Attributes:
        accuracy, low, high: share of test images that are right, with its 95 % bootstrap interval over images.
        correct: [test images] bool, in the order of the test corpus (unusable images left out), for paired comparison.
        ids: ids of those images.
        train, test: images used; no training images for a head that came with its trunk.
        penalty: the L2 penalty that was chosen; None for such a head.
    """

    accuracy: float
    low: float
    high: float
    correct: np.ndarray
    ids: list[str]
    train: int
    test: int
    penalty: float | None


def leaves(corpus: Corpus) -> list[str]:
    """Names of the classes without children: what images are, where the hierarchy is complete."""
    inner = {parent for parents in corpus.classes.parents for parent in parents}
    return [name for i, name in enumerate(corpus.classes.names) if i not in inner]


def single_targets(offsets: np.ndarray, labels: np.ndarray, votes: np.ndarray, target_of: np.ndarray) -> np.ndarray:
    """The target class with the most votes for each image, [n] int64; -1 where there is none or two tie.

    Args:
        offsets, labels, votes: ragged labels and their votes.
        target_of: [classes] index of each class among the targets, -1 for classes that are none.
    """
    image = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    target = target_of[labels]
    kept = target >= 0
    table = np.zeros((len(offsets) - 1, int(target_of.max()) + 1), np.float32)
    table[image[kept], target[kept]] = votes[kept]
    best = table.max(axis=1, keepdims=True)
    tied = (table == best).sum(axis=1) > 1
    return np.where(tied | (best[:, 0] == 0), -1, table.argmax(axis=1)).astype(np.int64)


def extract(
    trunk: Trunk,
    corpus: Corpus,
    targets: Sequence[str],
    transform: CropTransform | PadTransform,
    *,
    n: int | None = None,
    batch: int = 256,
    precision: Precision = "auto",
    device: torch.device | str = "cpu",
) -> Features:
    """Pooled features and single targets of the first `n` images of a corpus.

    Raises InputError where a target class is not in the corpus.
    """
    device = torch.device(device)
    target_of = np.full(len(corpus.classes), -1, np.int64)
    for i, name in enumerate(targets):
        target_of[corpus.classes.index(name)] = i
    form = LabelledImages(evaluation_transform(transform), votes=True)
    values, found, ids = [], [], []
    was_training = trunk.training
    trunk.eval().to(device)
    try:
        with torch.inference_mode(), autocast(precision, device):
            for b in in_order(corpus.images, form, n=corpus.check_size(n), batch=batch):
                values.append(trunk.pooled(normalise(b.images.to(device))).float().cpu())
                assert b.votes is not None
                found.append(single_targets(b.offsets.numpy(), b.labels.numpy(), b.votes.numpy(), target_of))
                ids += b.ids
    finally:
        trunk.train(was_training)
    # Plain tensors again: those of inference mode cannot enter the probe's gradients.
    return Features(torch.cat(values).clone(), torch.from_numpy(np.concatenate(found)), ids)


def fit(values: Tensor, targets: Tensor, classes: int, penalty: float, steps: int = 200) -> nn.Linear:
    """Softmax regression with L2 penalty on the weights (mean loss + penalty / 2 * |W|^2), by L-BFGS in float64."""
    linear = nn.Linear(values.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    values = values.double()
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=steps, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(linear(values), targets) + penalty / 2 * linear.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return linear


def probe(train: Features, test: Features, classes: int, *, bootstrap: int = 1000, seed: int = 0) -> ProbeResult:
    """Fit on `train`, measure on `test`; images without a single target are left out of both.

    Raises InputError where a set has no usable image, or the training set only one class.
    """
    usable = train.targets >= 0
    values, targets = train.values[usable], train.targets[usable]
    kept = test.targets >= 0
    if not bool(usable.any()) or not bool(kept.any()):
        which = "training" if not bool(usable.any()) else "test"
        raise InputError(
            f"no image of the probe's {which} set has one of the {classes} target classes", "check --classes"
        )
    if len(targets.unique()) < 2:
        raise InputError("all images of the probe's training set have the same class", "use more images (--train-n)")
    mean, std = values.mean(0), values.std(0).clamp_min(1e-6)
    values, unseen = (values - mean) / std, (test.values[kept] - mean) / std

    held_out = torch.arange(len(values)) % 5 == 4
    scores = []
    for penalty in PENALTIES:
        linear = fit(values[~held_out], targets[~held_out], classes, penalty)
        scores.append(float((linear(values[held_out].double()).argmax(1) == targets[held_out]).double().mean()))
    penalty = PENALTIES[int(np.argmax(scores))]
    linear = fit(values, targets, classes, penalty)
    return _result(linear(unseen.double()), test, kept, len(targets), penalty, bootstrap, seed)


def judge_head(
    weight: Tensor, bias: Tensor, rows: Sequence[int], test: Features, *, bootstrap: int = 1000, seed: int = 0
) -> ProbeResult:
    """Accuracy of a trained head (R-2): the highest logit among the target classes.

    Args:
        weight, bias: of the head, [classes, d] and [classes].
        rows: row of each target class in them.
        test: features of the trunk that was trained with the head.
    """
    kept = test.targets >= 0
    if not bool(kept.any()):
        raise InputError(f"no test image has one of the {len(rows)} target classes", "check --classes")
    scores = test.values[kept] @ weight[list(rows)].T + bias[list(rows)]
    return _result(scores, test, kept, 0, None, bootstrap, seed)


def _result(
    scores: Tensor, test: Features, kept: Tensor, train: int, penalty: float | None, bootstrap: int, seed: int
) -> ProbeResult:
    correct = (scores.argmax(1) == test.targets[kept]).numpy()
    low, high = accuracy_interval(correct, bootstrap, seed)
    return ProbeResult(
        accuracy=float(correct.mean()),
        low=low,
        high=high,
        correct=correct,
        ids=[i for i, k in zip(test.ids, kept.tolist(), strict=True) if k],
        train=train,
        test=len(correct),
        penalty=penalty,
    )


def accuracy_interval(correct: np.ndarray, bootstrap: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval over images of a share: resampling yes/no answers is a binomial draw."""
    draws = np.random.default_rng(seed).binomial(len(correct), correct.mean(), bootstrap) / len(correct)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
