"""Subsets: nested, unbiased and stable by construction (D-12); copies and class subsets (D-13)."""

from __future__ import annotations

import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tenfold import manifest, storage
from tenfold.corpus import subset as module
from tenfold.corpus.hierarchy import Hierarchy, close
from tenfold.corpus.report import report
from tenfold.corpus.subset import keep_classes, read_names, select_classes, subset
from tenfold.corpus.table import IMAGES, QUARANTINE, Classes, Corpus, commit, rank_of
from tenfold.errors import InputError

CLASSES = Classes(
    ("thing", "animal", "cat", "dog", "car"), ("thing", "animal", "cat", "dog", "car"), ((), (0,), (1,), (1,), (0,))
)


def made(folder: str, photographs: list[Path], rows: int = 60) -> Corpus:
    """A corpus of real photographs, each with a cat, dog or car; every fifth has two of them, every seventh none."""
    ids = [f"{i:064x}" for i in range(rows)]
    ranks = rank_of(ids)
    labels = [[] if i % 7 == 6 else [2 + i % 3] if i % 5 else sorted({2, 3 + i % 2}) for i in range(rows)]
    order = np.argsort(ranks)
    pictures = [path.read_bytes() for path in photographs]
    table = pa.table(
        {
            "id": [ids[i] for i in order],
            "rank": ranks[order],
            "image": [pictures[i % 2] for i in order],
            "width": [640] * rows,
            "height": [427] * rows,
            "labels": [labels[i] for i in order],
            "votes": [[1.0 + i % 3] * len(labels[i]) for i in order],
            "source": [f"s{i}" for i in order],
            "flags": [i % 2 for i in order],
        },
        schema=IMAGES,
    )
    options = storage.lance_options(folder)
    lance.write_dataset(table, storage.join(folder, "images.lance"), max_rows_per_file=17, storage_options=options)
    lance.write_dataset(QUARANTINE.empty_table(), storage.join(folder, "quarantine.lance"), storage_options=options)
    return commit(folder, "ingested", classes=CLASSES, recipe={}, inputs=[], facts={"salt": "tenfold"})


# Properties of the order


def test_golden_ranks() -> None:
    """Values that may never change: a corpus made years ago has to give the same subsets."""
    ids = ["0" * 64, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
    assert rank_of(ids).tolist() == [14_883_038_853_453_459_061, 7_514_290_012_319_458_721]
    assert rank_of(ids, salt="other").tolist() == [13_572_031_269_631_733_687, 4_202_440_057_738_746_556]


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=2, max_size=60), st.randoms())
def test_order_is_stable_when_images_are_added(ids: set[str], random: object) -> None:
    everything = sorted(ids)
    some = everything[: len(everything) // 2 + 1]

    def ordered(names: list[str]) -> list[str]:
        return [names[i] for i in np.argsort(rank_of(names))]

    kept = set(some)
    assert [i for i in ordered(everything) if i in kept] == ordered(some)
    assert dict(zip(everything, rank_of(everything).tolist(), strict=True)) == {
        i: int(rank_of([i])[0]) for i in everything
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400), st.integers(1, 400))
def test_subsets_are_nested(seed: int, a: int, b: int) -> None:
    ids = [f"{seed}-{i}" for i in range(400)]
    order = [ids[i] for i in np.argsort(rank_of(ids))]
    small, large = sorted((a, b))
    assert set(order[:small]) <= set(order[:large])


def test_subsets_are_unbiased_against_random_sampling() -> None:
    """Over 120 prefixes of 1,000 from 10,000, label counts spread as in random sampling without replacement.

    The p-values of a chi-square test (10 classes of a long tail) and of a Kolmogorov-Smirnov test (an attribute that
    grows with the position in the source, the order in which files would be found) are uniform; so is the rank itself.
    """
    random = np.random.default_rng(11)
    rows, n, trials = 10_000, 1_000, 120
    weights = 1 / np.arange(1, 11)
    label = np.sort(random.choice(10, rows, p=weights / weights.sum()))  # classes lie together, as in a folder tree
    attribute = np.arange(rows)
    total = np.bincount(label, minlength=10)
    expected = total * n / rows
    spread = expected * (1 - n / rows)  # of sampling without replacement
    chi, smirnov = [], []
    ids = [f"image-{i:06d}" for i in range(rows)]  # neighbours in content order differ in one digit
    for salt in range(trials):
        ranks = rank_of(ids, salt=f"salt {salt}")
        chosen = np.argpartition(ranks, n)[:n]
        counts = np.bincount(label[chosen], minlength=10)
        # The multivariate hypergeometric's statistic has 9 degrees of freedom, scaled by (1 - n / N).
        chi.append(stats.chi2.sf(((counts - expected) ** 2 / expected).sum() * (rows - 1) / (rows - n), 9))
        smirnov.append(stats.kstest(attribute[chosen] / rows, "uniform").pvalue)
        if salt == 0:
            assert stats.kstest(ranks / 2.0**64, "uniform").pvalue > 0.001
            assert abs(stats.spearmanr(ranks, attribute).statistic) < 4 / np.sqrt(rows)
    assert spread.min() > 5
    assert stats.kstest(chi, "uniform").pvalue > 0.001
    assert stats.kstest(smirnov, "uniform").pvalue > 0.001


