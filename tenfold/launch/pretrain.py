"""`pretrain`: one call from settings to a finished checkpoint, on any launcher; the verb and components call it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tenfold import storage
from tenfold.corpus.table import Corpus
from tenfold.engine.checkpoint_folder import Checkpoint
from tenfold.errors import TrainingError
from tenfold.launch.job import Launcher
from tenfold.launch.job import run as run_job
from tenfold.launch.local import threads_per_rank
from tenfold.pretrain.config import PretrainRecipe
from tenfold.pretrain.folder import describe, finished, initial_digest, open_folder, read_folder

log = logging.getLogger(__name__)


class PretrainResult(BaseModel):
    """A finished run.

    Attributes:
        run: its folder.
        resumed: whether a run was there already (finished or not).
        trained: whether this call trained at all; False where the run was finished before.
        checkpoint: folder of its last checkpoint; `manifest.json` in it is the run's output.
        digest: of that checkpoint.
        steps: optimizer steps.
        images: seen in them, repeats counted.
        epochs: images / n.
        loss: of the last step.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    resumed: bool
    trained: bool
    checkpoint: str
    digest: str
    steps: int
    images: int
    epochs: float
    loss: float | None


def pretrain(
    recipe: PretrainRecipe,
    corpus: str,
    out: str,
    *,
    launcher: Launcher,
    ranks: int = 1,
    n: int | None = None,
    monitor: str | None = None,
    fresh: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 0,
    restarts: int = 3,
    metrics_port: int = 0,
    team: str = "",
    write: Callable[[str], None] = log.info,
) -> PretrainResult:
    """Train a recipe on a corpus, in a folder, to its end.

    A folder with the same settings is gone on with, from its newest checkpoint; where it is finished, nothing is
    trained. The arguments after `n` may differ from call to call, the others are the run's identity.

    Args:
        recipe: settings, overrides included.
        corpus: folder or FOLDER@TAG.
        out: run folder, file path or `s3://`.
        launcher: where ranks run.
        ranks: that share every batch; the global batch must be a multiple of it.
        n: images to train on, the first n rows; all by default.
        monitor: test corpus (FOLDER@TAG) for mAP@100 during training, as the recipe's `monitor` says.
        fresh: remove what `out` holds first.
        device: what ranks compute on.
        threads: CPU threads of each rank; 0: as the run had before on as many ranks, else the cores shared out.
        restarts: times to start again when a rank was killed.
        metrics_port: `/metrics` of local rank r on this port + r; 0: none.
        team: a label of the metrics.
        write: gets each line that ranks write.

    Raises InputError (settings), StorageError, TrainingError (a loss that is not a number, ranks lost),
    InterruptedRun (a signal; the checkpoint is written).
    """
    out = storage.normalise(out)
    storage.preflight(out)
    before = None if fresh else read_folder(out)
    if not threads:
        threads = before.threads if before and before.ranks == ranks else threads_per_rank(ranks)
    init_digest = initial_digest(recipe.init.uri)
    wanted = describe(
        recipe,
        Corpus.open(corpus),
        n,
        ranks=ranks,
        threads=threads,
        init_digest=init_digest,
        monitor=Corpus.open(monitor) if monitor else None,
    )
    settings = open_folder(out, wanted, fresh=fresh)

    done = finished(out, settings)
    trained = done is None
    if trained:
        if settings.code != wanted.code:
            write(f"{out} was begun by {settings.code}, this is {wanted.code}: it goes on, but not bit for bit")
        env = {
            "OMP_NUM_THREADS": str(threads),
            "TENFOLD_DEVICE": device,
            "TENFOLD_METRICS_PORT": str(metrics_port),
            "TENFOLD_TEAM": team,
            "TENFOLD_DIE_WITH_PARENT": "1",
        }
        run_job(launcher, ["-m", "tenfold.pretrain.run", out], env, ranks, write=write, restarts=restarts)
        done = finished(out, settings)
    if done is None:
        raise TrainingError(f"all ranks ended well, but {out} is not finished", "run the same command again")
    return _describe(out, done, before is not None, trained)


def _describe(out: str, done: Checkpoint, resumed: bool, trained: bool) -> PretrainResult:
    facts = done.manifest.facts
    return PretrainResult(
        run=out,
        resumed=resumed,
        trained=trained,
        checkpoint=done.uri,
        digest=done.digest,
        steps=done.step,
        images=facts["images"],
        epochs=facts["epoch"],
        loss=facts["loss"],
    )
