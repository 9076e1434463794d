"""The monitor and the linear probe: on planted data they find what was planted, and no more."""

import io
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rank_processes import run_ranks
from sklearn.linear_model import LogisticRegression

from tenfold.corpus.table import DEFAULT_SALT, IMAGES, Classes, Corpus, commit, rank_of
from tenfold.engine.batches import LabelledImages
from tenfold.engine.distributed import join, leave
from tenfold.engine.images import PadTransform
from tenfold.engine.ordered import in_order
from tenfold.errors import InputError
from tenfold.metrics.average_precision import MeanAveragePrecision
from tenfold.nets.trunk import Trunk, TrunkConfig, normalise
from tenfold.pretrain.head import HeadConfig, ShardedHead
from tenfold.pretrain.monitor import Monitor, Pooled, map_labels
from tenfold.pretrain.probe import Features, extract, fit, leaves, probe, single_targets

TREE = Classes(("red", "green", "blue", "colour"), ("red", "green", "blue", "colour"), ((3,), (3,), (3,), ()))


def coloured(where: Path, rows: int, seed: int, classes: Classes = TREE) -> Corpus:
    """Noisy images in one of three colours; the label is the colour, closed under its parent."""
    rng = np.random.default_rng(seed)
    ids = [f"{seed:032x}{i:032x}" for i in range(rows)]
    order = np.argsort(rank_of(ids))
    columns: dict[str, list[object]] = {name: [] for name in IMAGES.names}
    for i in order:
        colour = int(rng.integers(3))
        pixels = rng.integers(0, 150, (32, 32, 3), dtype=np.uint8)
        pixels[..., colour] += 100
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        row = (ids[i], rank_of([ids[i]])[0], buffer.getvalue(), 32, 32, [colour, 3], [2.0, 2.0], f"{i}.png", 0)
        for name, value in zip(IMAGES.names, row, strict=True):
            columns[name].append(value)
    lance.write_dataset(pa.table(columns, schema=IMAGES), str(where / "images.lance"), schema=IMAGES)
    return commit(str(where), "closed", classes=classes, recipe={}, inputs=[], facts={"salt": DEFAULT_SALT})


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return coloured(tmp_path_factory.mktemp("test"), 130, 1)


def small_trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk(TrunkConfig(name="small"))


def test_in_order_gives_every_row_once_at_any_world_size(test_set: Corpus) -> None:
    form = LabelledImages(PadTransform(random=False))
    expected = [i for b in test_set.batches(["id"]) for i in b["id"].to_pylist()]
    assert [i for b in in_order(test_set.images, form, batch=32) for i in b.ids] == expected
    shares = [[b.ids for b in in_order(test_set.images, form, batch=32, rank=r, world=3)] for r in range(3)]
    assert sorted(i for share in shares for ids in share for i in ids) == sorted(expected)


def test_in_order_names_the_row_that_cannot_be_used(tmp_path: Path) -> None:
    corpus = coloured(tmp_path, 20, 2)
    table = corpus.images.to_table().to_pylist()
    table[13]["image"] = b"\x89PNG damaged"
    lance.write_dataset(pa.Table.from_pylist(table, schema=IMAGES), str(tmp_path / "damaged.lance"), schema=IMAGES)
    with pytest.raises(InputError, match="row 13 "):
        list(in_order(lance.dataset(str(tmp_path / "damaged.lance")), LabelledImages(PadTransform()), batch=8))


def test_monitor_equals_scoring_everything_at_once(test_set: Corpus) -> None:
    trunk, head = small_trunk(), ShardedHead(Trunk(TrunkConfig(name="small")).out_channels, 4, HeadConfig())
    result = Monitor(test_set, TREE, PadTransform(), top=2, batch=48, precision="fp32")(Pooled(trunk), head)
    trunk.eval()
    (batch,) = in_order(test_set.images, LabelledImages(PadTransform(random=False)), batch=200)
    with torch.no_grad():
        scores = head.logits(trunk.pooled(normalise(batch.images)))
    expected = MeanAveragePrecision.empty(4, 2).update(scores, batch.offsets, batch.labels).compute()
    np.testing.assert_allclose(result.per_class, expected.per_class, atol=1e-6)
    assert result.low <= result.value <= result.high
    assert result.images == 130


