"""`tenfold probe`: what a pretrained trunk is worth, frozen, on a labelled test set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from tenfold.cli.common import JsonFlag, emit, progress


def probe(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint or run folder; or `random:RECIPE` for an untrained trunk.")
    ],
    corpus: Annotated[str, typer.Option(help="Corpus (FOLDER@TAG) whose first images train the probe.")],
    test: Annotated[str, typer.Option(help="Corpus of test images, not in the other one.")],
    train_n: Annotated[int, typer.Option(min=2, help="Images that train the probe: the first ones.")] = 5000,
    classes: Annotated[
        list[str] | None, typer.Option(help="Target classes; the leaves of the hierarchy by default.")
    ] = None,
    head: Annotated[
        Literal["new", "own"],
        typer.Option(help="Fit a new head, or judge the one trained with the trunk (after fine-tuning)."),
    ] = "new",
    gate: Annotated[
        str | None, typer.Option(help="Name of a gate: also the result without its near-duplicates.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where features are computed.")] = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Softmax regression on the frozen trunk's pooled features: accuracy on a test set, with its interval.

    The label of an image is the target class with most votes; images whose votes tie are left out. With `--head own`
    nothing is fitted: --corpus only says which classes the head has.
    """
    from tenfold.corpus.table import Corpus
    from tenfold.pretrain.pretrained import own_head, pretrained, untrained
    from tenfold.pretrain.probe import Features, extract, judge_head, leaves
    from tenfold.pretrain.probe import probe as fit_probe
    from tenfold.recipes.pretrain import recipe as named

    train_corpus, test_corpus = Corpus.open(corpus), Corpus.open(test)
    targets = classes or leaves(train_corpus)
    kind, _, name = checkpoint.partition(":")
    model = untrained(named(name)) if kind == "random" and name else pretrained(checkpoint)
    n = min(train_n, train_corpus.rows) if head == "new" else 0
    with progress("features", n + test_corpus.rows) as advance:

        def features(of: Corpus, size: int) -> Features:
            found = extract(model.trunk, of, targets, model.transform, n=size, device=device)
            advance(size, "")
            return found

        if head == "new":
            result = fit_probe(features(train_corpus, n), features(test_corpus, test_corpus.rows), len(targets))
        else:
            rows = [train_corpus.classes.index(name) for name in targets]
            result = judge_head(*own_head(model), rows, features(test_corpus, test_corpus.rows))
    answer: dict[str, Any] = {
        "checkpoint": model.checkpoint.uri if model.checkpoint else checkpoint,
        "digest": model.checkpoint.digest if model.checkpoint else None,
        "accuracy": result.accuracy,
        "interval": [result.low, result.high],
        "classes": len(targets),
        "train_images": result.train,
        "test_images": result.test,
        "penalty": result.penalty,
    }
    if gate:
        answer["without_near_duplicates"] = _without(result, train_corpus, gate)
    emit(answer, as_json, _render)


def _without(result: Any, corpus: Any, gate: str) -> dict[str, Any]:
    """The result on the test images that have no near-duplicate in the corpus (D-16)."""
    import numpy as np

    from tenfold.corpus.gate import duplicates
    from tenfold.pretrain.probe import accuracy_interval

    near = duplicates(corpus, gate)
    kept = np.array([i not in near for i in result.ids])
    correct = result.correct[kept]
    return {
        "gate": gate,
        "removed": int((~kept).sum()),
        "test_images": int(kept.sum()),
        "accuracy": float(correct.mean()),
        "interval": list(accuracy_interval(correct, 1000, 0)),
    }


def _render(answer: dict[str, Any]) -> None:
    low, high = answer["interval"]
    print(f"accuracy      {answer['accuracy']:.2%}  ({low:.2%} to {high:.2%})  on {answer['test_images']:,} images")
    if clean := answer.get("without_near_duplicates"):
        low, high = clean["interval"]
        print(
            f"  without     {clean['accuracy']:.2%}  ({low:.2%} to {high:.2%})  "
            f"{clean['removed']:,} near-duplicates of the corpus left out"
        )
    if answer["penalty"] is not None:
        print(f"probe         {answer['train_images']:,} images, {answer['classes']} classes, L2 {answer['penalty']:g}")
    print(f"checkpoint    {answer['checkpoint']}")
