"""Closing labels under their ancestors: the hierarchy's checks, the core against brute force, the step on a corpus."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.corpus import hierarchy, table
from tenfold.corpus.hierarchy import Hierarchy, close, close_labels
from tenfold.corpus.table import IMAGES, QUARANTINE, Classes, Corpus, commit, rank_of
from tenfold.errors import InputError

ANIMALS = Classes(
    ("animal", "pet", "dog", "cat", "vehicle", "car"),
    ("an animal", "a pet", "a dog", "a cat", "a vehicle", "a car"),
    ((), (0,), (1, 0), (1, 0), (), (4,)),
)


def corpus_of(folder: Path, rows: list[dict[str, float]], classes: Classes, facts: dict | None = None) -> Corpus:
    """A corpus whose rows have these labels (class name -> votes)."""
    ids = [f"{i:064x}" for i in range(len(rows))]
    ranks = rank_of(ids)
    order = np.argsort(ranks)
    sorted_rows = [sorted((classes.index(k), v) for k, v in rows[i].items()) for i in order]
    table = pa.table(
        {
            "id": [ids[i] for i in order],
            "rank": ranks[order],
            "image": [b"\x89PNG"] * len(rows),
            "width": [32] * len(rows),
            "height": [32] * len(rows),
            "labels": [[k for k, _ in row] for row in sorted_rows],
            "votes": [[v for _, v in row] for row in sorted_rows],
            "source": [f"s{i}" for i in order],
            "flags": [0] * len(rows),
        },
        schema=IMAGES,
    )
    lance.write_dataset(table, str(folder / "images.lance"), mode="create", max_rows_per_file=7)
    lance.write_dataset(QUARANTINE.empty_table(), str(folder / "quarantine.lance"), mode="create")
    return commit(
        str(folder), "ingested", classes=classes, recipe={}, inputs=[], facts={"salt": "tenfold", **(facts or {})}
    )


def rows_of(corpus: Corpus) -> dict[str, dict[str, float]]:
    """source -> class name -> votes."""
    names = corpus.classes.names
    table = corpus.images.to_table(columns=["source", "labels", "votes"]).to_pylist()
    return {r["source"]: {names[k]: v for k, v in zip(r["labels"], r["votes"], strict=True)} for r in table}


# The hierarchy and its checks


def test_lineage_depth_and_statistics() -> None:
    known = Hierarchy.of(ANIMALS)
    assert known.of_class(2).tolist() == [0, 1, 2]
    assert known.depth.tolist() == [0, 1, 2, 2, 0, 1]
    s = known.statistics
    assert (s.classes, s.edges, s.roots, s.leaves, s.several_parents) == (6, 6, 2, 3, 2)
    assert (s.depth, s.deepest, s.fan_out, s.widest) == (2, "dog", 3, "animal")
    assert s.mean_lineage == round((1 + 2 + 3 + 3 + 1 + 2) / 6, 3)


def test_a_cycle_is_printed_by_name_and_the_shortest_one_is_found() -> None:
    names = ("a", "b", "c", "d", "e")
    loop = Classes(names, names, ((1,), (2,), (3,), (4, 1), (0,)))  # a>b>c>d>e>a and b>c>d>b
    with pytest.raises(InputError, match=r"cycle of 3 classes: b -> c -> d -> b"):
        Hierarchy.of(loop)
    two = Classes(names, names, ((1,), (2,), (3, 1), (4,), (0,)))
    with pytest.raises(InputError, match=r"b -> c -> b"):
        Hierarchy.of(two)


def test_a_cycle_in_the_full_size_hierarchy_is_found() -> None:
    classes = hierarchy.jft_like()
    parents = list(classes.parents)
    parents[0] = (12,)  # the root under the deepest class of its chain
    with pytest.raises(InputError, match=r"cycle of \d+ classes: c00000 -> c00012 .*-> c00000 "):
        hierarchy.check(Classes(classes.names, classes.titles, tuple(parents)))


def test_self_parents_and_dangling_parents_are_named() -> None:
    with pytest.raises(InputError, match="'b' is its own parent"):
        Hierarchy.of(Classes(("a", "b"), ("a", "b"), ((), (1,))))
    with pytest.raises(InputError, match=r"'b' \(index 1\) has parent 7"):
        Hierarchy.of(Classes(("a", "b"), ("a", "b"), ((), (7,))))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 9).flatmap(lambda n: st.lists(st.sets(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n))
)
def test_cycles_found_are_shortest_against_brute_force(graph: list[set[int]]) -> None:
    parents = [tuple(sorted(p)) for p in graph]
    size = len(parents)
    edges = np.zeros((size, size), int)
    for child, up in enumerate(parents):
        edges[child, list(up)] = 1
    walk, shortest = edges.copy(), 0
    for length in range(1, size + 1):
        if np.trace(walk):
            shortest = length
            break
        walk = np.minimum(walk @ edges, 1)
    found = hierarchy.find_cycle(parents)
    assert len(found or []) == shortest
    if found:
        assert all(b in parents[a] for a, b in zip(found, found[1:] + found[:1], strict=True))


def test_jft_like_has_the_published_shape_and_closes() -> None:
    classes = hierarchy.jft_like()
    known = Hierarchy.of(classes)
    s = known.statistics
    assert (s.classes, s.depth, s.fan_out) == (18_291, 12, 2_876)  # D-03, D-05
    assert s.several_parents > 200
    assert hierarchy.jft_like() == classes
    random = np.random.default_rng(5)
    labels = random.integers(0, 18_291, 5_000).astype(np.int32)
    offsets, got, _ = close_labels(np.arange(5_001), labels, np.ones(5_000, np.float32), known)
    for row in range(0, 5_000, 97):
        want, queue = set(), [int(labels[row])]
        while queue:
            if (node := queue.pop()) not in want:
                want.add(node)
                queue.extend(classes.parents[node])
        assert got[offsets[row] : offsets[row + 1]].tolist() == sorted(want)


# The core against brute force


@st.composite
def problems(draw: st.DrawFn) -> tuple[Classes, list[dict[int, float]]]:
    size = draw(st.integers(1, 12))
    parents = tuple(tuple(sorted(draw(st.sets(st.integers(0, max(i - 1, 0)), max_size=3)) - {i})) for i in range(size))
    names = tuple(f"c{i}" for i in range(size))
    votes = draw(st.sampled_from([st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([-1.0, 0.0, 0.5, 1.0])]))
    row = st.dictionaries(st.integers(0, size - 1), votes, max_size=5)
    return Classes(names, names, parents), draw(st.lists(row, max_size=12))


def brute_force(classes: Classes, row: dict[int, float], how: str) -> dict[int, float]:
    def above(c: int) -> set[int]:
        return {c}.union(*(above(p) for p in classes.parents[c]))

    closed: dict[int, list[float]] = {}
    for label, vote in row.items():
        for ancestor in above(label):
            closed.setdefault(ancestor, []).append(vote)
    return {c: sum(v) if how == "sum" else max(v) for c, v in sorted(closed.items())}


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(["sum", "max"]), st.integers(1, 5), st.integers(0, 3))
def test_closing_equals_brute_force(
    problem: tuple[Classes, list[dict[int, float]]], how: str, chunk: int, skip: int
) -> None:
    classes, rows = problem
    rows = [dict(sorted(row.items())) for row in rows]
    flat = [item for row in rows for item in row.items()]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    labels = np.array([k for k, _ in flat], np.int32)
    votes = np.array([v for _, v in flat], np.float32)
    skip = min(skip, len(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hierarchy, "CHUNK", chunk)
        ends, got, got_votes = close_labels(offsets[skip:], labels, votes, Hierarchy.of(classes), how)
    assert len(ends) == len(rows) - skip + 1
    assert (got.dtype, got_votes.dtype, ends.dtype) == (np.int32, np.float32, np.int64)
    for i, row in enumerate(rows[skip:]):
        part = slice(ends[i], ends[i + 1])
        assert list(zip(got[part].tolist(), got_votes[part].tolist(), strict=True)) == list(
            brute_force(classes, row, how).items()
        )


def test_both_ways_to_close_agree_at_size() -> None:
    known = Hierarchy.of(hierarchy.jft_like(1))
    random = np.random.default_rng(2)
    offsets = np.concatenate([[0], np.cumsum(random.integers(0, 6, 20_000))])
    row = np.repeat(np.arange(20_000), np.diff(offsets))
    labels = ((random.integers(0, 18_291, 20_000)[row] + np.arange(len(row)) * 37) % 18_291).astype(np.int32)
    votes = random.integers(1, 4, len(labels)).astype(np.float32)
    fast = close_labels(offsets, labels, votes, known)
    slow = hierarchy._close_by_sorting(offsets, labels, votes, known, "sum")
    assert np.array_equal(fast[0][1:], slow[0])
    assert np.array_equal(fast[1], slow[1])
    assert np.array_equal(fast[2], slow[2])


def test_a_label_that_is_no_class_names_its_row() -> None:
    with pytest.raises(InputError, match="row 1 has a label"):
        close_labels(np.array([0, 1, 2]), np.array([0, 6], np.int32), np.ones(2, np.float32), Hierarchy.of(ANIMALS))


# The step on a corpus

ROWS: list[dict[str, float]] = [
    {"cat": 2, "dog": 1},  # three people: all of them saw an animal
    {"animal": 1, "dog": 2},  # one was cautious
    {"car": 3},
    {},
    {"animal": 3},
] * 5


def test_people_are_counted_once(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", ROWS, ANIMALS)
    closed, result = close(corpus)
    rows = rows_of(closed)
    assert rows["s0"] == {"animal": 3, "pet": 3, "dog": 1, "cat": 2}
    assert rows["s1"] == {"animal": 3, "pet": 2, "dog": 2}
    assert rows["s2"] == {"vehicle": 3, "car": 3}
    assert rows["s3"] == {}
    assert result.changed
    assert (result.images, result.labels_before, result.labels_after) == (25, 30, 50)
    assert result.per_class["animal"] == (10, 15)
    assert result.per_class["pet"] == (0, 10)
    assert closed.tag == "closed"
    assert closed.manifest.inputs == [corpus.digest]
    assert {field.name: field for field in closed.images.schema} == {field.name: field for field in IMAGES}


def test_max_takes_the_largest_vote(tmp_path: Path) -> None:
    closed, _ = close(corpus_of(tmp_path / "c", ROWS, ANIMALS), votes="max")
    assert rows_of(closed)["s0"] == {"animal": 2, "pet": 2, "dog": 1, "cat": 2}


def test_closing_twice_changes_nothing(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", ROWS, ANIMALS)
    closed, first = close(corpus)
    version = closed.images.latest_version
    again, second = close(Corpus.open(str(tmp_path / "c")))
    assert (again.digest, second.changed) == (closed.digest, False)
    assert second == first.model_copy(update={"changed": False})
    from_start, third = close(Corpus.open(f"{tmp_path / 'c'}@ingested"))  # the same step, done before
    assert (from_start.digest, third.changed) == (closed.digest, False)
    assert Corpus.open(str(tmp_path / "c")).images.latest_version == version


def test_a_later_state_stays_closed(tmp_path: Path) -> None:
    closed, _ = close(corpus_of(tmp_path / "c", ROWS, ANIMALS))
    flagged = closed.rewrite(
        "flagged", ["flags"], lambda b: pa.record_batch([pa.array(b["flags"].to_numpy() + 1)], names=["flags"])
    )
    again, result = close(flagged)
    assert (again.digest, result.changed) == (flagged.digest, False)


def test_closing_in_another_way_is_refused_with_the_cure(tmp_path: Path) -> None:
    close(corpus_of(tmp_path / "c", ROWS, ANIMALS))
    with pytest.raises(InputError, match=r"closed already, with votes=sum\n.*close the state before it: .*@ingested"):
        close(Corpus.open(str(tmp_path / "c")), votes="max")
    closed, _ = close(Corpus.open(f"{tmp_path / 'c'}@ingested"), votes="max", tag="closed-max")
    assert rows_of(closed)["s0"]["animal"] == 2


def test_the_state_before_stays_readable(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", ROWS, ANIMALS)
    before = rows_of(corpus)
    close(corpus)
    assert rows_of(Corpus.open(f"{tmp_path / 'c'}@ingested")) == before


def test_a_flat_corpus_takes_a_hierarchy_from_outside(tmp_path: Path) -> None:
    flat = Classes.flat(["dog", "car", "odd"])
    corpus = corpus_of(tmp_path / "c", [{"dog": 1}, {"car": 1}, {"odd": 1}], flat)
    closed, result = close(corpus, hierarchy=ANIMALS)
    assert closed.classes.names == ("dog", "car", "odd", "animal", "pet", "vehicle")  # cat is not needed
    assert closed.classes.titles[3] == "an animal"
    assert rows_of(closed)["s0"] == {"dog": 1, "animal": 1, "pet": 1}
    assert result.per_class["odd"] == (1, 1)
    assert close(closed)[1].changed is False
    with pytest.raises(InputError, match="none of the 1 classes"):
        hierarchy.with_hierarchy(Classes.flat(["x"]), ANIMALS)


def test_a_state_cannot_be_closed_into_itself_or_beside_the_corpus(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", ROWS, ANIMALS)
    with pytest.raises(InputError, match="is the state that is to be closed"):
        close(corpus, tag="ingested")
    for tag in ("../x", "a/b", "", "..", "a b"):
        with pytest.raises(InputError, match="is no name for a state"):
            close(corpus, tag=tag)


def test_a_broken_hierarchy_writes_nothing(tmp_path: Path) -> None:
    loop = Classes(("a", "b"), ("a", "b"), ((1,), (0,)))
    corpus = corpus_of(tmp_path / "c", [{"a": 1}], loop)
    with pytest.raises(InputError, match="a -> b -> a"):
        close(corpus)
    assert Corpus.open(str(tmp_path / "c")).tag == "ingested"
    assert corpus.images.latest_version == corpus.images.version


@pytest.mark.parametrize("moment", ["drop_columns", "alter_columns", "commit"])
def test_an_interrupted_closing_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    corpus = corpus_of(tmp_path / "c", ROWS, ANIMALS)
    want, _ = close(corpus_of(tmp_path / "d", ROWS, ANIMALS))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((table, "commit") if moment == "commit" else (lance.LanceDataset, moment)), killed)
        with pytest.raises(KeyboardInterrupt):
            close(corpus)
    assert Corpus.open(str(tmp_path / "c")).tag == "ingested"
    closed, result = close(Corpus.open(str(tmp_path / "c")))
    assert (closed.digest, result.changed) == (want.digest, True)
