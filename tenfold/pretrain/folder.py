"""A run's folder: what was asked for, so that asking again goes on, and asking for something else is refused.

RUN/run.json          settings: recipe, corpus digest, n, the plan of the sample order, code
RUN/checkpoints/      engine.checkpoint
RUN/losses/           the loss of every step (engine.steplog)
RUN/telemetry.jsonl   rank 0's telemetry
RUN/result.json       written at the end
RUN/failure.json      the samples of a step whose loss was not a number
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tenfold import storage
from tenfold.corpus.table import Corpus
from tenfold.engine.checkpoint_folder import Checkpoint, latest
from tenfold.engine.streams import Plan
from tenfold.errors import InputError
from tenfold.manifest import code_version
from tenfold.pretrain.config import PretrainRecipe
from tenfold.pretrain.head import shard_bounds

SETTINGS, RESULT, LOCK = "run.json", "result.json", ".lock"


class Run(BaseModel):
    """The settings of a run, complete: a rank needs nothing else but the corpus.

    Attributes:
        recipe: with all overrides.
        corpus: its folder and tag.
        corpus_digest: of that state; another state under the same tag is refused.
        n: images read: the first n rows.
        classes: of the head.
        plan: the order of samples; kept whole, so that a later version with other defaults reads on in this order.
        init_digest: of the checkpoint the trunk starts from.
        ranks: that share each batch; may change between starts.
        monitor: test corpus, folder and tag, that is looked at during training; None: none.
        threads: of each rank; kept while `ranks` stays, for results on CPU depend on it in the last bit.
        code: version that began the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: PretrainRecipe
    corpus: str
    corpus_digest: str
    n: int
    classes: int
    plan: Plan
    init_digest: str | None = None
    monitor: str | None = None
    ranks: int = Field(ge=1)
    threads: int = Field(ge=1)
    code: str = Field(default_factory=code_version)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.recipe.total_steps(self.n)

    @property
    def inputs(self) -> list[str]:
        """Digests of what it is made from."""
        return [self.corpus_digest, *([self.init_digest] if self.init_digest else [])]

    def identity(self) -> dict[str, Any]:
        """What makes it this run and no other. When it is saved or looked at, and on how many ranks, does not."""
        recipe = self.recipe.model_dump(mode="json", exclude={"checkpoint", "monitor"})
        recipe["init"].pop("uri")  # a moved checkpoint is the same; its digest counts
        return {
            "recipe": recipe,
            "corpus": self.corpus_digest,
            "n": self.n,
            "classes": self.classes,
            "init": self.init_digest,
        }


def describe(
    recipe: PretrainRecipe,
    corpus: Corpus,
    n: int | None,
    *,
    ranks: int,
    threads: int,
    init_digest: str | None = None,
    monitor: Corpus | None = None,
) -> Run:
    """The run of a recipe on a corpus; raises InputError where they do not fit together."""
    n = corpus.check_size(n)
    there = len(corpus.classes)
    classes = recipe.classes or there
    if there > classes:
        raise InputError(
            f"the recipe has {classes:,} classes, the corpus {there:,}",
            "use another corpus, or --set classes=null for as many as the corpus has",
        )
    shard_bounds(classes, ranks)
    recipe.total_steps(n)
    sizes = [len(image) for batch in corpus.batches(["image"], min(n, 256)) for image in batch["image"].to_pylist()]
    plan = Plan.sized(
        seed=recipe.seed,
        digest=corpus.digest,
        n=n,
        batch=recipe.global_batch,
        record_bytes=max(1, sum(sizes) // len(sizes)),
    )
    plan.slots(0, ranks)
    return Run(
        recipe=recipe,
        corpus=f"{corpus.uri}@{corpus.tag}",
        corpus_digest=corpus.digest,
        n=n,
        classes=classes,
        plan=plan,
        init_digest=init_digest,
        monitor=f"{monitor.uri}@{monitor.tag}" if monitor else None,
        ranks=ranks,
        threads=threads,
    )


def open_folder(uri: str, wanted: Run, *, fresh: bool = False) -> Run:
    """Make a run's folder, or go on in one; returns the settings that hold.

    Args:
        uri: file path or `s3://` address.
        wanted: what was asked for.
        fresh: remove what is there first.

    Raises InputError where the folder belongs to a run with other settings; the message names each difference.
    """
    if fresh and storage.exists(uri):
        with hold(uri):
            for part in (SETTINGS, "checkpoints", "losses", "monitor", "telemetry.jsonl", RESULT, "failure.json"):
                storage.remove(storage.join(uri, part))
    known = read_folder(uri)
    if known is None:
        if set(storage.list_files(uri)) - {LOCK}:
            raise InputError(
                f"{uri} holds files, but no run", "choose an empty or new folder; a run makes one of its own"
            )
    else:
        unlike = differences(known.identity(), wanted.identity())
        if unlike:
            raise InputError(
                f"{uri} holds a run with other settings: " + "; ".join(unlike),
                "choose another --out, give the same settings to go on, or start over with --fresh",
            )
        wanted = wanted.model_copy(update={"plan": known.plan, "code": known.code})
    if known != wanted:
        storage.write_bytes(storage.join(uri, SETTINGS), (wanted.model_dump_json(indent=1) + "\n").encode())
    return wanted


@contextmanager
def hold(uri: str) -> Iterator[None]:
    """Hold a run's folder: two trainings in one would write over each other. Only on files; S3 has no locks.

    Raises InputError where another process holds it. The kernel lets go of it when this process ends in any way.
    """
    if storage.is_s3(uri):
        yield
        return
    with open(storage.join(uri, LOCK), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{uri} is being trained by another process", "wait for it, stop it, or choose another --out"
            ) from None
        yield


def read_folder(uri: str) -> Run | None:
    """The settings of the run in a folder; None where there is none."""
    path = storage.join(uri, SETTINGS)
    if not storage.exists(path):
        return None
    try:
        return Run.model_validate_json(storage.read_bytes(path))
    except ValidationError as error:
        where = ", ".join(".".join(map(str, e["loc"])) for e in error.errors()[:3])
        raise InputError(
            f"{path} is of another version of Tenfold: wrong in {where}", "choose another --out, or --fresh"
        ) from None


def initial_digest(uri: str | None) -> str | None:
    """Digest of what the trunk starts from: of a `.pt` file, or of a checkpoint's manifest."""
    if uri is None:
        return None
    return storage.digest(uri) if uri.endswith((".pt", ".pth")) else Checkpoint.open(uri).digest


def checkpoints_of(uri: str) -> str:
    """Folder of a run's checkpoints."""
    return storage.join(uri, "checkpoints")


def finished(uri: str, run: Run) -> Checkpoint | None:
    """The last checkpoint of a run that has nothing left to do (not even a last look of its monitor), or None."""
    if not storage.exists(storage.join(uri, RESULT)):
        return None
    newest = latest(checkpoints_of(uri))
    return newest if newest is not None and newest.step >= run.steps else None


def differences(there: Any, asked: Any, path: str = "") -> list[str]:
    """Where two settings differ, in words: `recipe.optimizer.learning_rate: 0.001 there, 0.002 asked`."""
    if isinstance(there, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted({*there, *asked})
            for line in differences(there.get(key), asked.get(key), f"{path}.{key}".lstrip("."))
        ]
    if there == asked:
        return []
    return [f"{path}: {json.dumps(there)} there, {json.dumps(asked)} asked"]