def test_first_rows_of_a_corpus_are_the_smallest_ranks(tmp_path: Path, photographs: list[Path]) -> None:
    corpus = made(str(tmp_path / "c"), photographs)
    ranks = np.concatenate([b["rank"].to_numpy() for b in corpus.batches(["rank"])])
    assert (np.diff(ranks.astype(float)) > 0).all()
    seen: list[str] = []
    for n in (1, 17, 18, 60):
        ids = [i for b in corpus.batches(["id"], n) for i in b["id"].to_pylist()]
        assert ids[: len(seen)] == seen
        assert len(ids) == n
        seen = ids


# Copies


def test_a_copy_is_the_prefix_as_a_corpus_of_its_own(tmp_path: Path, photographs: list[Path]) -> None:
    corpus = made(str(tmp_path / "c"), photographs)
    copy = subset(corpus, str(tmp_path / "d"), n=25)
    assert copy.images.to_table() == corpus.images.to_table(limit=25)
    assert copy.classes == corpus.classes
    assert (copy.rows, copy.manifest.inputs) == (25, [corpus.digest])
    assert copy.manifest.facts["subset_of"]["rows"] == 60
    assert copy.quarantine().num_rows == 0
    shutil.rmtree(tmp_path / "c")
    assert Corpus.open(str(tmp_path / "d")).images.count_rows() == 25  # it needs the first one no longer


def test_the_same_copy_is_returned_and_another_is_refused(tmp_path: Path, photographs: list[Path]) -> None:
    corpus = made(str(tmp_path / "c"), photographs)
    first = subset(corpus, str(tmp_path / "d"), n=25)
    assert subset(corpus, str(tmp_path / "d"), n=25).manifest == first.manifest
    with pytest.raises(InputError, match="holds another corpus already"):
        subset(corpus, str(tmp_path / "d"), n=26)
    with pytest.raises(InputError, match="holds another corpus already"):
        subset(corpus, str(tmp_path / "c"), n=26)
    with pytest.raises(InputError, match="no subset of 61"):
        subset(corpus, str(tmp_path / "e"), n=61)
    assert not (tmp_path / "e").exists()


