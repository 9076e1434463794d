"""`tenfold pretrain`: train a trunk and a head on a corpus (docs/pretrain.md)."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from tenfold.cli.common import JsonFlag, emit


def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (see `tenfold recipes list`).")],
    corpus: Annotated[str, typer.Option(help="Corpus folder, or FOLDER@TAG; file path or s3:// address.")],
    out: Annotated[str, typer.Option(help="Run folder; what is there already is gone on with.")],
    n: Annotated[int | None, typer.Option("--n", help="Images to train on: the first n rows. All by default.")] = None,
    on: Annotated[Literal["local"], typer.Option(help="Where the ranks run.")] = "local",
    ranks: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of the recipe's length.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0, help="Epochs, instead of the recipe's length.")] = None,
    init: Annotated[str | None, typer.Option(help="Checkpoint that the trunk starts from.")] = None,
    monitor: Annotated[str | None, typer.Option(help="Test corpus (FOLDER@TAG): mAP@100 during training.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, instead of the recipe's.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="field=value of the recipe; repeatable.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what the run folder holds and start over.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What ranks compute on.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each rank; 0: the cores shared out.")] = 0,
    restarts: Annotated[int, typer.Option(min=0, help="Times to start again when a rank was killed.")] = 3,
    metrics_port: Annotated[int, typer.Option(min=0, help="Serve /metrics of rank r on this port + r; 0: no.")] = 0,
    team: Annotated[str, typer.Option(help="Whose run it is; a label of the metrics.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Pretrain on a corpus: run it again to go on after any interruption; a finished run returns at once.

    Exit codes: 2 wrong input, 3 storage, 5 training cannot go on (loss not a number, ranks lost), 75 stopped by a
    signal with a checkpoint written.
    """
    from tenfold.launch.local import LocalLauncher
    from tenfold.launch.pretrain import pretrain as run
    from tenfold.recipes.overrides import override
    from tenfold.recipes.pretrain import recipe as named

    chosen = override(named(recipe), set_ or [])
    chosen = override(chosen, _short_forms(chosen.global_batch, steps, epochs, init, seed))
    result = run(
        chosen,
        corpus,
        out,
        launcher={"local": LocalLauncher}[on](),
        ranks=ranks,
        n=n,
        monitor=monitor,
        fresh=fresh,
        device=device,
        threads=threads,
        restarts=restarts,
        metrics_port=metrics_port,
        team=team,
        write=lambda line: print(line, file=sys.stderr, flush=True),
    )
    emit(result, as_json, _render)


def _short_forms(batch: int, steps: int | None, epochs: float | None, init: str | None, seed: int | None) -> list[str]:
    """The options that are short forms of `--set`."""
    import json

    from tenfold.errors import InputError

    if steps is not None and epochs is not None:
        raise InputError("--steps and --epochs give two lengths", "give one of them")
    settings = []
    if steps is not None:
        settings.append(f'length={{"steps": {steps}, "images_per_step": {batch}}}')
    if epochs is not None:
        settings.append(f'length={{"epochs": {epochs}}}')
    if init is not None:
        settings.append(f'init={{"kind": "checkpoint", "uri": {json.dumps(init)}}}')
    if seed is not None:
        settings.append(f"seed={seed}")
    return settings


def _render(result: Any) -> None:
    print(f"{'finished' if result.trained else 'was finished before'}: {result.run}")
    print(f"  steps       {result.steps:,}")
    print(f"  images      {result.images:,} ({result.epochs:.3g} epochs)")
    print(f"  loss        {result.loss:.4f}")
    print(f"  checkpoint  {result.checkpoint}")
    print(f"  digest      {result.digest}")
