"""`pretrain` as a call and as a verb: finished runs return at once, wrong input is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from small_corpus import make_corpus
from typer.testing import CliRunner

from tenfold.cli import app
from tenfold.corpus.table import Corpus
from tenfold.engine.checkpoint import latest
from tenfold.errors import InputError, InterruptedRun, TrainingError
from tenfold.launch.job import Outcome
from tenfold.launch.pretrain import pretrain
from tenfold.pretrain.folder import hold
from tenfold.pretrain.run import pretrain_rank
from tenfold.recipes.overrides import override
from tenfold.recipes.pretrain import recipe as named


class InProcess:
    """A launcher whose one rank is this process."""

    def __init__(self) -> None:
        self.starts = 0

    def start(self, command: Sequence[str], env: Mapping[str, str], ranks: int) -> InProcess:
        self.starts += 1
        self.uri = command[-1]
        return self

    def follow(self, write: Callable[[str], None]) -> Outcome:
        pretrain_rank(self.uri, device="cpu")
        return Outcome()

    def cancel(self) -> None:
        raise AssertionError("nobody cancels here")


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(str(tmp_path_factory.mktemp("corpus")), 120)


def settings(*more: str) -> list[str]:
    return ["batch=20", 'length={"steps": 6, "images_per_step": 20}', "checkpoint.every=4", "trunk.width=0.5", *more]


def test_a_finished_run_returns_at_once(corpus: Corpus, tmp_path: Path) -> None:
    recipe, launcher = override(named("cifar10n"), settings()), InProcess()
    out = str(tmp_path / "run")
    first = pretrain(recipe, corpus.uri, out, launcher=launcher, n=100, threads=1)
    assert (first.steps, first.images, first.epochs, first.trained, first.resumed) == (6, 120, 1.2, True, False)
    again = pretrain(recipe, corpus.uri, out, launcher=launcher, n=100)
    assert (again.trained, again.resumed, again.digest) == (False, True, first.digest)
    assert launcher.starts == 1
    over = pretrain(recipe, corpus.uri, out, launcher=launcher, n=100, threads=1, fresh=True)
    assert (over.trained, over.resumed, over.digest) == (True, False, first.digest)
    with hold(out), pytest.raises(InputError, match="is being trained by another process"):
        pretrain(recipe, corpus.uri, out, launcher=launcher, n=100, fresh=True)
    longer = override(recipe, ["length.steps=7"])
    with pytest.raises(InputError, match=r"recipe\.length\.steps: 6 there, 7 asked"):
        pretrain(longer, corpus.uri, out, launcher=launcher, n=100)


def test_a_run_starts_from_another(corpus: Corpus, tmp_path: Path) -> None:
    recipe = override(named("cifar10n"), settings())
    first = pretrain(recipe, corpus.uri, str(tmp_path / "a"), launcher=InProcess(), threads=1)
    onward = override(recipe, [f'init={{"kind": "checkpoint", "uri": "{tmp_path / "a"}"}}'])
    second = pretrain(onward, corpus.uri, str(tmp_path / "b"), launcher=InProcess(), threads=1)
    newest = latest(str(tmp_path / "b" / "checkpoints"))
    assert newest is not None
    assert newest.manifest.inputs == [corpus.digest, first.digest]
    assert second.loss != first.loss
    assert json.loads((tmp_path / "b" / "run.json").read_text())["init_digest"] == first.digest


def test_ranks_that_end_too_early_are_noticed(corpus: Corpus, tmp_path: Path) -> None:
    class Lazy(InProcess):
        def follow(self, write: Callable[[str], None]) -> Outcome:
            return Outcome()

    with pytest.raises(TrainingError, match="is not finished"):
        pretrain(override(named("cifar10n"), settings()), corpus.uri, str(tmp_path / "run"), launcher=Lazy())


def test_a_cancelled_job_is_an_interruption(corpus: Corpus, tmp_path: Path) -> None:
    class Cancelled(InProcess):
        def follow(self, write: Callable[[str], None]) -> Outcome:
            return Outcome(cancelled=True)

    with pytest.raises(InterruptedRun) as caught:
        pretrain(override(named("cifar10n"), settings()), corpus.uri, str(tmp_path / "run"), launcher=Cancelled())
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_recipe"], "there is no pretraining recipe 'no_such_recipe'"),
        (["cifar10n", "--steps", "3", "--epochs", "1"], "--steps and --epochs give two lengths"),
        (["cifar10n", "--set", "optimiser.lr=1"], "no field 'optimiser'"),
        (["cifar10n", "--n", "5000"], "so no subset of 5,000"),
        (["cifar10n", "--n", "100"], "fewer than a global batch of 256"),
        (["cifar10n", "--set", "batch=20", "--ranks", "3"], "cannot be shared equally by 3 ranks"),
        (["cifar10n", "--init", "/nowhere"], "/nowhere holds no finished checkpoint"),
    ],
)
def test_wrong_input_is_refused_in_words(corpus: Corpus, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(
        app, ["pretrain", *arguments, "--corpus", corpus.uri, "--out", str(tmp_path / "run"), "--json"]
    )
    assert isinstance(result.exception, InputError)
    assert said in result.exception.message
    assert result.exception.cure
    assert not (tmp_path / "run").exists()
