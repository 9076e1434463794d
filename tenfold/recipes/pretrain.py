"""Pretraining recipes: every number of the paper's T-* and B rows exactly once, and our own for small machines.

What the paper does not give is marked "ours". Its asynchronous steps (T-11, T-15) map to synchronous ones like this:
a paper step is one worker's batch of 32; here an optimizer step averages `workers` of them. With workers=1 (the
default) updates, images and rates are the paper's one by one, without staleness. More workers see the same images in
fewer, larger updates; the schedule and the length still count images, and `rate_scaling` says what the rate does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tenfold.engine.images import CropTransform, PadTransform
from tenfold.engine.optim import OptimizerConfig, ScheduleConfig
from tenfold.errors import InputError
from tenfold.nets.trunk_config import TrunkConfig
from tenfold.pretrain.config import CheckpointConfig, LengthConfig, MonitorConfig, PretrainRecipe
from tenfold.pretrain.head import HeadConfig

WORKER_BATCH = 32  # T-08: images a worker step; T-07 and T-09 count such steps


def jft300m_resnet101() -> PretrainRecipe:
    """JFT-300M, ResNet-101: the paper's main model (T-01 to T-15, D-03, M-01).

    Command: tenfold pretrain jft300m_resnet101 --corpus CORPUS --ranks 8 --set workers=8
    Time: 2 months on 50 K80 and 17 parameter servers in the paper (T-09, T-11); 1.15 billion images of 299 px.
    Result: COCO test-dev AP 36.7 after fine-tuning a detector on it, 34.3 from ImageNet (N-02).
    """
    return _jft("resnet101")


def jft300m_resnet50() -> PretrainRecipe:
    """JFT-300M, ResNet-50 (T-01 to T-15; X-09).

    Command: tenfold pretrain jft300m_resnet50 --corpus CORPUS --ranks 8 --set workers=8
    Time: about 0.55 of ResNet-101's (4.1 against 7.8 billion multiply-adds at 224 px).
    Result: COCO +1.87 AP over ImageNet (N-10).
    """
    return _jft("resnet50")


def jft300m_resnet152() -> PretrainRecipe:
    """JFT-300M, ResNet-152 (T-01 to T-15; X-09, C-03).

    Command: tenfold pretrain jft300m_resnet152 --corpus CORPUS --ranks 8 --set workers=8
    Time: about 1.5 of ResNet-101's (11.5 against 7.8 billion multiply-adds at 224 px).
    Result: COCO +3 AP over ImageNet (N-10).
    """
    return _jft("resnet152")


def imagenet_baseline() -> PretrainRecipe:
    """ImageNet, ResNet-101 from scratch: the paper's baseline (B, D-18).

    Command: tenfold pretrain imagenet_baseline --corpus CORPUS --ranks 8 --set workers=8 --set rate_scaling=linear
    Time: 5M steps of 32 are 160M images, 125 epochs (paper.md section 8.2: the paper's table says 150).
    Result: top-1 / top-5 of 77.5 / 93.9 (N-01), about 1 point above the public ResNet-101.
    """
    return PretrainRecipe(
        name="imagenet_baseline",
        trunk=TrunkConfig(name="resnet101"),
        head=HeadConfig(loss="softmax"),  # ours: the paper only says "trained on ImageNet"; its labels are exclusive
        classes=1_000,
        images=CropTransform(resize=340, crop=299),  # T-03; the paper gives no other for ImageNet
        batch=WORKER_BATCH,
        optimizer=OptimizerConfig(name="momentum", learning_rate=5e-2, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="step", unit="epochs", factor=0.1, boundaries=(30, 60, 90, 120)),
        length=LengthConfig(steps=5_000_000, images_per_step=WORKER_BATCH),
        monitor=MonitorConfig(every=50_000, top=5),
        checkpoint=CheckpointConfig(every=5_000),
    )


def cifar10n() -> PretrainRecipe:
    """CIFAR-10N for a laptop: real human labels, closed upward to 40 classes, a 0.3 M parameter trunk (all ours).

    Command: tenfold pretrain cifar10n --corpus CORPUS --ranks 2
    Time: about 2 minutes on two cores.
    Result: see docs/decisions.md.
    """
    return PretrainRecipe(
        name="cifar10n",
        trunk=TrunkConfig(name="small"),
        head=HeadConfig(prior=0.25),
        images=PadTransform(side=32, pad=4),
        batch=256,
        optimizer=OptimizerConfig(name="rmsprop", learning_rate=1e-3, momentum=0.9, weight_decay=1e-4, epsilon=1e-3),
        schedule=ScheduleConfig(kind="cosine", unit="run", warm_up=0.05),
        length=LengthConfig(epochs=8),
        monitor=MonitorConfig(every=0, top=100),
        checkpoint=CheckpointConfig(every=200),
    )


def cifar10n_finetune() -> PretrainRecipe:
    """The ten leaf classes of CIFAR-10N on a few thousand images, from a pretrained trunk (R-2; all ours).

    Command: tenfold pretrain cifar10n_finetune --corpus TARGET --init RUN --ranks 2
    Time: about 2 minutes on two cores for 5,000 images.
    Result: see docs/cifar10n.md.
    """
    return PretrainRecipe(
        name="cifar10n_finetune",
        trunk=TrunkConfig(name="small"),
        head=HeadConfig(loss="softmax"),
        images=PadTransform(side=32, pad=4),
        batch=128,
        optimizer=OptimizerConfig(name="momentum", learning_rate=2e-2, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(kind="cosine", unit="run", warm_up=0.05),
        length=LengthConfig(epochs=20),
        checkpoint=CheckpointConfig(every=200),
    )


def _jft(trunk: Literal["resnet50", "resnet101", "resnet152"]) -> PretrainRecipe:
    """T-01 to T-14 for one depth."""
    return PretrainRecipe(
        name=f"jft300m_{trunk}",
        trunk=TrunkConfig(name=trunk),  # T-01, T-04
        head=HeadConfig(loss="sigmoid"),  # T-02, D-11
        classes=18_291,  # T-01, D-03
        images=CropTransform(resize=340, crop=299),  # T-03
        batch=WORKER_BATCH,  # T-08
        optimizer=OptimizerConfig(
            name="rmsprop",  # T-06; square decay, epsilon and convention are TensorFlow's defaults (not given)
            learning_rate=1e-3,  # T-07
            momentum=0.9,  # T-06
            weight_decay=1e-4,  # T-05
        ),
        schedule=ScheduleConfig(  # T-07: the paper says steps, Xception says samples (images_per_step=1)
            kind="exponential", unit="steps", images_per_step=WORKER_BATCH, factor=0.9, every=3_000_000
        ),
        length=LengthConfig(steps=36_000_000, images_per_step=WORKER_BATCH),  # T-09
        monitor=MonitorConfig(every=100_000, top=100),  # M-01
        checkpoint=CheckpointConfig(every=5_000),
    )


RECIPES: dict[str, Callable[[], PretrainRecipe]] = {
    make.__name__: make
    for make in (jft300m_resnet50, jft300m_resnet101, jft300m_resnet152, imagenet_baseline, cifar10n, cifar10n_finetune)
}


def recipe(name: str) -> PretrainRecipe:
    """The recipe of that name; raises InputError with the names there are."""
    if name not in RECIPES:
        raise InputError(f"there is no pretraining recipe {name!r}", f"choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
