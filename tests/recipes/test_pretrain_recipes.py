"""The recipes say what the paper says: every row of T-* and B, and the arithmetic on them."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from tenfold.cli import app
from tenfold.errors import InputError
from tenfold.pretrain.config import PretrainRecipe, parse_recipe
from tenfold.pretrain.head import shard_bounds
from tenfold.recipes.overrides import override
from tenfold.recipes.pretrain import RECIPES, recipe

JFT = ("jft300m_resnet50", "jft300m_resnet101", "jft300m_resnet152")
JFT_IMAGES, IMAGENET_IMAGES, JFT_CLASSES = 300_000_000, 1_281_167, 18_291  # D-01, D-18, D-03


@pytest.mark.parametrize("name", JFT)
def test_jft_says_what_the_paper_says(name: str) -> None:
    jft = recipe(name)
    assert jft.name == name
    assert jft.trunk.name == name.removeprefix("jft300m_")  # T-01
    assert jft.classes == JFT_CLASSES  # T-01, D-03
    assert jft.head.loss == "sigmoid"  # T-02
    assert jft.images.model_dump(include={"resize", "crop", "random"}) == {"resize": 340, "crop": 299, "random": True}
    assert jft.optimizer.weight_decay == 1e-4  # T-05
    assert (jft.optimizer.name, jft.optimizer.momentum) == ("rmsprop", 0.9)  # T-06
    assert jft.optimizer.learning_rate == 1e-3  # T-07
    assert (jft.schedule.kind, jft.schedule.factor, jft.schedule.every) == ("exponential", 0.9, 3_000_000)  # T-07
    assert jft.batch == jft.global_batch == 32  # T-08
    assert jft.schedule.images_per_step == jft.length.images_per_step == 32  # T-07, T-08: the unit is explicit
    assert jft.length.steps == 36_000_000  # T-09
    assert jft.init.kind == "random"  # T-14
    assert jft.monitor.top == 100  # M-01


def test_arithmetic_of_the_paper() -> None:
    jft = recipe("jft300m_resnet101")
    assert jft.epochs(JFT_IMAGES) == pytest.approx(3.84)  # T-09
    assert jft.learning_rate(jft.total_steps(JFT_IMAGES), JFT_IMAGES) == pytest.approx(2.82e-4, rel=2e-3)  # T-10
    assert [hi - lo for lo, hi in shard_bounds(JFT_CLASSES, 50)] == [366] * 41 + [365] * 9  # T-12
    weights = 2_048 * JFT_CLASSES
    assert weights == pytest.approx(37.46e6, rel=1e-3)  # T-12
    assert weights * 4 == pytest.approx(149.8e6, rel=1e-3)  # T-13: float32
    assert weights * 16 == pytest.approx(599e6, rel=1e-3)  # T-13: weight, gradient, square average, momentum
    logits = JFT_CLASSES * 4
    assert logits == pytest.approx(73e3, rel=3e-3)  # T-13: logits an image
    steps = {12: 1.3, 24: 2.6, 36: 3.8}
    for millions, epochs in steps.items():
        part = override(jft, [f"length.steps={millions * 1_000_000}"])
        assert part.epochs(JFT_IMAGES) == pytest.approx(epochs, abs=0.05)


def test_baseline_says_what_the_paper_says() -> None:
    baseline = recipe("imagenet_baseline")
    assert (baseline.optimizer.name, baseline.optimizer.momentum) == ("momentum", 0.9)  # B
    assert (baseline.optimizer.learning_rate, baseline.batch) == (5e-2, 32)  # B
    assert baseline.length.steps == 5_000_000  # B
    assert (baseline.trunk.name, baseline.classes) == ("resnet101", 1_000)  # B, D-18
    assert baseline.epochs(IMAGENET_IMAGES) == pytest.approx(124.9, abs=0.1)  # paper.md section 8.2: not 150
    per_epoch = IMAGENET_IMAGES / 32
    for epoch, factor in ((0, 1), (29.9, 1), (30.1, 0.1), (60.1, 0.01), (90.1, 1e-3), (120.1, 1e-4)):  # B: /10 every 30
        assert baseline.learning_rate(int(epoch * per_epoch), IMAGENET_IMAGES) == pytest.approx(5e-2 * factor)


def test_more_workers_see_the_same_images_at_the_same_rates() -> None:
    one = recipe("jft300m_resnet101")
    many = override(one, ["workers=50"])  # T-11
    assert many.global_batch == 1_600
    assert many.total_steps(JFT_IMAGES) == one.total_steps(JFT_IMAGES) / 50 == 720_000
    for step in (0, 59_999, 60_000, 719_999):
        assert many.learning_rate(step, JFT_IMAGES) == one.learning_rate(step * 50, JFT_IMAGES)
    assert override(many, ["rate_scaling=sqrt"]).scaled_optimizer().learning_rate == pytest.approx(1e-3 * 50**0.5)
    assert override(many, ["rate_scaling=linear"]).scaled_optimizer().learning_rate == pytest.approx(5e-2)


def test_lengths_in_epochs() -> None:
    short = recipe("cifar10n")
    assert short.length.epochs is not None
    per_epoch = 50_000 // short.global_batch
    assert short.total_steps(50_000) == pytest.approx(short.length.epochs * per_epoch, abs=1)
    with pytest.raises(InputError, match="fewer than a global batch"):
        short.total_steps(short.global_batch - 1)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_documented_and_survives_json(name: str) -> None:
    doc = RECIPES[name].__doc__ or ""
    for heading in ("Command: tenfold pretrain ", "Time: ", "Result: "):
        assert heading in doc, f"{name} does not give {heading!r}"
    assert f"tenfold pretrain {name} " in doc
    assert name.startswith("cifar10n") or re.search(r"\b(T-\d\d|B)\b", doc)
    whole = recipe(name)
    assert parse_recipe(json.loads(whole.model_dump_json())) == whole


def test_there_is_no_other_recipe() -> None:
    with pytest.raises(InputError, match="no pretraining recipe 'jft'") as caught:
        recipe("jft")
    assert "imagenet_baseline" in caught.value.cure


# ---- overrides


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("batch=64", "batch", 64),
        ("precision=fp32", "precision", "fp32"),
        ("trunk.stage_strides.conv5=1", "trunk.stage_strides", {"conv5": 1}),
        ("schedule.boundaries=[1, 2]", "schedule.boundaries", (1.0, 2.0)),
        ("trunk.output_stride=16", "trunk.output_stride", 16),
        ("trunk.output_stride=null", "trunk.output_stride", None),
        ('images={"kind": "pad", "side": 64}', "images.side", 64),
        ("monitor.weights=s3://bucket/weights.json", "monitor.weights", "s3://bucket/weights.json"),
    ],
)
def test_override_sets_one_thing_and_keeps_its_type(setting: str, path: str, value: object) -> None:
    before = recipe("imagenet_baseline")
    after = override(before, [setting])
    found: object = after
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    assert before == recipe("imagenet_baseline")  # the original is untouched


def test_overrides_are_checked_together() -> None:
    changed = override(
        recipe("imagenet_baseline"),
        ["schedule.kind=exponential", "schedule.every=2", "schedule.factor=0.94", "schedule.boundaries=[]"],
    )
    assert changed.schedule.kind == "exponential"


@pytest.mark.parametrize(
    ("setting", "message", "cure"),
    [
        ("optimizer.learning_rat=1", "optimizer has no field 'learning_rat'", "optimizer.learning_rate"),
        ("seed.x=1", "seed is a plain value", "seed=value"),
        ("nonsense=1", "the recipe has no field 'nonsense'", "name, trunk"),
        ("batch", "has no value", "field=value"),
        ("=3", "has no value", "field=value"),
        ("batch=many", "batch: input should be a valid integer", "recipes show"),
        ("optimizer.momentum=1.5", "optimizer.momentum: input should be less than 1, not 1.5", "recipes show"),
        (
            "schedule.kind=poly",
            "give schedule.power and give schedule.length and leave schedule.every out",
            "recipes show",
        ),
        ("length.epochs=3", "give exactly one of the two", "recipes show"),
        ("init.kind=checkpoint", "uri: belongs to kind 'checkpoint'", "recipes show"),
        ("trunk.stage_strides.conv9=1", "conv9", "recipes show"),
    ],
)
def test_a_wrong_override_names_field_and_cure(setting: str, message: str, cure: str) -> None:
    with pytest.raises(InputError) as caught:
        override(recipe("jft300m_resnet50"), [setting])
    assert message in caught.value.message
    assert cure in caught.value.cure


# ---- the command


def test_recipes_list_and_show() -> None:
    run = CliRunner().invoke
    listed = json.loads(run(app, ["recipes", "list", "--json"], catch_exceptions=False).stdout)
    assert [row["name"] for row in listed] == list(RECIPES)
    assert "jft300m_resnet101" in run(app, ["recipes", "list"]).stdout
    shown = run(app, ["recipes", "show", "cifar10n", "--set", "batch=64", "--json"], catch_exceptions=False).stdout
    assert PretrainRecipe.model_validate_json(shown) == override(recipe("cifar10n"), ["batch=64"])
    text = run(app, ["recipes", "show", "jft300m_resnet101"]).stdout
    assert "Command: tenfold pretrain jft300m_resnet101" in text
    assert re.search(r"optimizer\.learning_rate +0\.001\n", text)
