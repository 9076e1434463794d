"""`tenfold recipes list|show`: what there is to run, with every setting."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from tenfold.cli.common import JsonFlag, emit

recipes_app = typer.Typer(
    help="What there is to run: the paper's recipes and our own, with every setting.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, such as optimizer.learning_rate=3e-4; may be repeated."),
]


@recipes_app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """Names of all recipes, with one line each."""
    from tenfold.recipes.pretrain import RECIPES

    rows = [{"name": name, "what": _doc(make).splitlines()[0]} for name, make in RECIPES.items()]
    emit(rows, as_json, _print_list)


@recipes_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Recipe, as `tenfold recipes list` prints it.")],
    settings: Settings = None,
    as_json: JsonFlag = False,
) -> None:
    """One recipe: where it comes from, how to run it, what to expect, and every setting."""
    from tenfold.recipes.overrides import override
    from tenfold.recipes.pretrain import RECIPES, recipe

    result = override(recipe(name), settings or [])
    emit(result, as_json, lambda model: _print_recipe(_doc(RECIPES[name]), model.model_dump(mode="json")))


def _doc(function: Any) -> str:
    return inspect.getdoc(function) or ""


def _print_list(rows: list[dict[str, str]]) -> None:
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['what']}")


def _print_recipe(doc: str, settings: dict[str, Any]) -> None:
    print(doc + "\n")
    flat = list(_flatten(settings))
    width = max(len(path) for path, _ in flat)
    for path, value in flat:
        print(f"{path:<{width}}  {value}")


def _flatten(settings: dict[str, Any], above: str = "") -> Any:
    """(path, value) of every setting, in the form that --set takes."""
    import json

    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value)
