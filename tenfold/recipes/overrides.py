"""Changing single settings of a recipe from text: `optimizer.learning_rate=3e-4`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tenfold.errors import InputError
from tenfold.pretrain.config import explain

Recipe = TypeVar("Recipe", bound=BaseModel)


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """A copy of `recipe` with settings changed; all together are checked as if the recipe had been written that way.

    Args:
        recipe: any frozen model.
        settings: `path=value`; the path is of field names joined by dots, the value JSON (`0.1`, `null`, `[1, 2]`,
            `{"kind": "pad"}`) or else a plain string.

    Raises InputError naming the setting: no such field (with the nearest name), wrong type, or values that contradict.
    """
    data: dict[str, Any] = recipe.model_dump()
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise InputError(
                f"--set {setting!r} has no value", "write it as field=value, such as optimizer.momentum=0.9"
            )
        _assign(data, recipe, path.strip().split("."), _value(text.strip()))
    try:
        return type(recipe).model_validate(data)
    except ValidationError as error:
        raise InputError(*explain(error)) from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _assign(data: dict[str, Any], recipe: BaseModel, path: list[str], value: Any) -> None:
    here: Any = data
    model: Any = recipe
    for depth, name in enumerate(path):
        whole, above = ".".join(path), ".".join(path[:depth])
        if not isinstance(here, dict):
            raise InputError(f"--set {whole}: {above} is a plain value, it has no fields", f"write {above}=value")
        free = not isinstance(model, BaseModel)  # a dictionary takes any key; its model checks it later
        if not free and name not in type(model).model_fields:
            fields = list(type(model).model_fields)
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {'.'.join([*path[:depth], near[0]])}?" if near else f"fields are {', '.join(fields)}"
            raise InputError(f"--set {whole}: {above or 'the recipe'} has no field {name!r}", hint)
        if depth == len(path) - 1:
            here[name] = value
            return
        model = model.get(name) if isinstance(model, dict) else getattr(model, name, None)
        here = here.setdefault(name, {}) if free else here[name]