def test_monitor_matches_classes_by_name(test_set: Corpus, tmp_path: Path) -> None:
    reordered = Classes(("colour", "blue", "grey", "red"), ("c", "b", "g", "r"), ((), (0,), (0,), (0,)))
    monitor = Monitor(test_set, reordered, PadTransform())
    assert monitor.mapping.tolist() == [3, -1, 1, 0]
    offsets, labels = map_labels(torch.tensor([0, 2, 4]), torch.tensor([0, 3, 1, 3]), monitor.mapping)
    assert (offsets.tolist(), labels.tolist()) == ([0, 2, 3], [3, 0, 0])
    with pytest.raises(InputError, match="no class of the test set"):
        Monitor(test_set, Classes.flat(["ship"]), PadTransform())


def monitor_rank(uri: str, out: str) -> None:
    """One rank: the monitor of a head whose weights are a function of the seed; the last rank writes what it got."""
    world = join("cpu")
    corpus = Corpus.open(uri)
    trunk = small_trunk()
    head = ShardedHead(trunk.out_channels, 4, HeadConfig(), rank=world.rank, world=world.size, seed=5)
    result = Monitor(corpus, corpus.classes, PadTransform(), top=3, batch=48, precision="fp32")(Pooled(trunk), head)
    if world.rank == world.size - 1:
        Path(out).write_text(f"{result.value:.9f} {result.low:.9f} {result.high:.9f} {result.images}")
    leave()


def test_monitor_is_the_same_over_ranks(test_set: Corpus, tmp_path: Path) -> None:
    said = []
    for world in (1, 2, 3):
        run_ranks(world, tmp_path, monitor_rank, test_set.uri, str(tmp_path / f"{world}.txt"))
        said.append((tmp_path / f"{world}.txt").read_text())
    assert said[0] == said[1] == said[2]
    assert said[0].endswith(" 130")


def test_probe_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 6))
    targets = (values @ rng.normal(size=(6, 4)) + rng.gumbel(size=(300, 4))).argmax(1)
    ours = fit(torch.tensor(values), torch.tensor(targets), 4, penalty=0.01, steps=1000)
    theirs = LogisticRegression(C=1 / (0.01 * 300), tol=1e-8, max_iter=5000).fit(values, targets)
    expected = theirs.predict_proba(values)
    np.testing.assert_allclose(ours(torch.tensor(values)).softmax(1).detach().numpy(), expected, atol=1e-3)


def test_probe_finds_planted_classes_and_nothing_in_noise(test_set: Corpus, tmp_path: Path) -> None:
    train = coloured(tmp_path, 200, 3)
    trunk = small_trunk()
    features = [extract(trunk, c, leaves(c), PadTransform(), precision="fp32") for c in (train, test_set)]
    found = probe(*features, classes=3)
    assert found.accuracy > 0.95  # mean colour is linear in the features of any trunk, random ones included
    assert found.low <= found.accuracy <= found.high
    shuffled = Features(features[0].values, features[0].targets[torch.randperm(200)], features[0].ids)
    assert probe(shuffled, features[1], classes=3).accuracy < 0.6


def test_targets_are_the_majority_and_ties_are_left_out() -> None:
    offsets = np.array([0, 3, 5, 6, 6])
    labels = np.array([0, 1, 3, 1, 2, 3])
    votes = np.array([2.0, 1.0, 3.0, 1.0, 1.0, 3.0])
    found = single_targets(offsets, labels, votes, np.array([0, 1, 2, -1]))
    assert found.tolist() == [0, -1, -1, -1]


def test_probe_says_when_nothing_is_usable() -> None:
    none = Features(torch.zeros(3, 2), torch.tensor([-1, -1, -1]), ["a", "b", "c"])
    some = Features(torch.zeros(3, 2), torch.tensor([0, 0, 0]), ["a", "b", "c"])
    with pytest.raises(InputError, match="training set has one of the 2 target classes"):
        probe(none, some, 2)
    with pytest.raises(InputError, match="same class"):
        probe(some, some, 2)
