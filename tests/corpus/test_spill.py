"""Sorted runs and their gathering: an external sort that unites repeats, against a plain sort."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.corpus import spill
from tenfold.corpus.spill import WHOLE, OpenRun, Row, finish, gather, merge_runs, read_run, unite, write_run
from tenfold.corpus.table import IMAGES, Flags, rank_of

CLASSES = {name: i for i, name in enumerate("abcdefgh")}


def rows_of(seed: int, count: int, distinct: int) -> list[Row]:
    """Rows among which content repeats, each time under another name and with labels of its own."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        content = rng.randrange(distinct)
        labels = rng.sample("abcdefgh", rng.randrange(4))
        votes = [float(rng.randrange(1, 4)) for _ in labels]
        image = bytes([content % 256]) * (1 + content * 37 % 500)
        rows.append(Row(f"{content:064x}", image, content + 1, 2, labels, votes, f"{rng.randrange(9)}/{i}", 0))
    return rows


def by_hand(rows: list[Row]) -> list[dict[str, object]]:
    """What should come out, the slow and plain way."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.id, []).append(row)
    expected = []
    for name, same in found.items():
        votes = {
            CLASSES[label]: max(r.votes[r.labels.index(label)] for r in same if label in r.labels)
            for label in {label for r in same for label in r.labels}
        }
        expected.append(
            {
                "id": name,
                "rank": int(rank_of([name])[0]),
                "image": same[0].image,
                "width": same[0].width,
                "height": 2,
                "labels": sorted(votes),
                "votes": [votes[label] for label in sorted(votes)],
                "source": min(r.source for r in same),
                "flags": int(Flags.REPEATED) if len({r.source for r in same}) > 1 else 0,
            }
        )
    return sorted(expected, key=lambda row: (row["rank"], row["id"]))


@given(
    seed=st.integers(0, 999),
    count=st.integers(0, 60),
    distinct=st.integers(1, 80),
    pieces=st.integers(1, 5),
    buckets=st.integers(1, 7),
    block=st.sampled_from([1, 300, 1 << 20]),
    merge=st.sampled_from([0, 1000, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_equals_a_plain_sort(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    distinct: int,
    pieces: int,
    buckets: int,
    block: int,
    merge: int,
) -> None:
    folder = str(tmp_path_factory.mktemp("runs"))
    rows = rows_of(seed, count, distinct)
    runs = [write_run(folder, f"{i}", rows[i::pieces], "tenfold", block) for i in range(pieces) if rows[i::pieces]]
    if merge and len(runs) > 1:
        runs = [runs[0], merge_runs(folder, "merged", runs[1:], size=merge, block=block)]
        assert merge_runs(folder, "merged", [], size=merge, block=block) == runs[1]  # done once is done
    opened = [OpenRun.load(folder, run) for run in runs]
    bounds = [WHOLE * i // buckets for i in range(buckets + 1)]
    found, files = [], 0
    for low, high in itertools.pairwise(bounds):
        table = gather(folder, opened, low, high)
        files += sum(table["names"].to_pylist())
        batches = list(finish(table, CLASSES, rows=7))
        assert all(batch.schema.equals(IMAGES) for batch in batches)
        assert all(low <= rank < high for batch in batches for rank in batch["rank"].to_pylist())
        found += [row for batch in batches for row in batch.to_pylist()]
    assert found == by_hand(rows)
    assert files == count


def test_a_million_copies_cost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = bytes(1 << 20)
    runs = []
    for i in range(20):
        row = Row("0" * 64, image, 1, 1, ["a"], [1.0], f"{i:02d}", 0)
        runs.append(write_run(str(tmp_path), str(i), [row, row._replace(source=f"{i:02d}x")], "tenfold"))
    assert [run.rows for run in runs] == [1] * 20
    table = gather(str(tmp_path), [OpenRun.load(str(tmp_path), run) for run in runs], 0, WHOLE)
    assert table.nbytes < 2 << 20
    assert table.select(["names", "source", "flags"]).to_pylist() == [{"names": 40, "source": "00", "flags": 8}]


def test_a_bucket_reads_one_stretch_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(f"{i:064x}", bytes(1000), 1, 1, [], [], str(i), 0) for i in range(1000)]
    run = OpenRun.load(str(tmp_path), write_run(str(tmp_path), "run", rows, "tenfold", block=4000))
    reads = []
    original = spill.read_range
    monkeypatch.setattr(spill, "read_range", lambda uri, *span: reads.append(span) or original(uri, *span))
    low, high = WHOLE // 10, WHOLE // 5
    found = [rank for batch in read_run(str(tmp_path), run, low, high) for rank in batch["rank"].to_pylist()]
    ranks = np.sort(rank_of([row.id for row in rows]))
    assert found == [rank for rank in ranks.tolist() if low <= rank < high]
    assert len(reads) == 1
    assert reads[0][1] - reads[0][0] < 0.2 * run.offsets[-1]


def test_uniting_has_no_order() -> None:
    rows = [Row("x", b"", 1, 1, list(labels), [v] * len(labels), source, 2) for labels, v, source in
            (("ab", 1.0, "n"), ("bc", 3.0, "m"), ("a", 2.0, "n"))]  # fmt: skip
    ways = [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]]
    united = [unite(unite(rows[a], rows[b]), rows[c]) for a, b, c in ways]
    assert {(r.source, r.flags, r.names, tuple(sorted(zip(r.labels, r.votes, strict=True)))) for r in united} >= {
        ("m", 10, 2, (("a", 2.0), ("b", 3.0), ("c", 3.0)))
    }
    assert len({(r.source, r.flags, tuple(sorted(zip(r.labels, r.votes, strict=True)))) for r in united}) == 1


def test_one_file_in_two_rows_is_no_repeat() -> None:
    row = Row("x", b"", 1, 1, ["a"], [1.0], "file", 0)
    assert unite(row, row._replace(labels=["b"])) == row._replace(labels=["a", "b"], votes=[1.0, 1.0])
