"""A pretrained trunk, from its checkpoint alone: the recipe in the manifest says what to build and what it saw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.engine.checkpoint import load_trunk, load_weights
from tenfold.engine.checkpoint_folder import Checkpoint
from tenfold.engine.images import CropTransform, PadTransform
from tenfold.errors import InputError
from tenfold.nets.trunk import Trunk
from tenfold.pretrain.config import PretrainRecipe, parse_recipe


@dataclass(frozen=True)
class Pretrained:
    """A trunk with where it came from.

    Attributes:
        trunk: in evaluation mode.
        recipe: that made it.
        checkpoint: where from; None for a trunk that was never trained.
    """

    trunk: Trunk
    recipe: PretrainRecipe
    checkpoint: Checkpoint | None

    @property
    def transform(self) -> CropTransform | PadTransform:
        """How its recipe shows images."""
        return self.recipe.images


def pretrained(uri: str) -> Pretrained:
    """The trunk of a pretraining checkpoint (its folder, its manifest, or the run: then the newest).

    Raises InputError where there is none, or the checkpoint is of something else.
    """
    checkpoint = Checkpoint.open(uri)
    recipe = parse_recipe(checkpoint.manifest.recipe)
    trunk = Trunk(recipe.trunk)
    trunk.load(load_trunk(checkpoint.uri))
    return Pretrained(trunk.eval(), recipe, checkpoint)


def untrained(recipe: PretrainRecipe) -> Pretrained:
    """The trunk of a recipe before any training: what a probe must beat."""
    torch.manual_seed(recipe.seed)
    return Pretrained(Trunk(recipe.trunk).eval(), recipe, None)


def own_head(model: Pretrained) -> tuple[Tensor, Tensor]:
    """Weight [classes, d] and bias [classes] of the head that was trained with the trunk."""
    if model.checkpoint is None:
        raise InputError("an untrained trunk has no head of its own", "use --head new")
    weights = load_weights(model.checkpoint.uri, prefix="head.")
    return weights["weight"], weights["bias"]
