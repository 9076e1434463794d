"""One rank of a pretraining run: `python -m tenfold.pretrain.run RUN`, started by torchrun (or alone).

All settings stand in RUN/run.json; the environment only says how this start runs: TENFOLD_DEVICE, TENFOLD_METRICS_PORT
(0: none; each rank of a machine takes the next), TENFOLD_TEAM, TENFOLD_DIE_WITH_PARENT.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from tenfold import storage
from tenfold.corpus.table import Corpus
from tenfold.engine.batches import LabelledImages
from tenfold.engine.checkpoint import Checkpointer, load_trunk
from tenfold.engine.distributed import Device, is_peer_lost, join, leave
from tenfold.engine.exits import run_rank
from tenfold.engine.loader import Loader
from tenfold.engine.loop import LoopConfig, NonFiniteLossError, Outcome, train
from tenfold.engine.parent import die_with_parent
from tenfold.engine.steplog import StepLog
from tenfold.errors import InputError
from tenfold.pretrain.folder import RESULT, Run, checkpoints_of, hold, initial_digest, read_folder
from tenfold.pretrain.learner import PretrainLearner
from tenfold.pretrain.watch import watch
from tenfold.telemetry import Telemetry

log = logging.getLogger("tenfold")


def pretrain_rank(uri: str, *, device: Device = "auto", metrics_port: int = 0, team: str = "") -> Outcome:
    """Train this rank's share of the run in folder `uri`, from its newest checkpoint to its end.

    Raises InputError where the folder or its corpus is not as it was, and what engine.loop.train raises.
    """
    run = read_folder(uri)
    if run is None:
        raise InputError(f"{uri} holds no run", "start it with `tenfold pretrain`")
    recipe = run.recipe

    # The ranks; the corpus at the state that the run began with.
    world = join(device, run.threads)
    corpus = Corpus.open(run.corpus)
    if corpus.digest != run.corpus_digest:
        raise InputError(
            f"{run.corpus} has changed since the run began", "start a new run (--out), or restore the corpus state"
        )

    with hold(uri) if world.main else nullcontext():
        # What is trained, and where to go on from.
        start = 0
        checkpointer = Checkpointer(
            checkpoints_of(uri),
            recipe=recipe.model_dump(mode="json"),
            inputs=run.inputs,
            keep_last=recipe.checkpoint.keep,
        )
        learner = PretrainLearner(recipe, run.classes, run.n, world)
        if found := checkpointer.resume(learner.state()):
            start = found.step
            if world.main:
                log.info("going on from step %d of %d", start, run.steps)
        elif weights := initial_weights(run):
            learner.trunk.load(weights)

        # Where its batches come from, and what it says meanwhile.
        losses = StepLog(storage.join(uri, "losses"), start) if world.main else None
        telemetry = Telemetry(
            run=uri.rpartition("/")[2],
            stage="pretrain",
            rank=world.rank,
            world=world.size,
            team=team,
            total_steps=run.steps,
            first_step=start,
            port=metrics_port + world.local_rank if metrics_port else 0,
            log=storage.join(uri, "telemetry.jsonl") if world.main else None,
            every=50,
            gpu="auto" if world.device.type == "cuda" else None,
        )

        def batches(first: int) -> Loader[Any]:
            return Loader(
                corpus.images,
                run.plan,
                LabelledImages(recipe.images, pin=world.device.type == "cuda"),
                rank=world.rank,
                world=world.size,
                workers=run.threads,
                start_step=first,
                stop_step=run.steps,
                on_bad=lambda bad: telemetry.bad_row(bad.row, "decode", bad.reason),
            )

        def facts(steps: int) -> dict[str, Any]:
            images = steps * recipe.global_batch
            return {"images": images, "epoch": images / run.n, "n": run.n, "classes": run.classes}

        try:
            outcome = train(
                learner,
                batches,
                loop_config(run),
                world=world,
                checkpointer=checkpointer,
                telemetry=telemetry,
                start=start,
                facts=facts,
                losses=losses,
                hooks=watch(uri, run, corpus, learner, world, start),
            )
        except NonFiniteLossError as error:
            if world.main:
                failure = {"step": error.step, "loss": str(error.loss), "samples": error.samples}
                storage.write_bytes(storage.join(uri, "failure.json"), (json.dumps(failure, indent=1) + "\n").encode())
            raise
        finally:
            if losses:
                losses.close()
            telemetry.close()
        checkpointer.close()
        if world.main:
            _write_result(uri, run, outcome, checkpointer)
    leave()
    return outcome


def loop_config(run: Run) -> LoopConfig:
    """The engine's settings for a run."""
    return LoopConfig(
        steps=run.steps,
        seed=run.recipe.seed,
        checkpoint_steps=run.recipe.checkpoint.every,
        keep_last=run.recipe.checkpoint.keep,
    )


def initial_weights(run: Run) -> Mapping[str, Tensor] | None:
    """The trunk's first weights where they are not random (T-14); raises InputError where the file is another one."""
    uri = run.recipe.init.uri
    if uri is None:
        return None
    if initial_digest(uri) != run.init_digest:
        raise InputError(f"init.uri: {uri} has changed since the run began", "start a new run with --out")
    if uri.endswith((".pt", ".pth")):
        with storage.open_read(uri) as file:
            return cast(Mapping[str, Tensor], torch.load(file, map_location="cpu", weights_only=True))
    return load_trunk(uri)


def _write_result(uri: str, run: Run, outcome: Outcome, checkpointer: Checkpointer) -> None:
    """RUN/result.json: what this start did."""
    images = (outcome.steps - outcome.first) * run.recipe.global_batch
    times = checkpointer.times
    result = {
        "steps": outcome.steps,
        "first_step": outcome.first,
        "loss": outcome.checkpoint.manifest.facts["loss"] if outcome.checkpoint else None,
        "seconds": round(outcome.seconds, 3),
        "images_per_second": round(images / outcome.seconds, 1) if outcome.seconds else None,
        "checkpoints": {
            "written": times.saves,
            "staging_seconds": round(times.staging, 4),
            "waiting_seconds": round(times.waiting, 4),
            "writing_seconds": round(times.writing, 4),
        },
        "monitor": outcome.hooks,
    }
    storage.write_bytes(storage.join(uri, RESULT), (json.dumps(result, indent=1) + "\n").encode())


def main() -> None:
    """Entry point of a rank; ends the process."""
    if os.environ.get("TENFOLD_DIE_WITH_PARENT"):
        die_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    env = os.environ.get

    def body() -> None:
        pretrain_rank(
            storage.normalise(sys.argv[1]),
            device=cast(Device, env("TENFOLD_DEVICE", "auto")),
            metrics_port=int(env("TENFOLD_METRICS_PORT", "0")),
            team=env("TENFOLD_TEAM", ""),
        )

    run_rank(body, is_peer_lost)


if __name__ == "__main__":
    main()
