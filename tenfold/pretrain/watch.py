"""What is watched while a run trains: mAP@100 on a test corpus, and a linear probe at the end (M-01).

RUN/monitor/   {"step": 2000, "map": 0.31, "map_low": …, "map_high": …}, one line a look (engine.steplog)
"""

from __future__ import annotations

from tenfold import storage
from tenfold.corpus.table import Corpus
from tenfold.engine.distributed import World
from tenfold.engine.loop import Hook
from tenfold.engine.steplog import StepLog
from tenfold.pretrain.folder import Run
from tenfold.pretrain.learner import PretrainLearner
from tenfold.pretrain.monitor import Monitor, Pooled
from tenfold.pretrain.probe import Features, extract, leaves, probe

PROBE_IMAGES = 5000  # of the training corpus, that the probe is fitted on


def watch(uri: str, run: Run, corpus: Corpus, learner: PretrainLearner, world: World, start: int) -> list[Hook]:
    """The hooks of a run; none where it has no test corpus.

    Args:
        uri: the run's folder.
        run: its settings.
        corpus: that is trained on.
        learner: whose networks are looked at.
        world: the ranks; all of them call the hooks together.
        start: steps done before; looks after it are taken out of the log, for they come again.
    """
    if run.monitor is None:
        return []
    settings, recipe = run.recipe.monitor, run.recipe
    test = Corpus.open(run.monitor)
    monitor = Monitor(
        test,
        corpus.classes,
        recipe.images,
        top=settings.top,
        weights=settings.weights,
        precision=recipe.precision,
        workers=run.threads,
    )
    log = StepLog(storage.join(uri, "monitor"), start + 1) if world.main else None

    def look(step: int) -> dict[str, float]:
        result = monitor(Pooled(learner.trunk), learner.head)
        values = {"map": result.value, "map_low": result.low, "map_high": result.high}
        if log:
            log.add(step, values)
            log.flush()
        return values

    def fit_probe(step: int) -> dict[str, float]:
        if not world.main:
            return {}
        targets = leaves(corpus)

        def features(of: Corpus, n: int) -> Features:
            return extract(
                learner.trunk, of, targets, recipe.images, n=n, precision=recipe.precision, device=world.device
            )

        train = features(corpus, min(run.n, PROBE_IMAGES))
        result = probe(train, features(test, test.rows), len(targets))
        return {"accuracy": result.accuracy, "accuracy_low": result.low, "accuracy_high": result.high}

    hooks = [Hook("monitor", settings.every or run.steps, look)]
    if settings.probe:
        hooks.append(Hook("probe", run.steps, fit_probe))
    return hooks