def test_an_interrupted_copy_is_no_corpus_and_runs_again(tmp_path: Path, photographs: list[Path]) -> None:
    corpus = made(str(tmp_path / "c"), photographs)
    to = tmp_path / "d"
    to.mkdir()
    (to / "notes.txt").write_text("mine")

    def stop(amount: float, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(BaseException):  # noqa: B017, PT011 - Lance may wrap what the reader raises
        subset(corpus, str(to), n=25, advance=stop)
    with pytest.raises(InputError, match="no finished corpus"):
        Corpus.open(str(to))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            subset(corpus, str(to), n=25)  # all images are there, the manifest is not
    assert subset(corpus, str(to), n=25).rows == 25
    assert (to / "notes.txt").read_text() == "mine"


def test_a_copy_of_a_closed_state_stays_closed(tmp_path: Path, photographs: list[Path]) -> None:
    closed, _ = close(made(str(tmp_path / "c"), photographs))
    copy = subset(closed, str(tmp_path / "d"), n=30)
    assert close(copy)[1].changed is False
    with pytest.raises(InputError, match="take the subset anew from the state 'ingested'"):
        close(copy, votes="max")


def test_copies_on_s3(minio, photographs: list[Path]) -> None:  # type: ignore[no-untyped-def]
    corpus = made(minio.uri("c"), photographs)
    copy = subset(corpus, minio.uri("d"), n=20, classes=["cat", "dog"])
    assert copy.rows == 20
    assert Corpus.open(minio.uri("d")).digest == copy.digest
    assert subset(corpus, minio.uri("d"), n=20, classes=["cat", "dog"]).manifest == copy.manifest
    closed, _ = close(corpus)
    assert close(Corpus.open(minio.uri("c")))[0].digest == closed.digest
    page = report(closed, minio.uri("r.html"))
    assert manifest.digest_bytes(storage.read_bytes(page.html)) == page.digest
    assert manifest.Manifest.read(page.json_).inputs == [closed.digest]


# Class subsets


def test_a_class_subset_keeps_its_images_and_labels_in_order(tmp_path: Path, photographs: list[Path]) -> None:
    corpus = made(str(tmp_path / "c"), photographs)
    copy = subset(corpus, str(tmp_path / "d"), classes=["dog", "cat"])
    want = []
    for row in corpus.images.to_table().to_pylist():
        pairs = sorted(({3: 0, 2: 1}[k], v) for k, v in zip(row["labels"], row["votes"], strict=True) if k in (2, 3))
        if pairs:
            want.append({**row, "labels": [k for k, _ in pairs], "votes": [v for _, v in pairs]})
    assert copy.images.to_table().to_pylist() == want
    assert copy.classes == Classes.flat(["dog", "cat"])
    first = subset(corpus, str(tmp_path / "e"), classes=["dog", "cat"], n=9)
    assert first.images.to_table().to_pylist() == want[:9]
    with pytest.raises(InputError, match=f"has {len(want)} images with these classes, so no 60"):
        subset(corpus, str(tmp_path / "f"), classes=["dog", "cat"], n=60)


def test_a_class_subset_of_a_closed_corpus_stays_closed(tmp_path: Path, photographs: list[Path]) -> None:
    closed, _ = close(made(str(tmp_path / "c"), photographs))
    copy = subset(closed, str(tmp_path / "d"), classes=["cat", "thing", "dog"])
    assert copy.classes.parents == ((1,), (), (1,))  # animal is gone; thing is the nearest that is kept
    again, result = close(copy)
    assert (result.changed, again.digest) == (False, copy.digest)
    for labels in copy.images.to_table(columns=["labels"])["labels"].to_pylist():
        assert 1 in labels


def test_nearest_kept_ancestors() -> None:
    diamond = Classes(tuple("abcde"), tuple("ABCDE"), ((), (0,), (0,), (1, 2), (3, 0)))
    kept, index = select_classes(diamond, ["e", "a", "b"])
    assert kept == Classes(("e", "a", "b"), ("E", "A", "B"), ((2,), (), (1,)))
    assert index.tolist() == [1, 2, -1, -1, 0]
    assert Hierarchy.of(kept).statistics.depth == 2
    with pytest.raises(InputError, match="no class is named 'z'"):
        select_classes(diamond, ["z"])
    with pytest.raises(InputError, match="'a' is there twice"):
        select_classes(diamond, ["a", "a"])
    with pytest.raises(InputError, match="no class to keep"):
        select_classes(diamond, [])


def test_classes_are_found_by_name_or_title() -> None:
    classes = Classes(("n1", "n2", "n3", "crane"), ("crane", "crane", "dog", "a lift"), ((),) * 4)
    assert module.resolve(classes, ["dog", "n1", "crane"]) == ["n3", "n1", "crane"]  # a name goes before a title
    with pytest.raises(InputError, match=r"no class has the name or title 'dogs'\n.*did you mean dog\?"):
        module.resolve(classes, ["dogs"])
    twice = Classes(("n1", "n2"), ("crane", "crane"), ((), ()))
    with pytest.raises(InputError, match=r"title of 2 classes\n.*n1, n2"):
        module.resolve(twice, ["crane"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5)), max_size=8), st.permutations(range(6)), st.integers(1, 6))
def test_keep_classes_equals_brute_force(rows: list[set[int]], order: list[int], kept: int) -> None:
    new_index = np.full(6, -1, np.int32)
    new_index[order[:kept]] = np.arange(kept)
    batch = pa.record_batch(
        {
            "labels": pa.array([sorted(r) for r in rows], pa.list_(pa.int32())),
            "votes": pa.array([[float(c) for c in sorted(r)] for r in rows], pa.list_(pa.float32())),
            "source": pa.array([str(i) for i in range(len(rows))], pa.string()),
        }
    )
    got = keep_classes(batch, new_index).to_pylist()
    want = []
    for i, row in enumerate(rows):
        pairs = sorted((int(new_index[c]), float(c)) for c in row if new_index[c] >= 0)
        if pairs:
            want.append({"labels": [p[0] for p in pairs], "votes": [p[1] for p in pairs], "source": str(i)})
    assert got == want


def test_class_names_are_read_from_text_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat  # a pet\n\ndog\n")
    (tmp_path / "b.json").write_text('["cat", {"name": "dog", "parents": []}]')
    (tmp_path / "c.json").write_text("[{]")
    assert read_names(str(tmp_path / "a.txt")) == read_names(str(tmp_path / "b.json")) == ["cat", "dog"]
    with pytest.raises(InputError, match="no list of class names"):
        read_names(str(tmp_path / "c.json"))
