"""The corpus table: states and tags, the digest, what is refused; on files and on MinIO."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import storage
from tenfold.corpus.table import CLASSES, IMAGES, QUARANTINE, Classes, Corpus, commit, dataset, digest_tables, rank_of
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest

if TYPE_CHECKING:
    from tests.conftest import MinioServer

THREE = Classes(("top", "a", "b"), ("Top", "A", "B"), ((), (0,), (0,)))


def images(count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    ids = sorted((f"{i:064x}" for i in range(count)), key=lambda i: int(rank_of([i])[0]))
    labels = [sorted(rng.choice(3, rng.integers(0, 3), replace=False).tolist()) for _ in ids]
    columns = [
        ids,
        rank_of(ids),
        [b"picture"] * count,
        rng.integers(1, 99, count),
        rng.integers(1, 99, count),
        labels,
        [[float(label + 1) for label in row] for row in labels],
        [f"file {i}" for i in ids],
        [0] * count,
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, IMAGES, strict=True)], schema=IMAGES)


def made(uri: str, count: int = 30) -> Corpus:
    options = storage.lance_options(uri)
    lance.write_dataset(images(count), f"{uri}/images.lance", max_rows_per_file=11, storage_options=options)
    lance.write_dataset(QUARANTINE.empty_table(), f"{uri}/quarantine.lance", storage_options=options)
    return commit(uri, "ingested", classes=THREE, recipe={"a": 1}, inputs=[], facts={"salt": "tenfold"})


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    votes = batch["votes"]
    twice = pa.ListArray.from_arrays(votes.offsets, pa.compute.multiply(votes.values, 2.0).cast(pa.float32()))
    return pa.RecordBatch.from_arrays([twice], ["votes"])


def states(uri: str) -> None:
    """What every corpus does, wherever it lies."""
    first = made(uri)
    assert (first.rows, first.tag, first.classes, first.quarantine().num_rows) == (30, "ingested", THREE, 0)
    before = first.images.to_table()
    assert before.select(IMAGES.names).cast(IMAGES) == images(30)
    second = first.rewrite("doubled", ["votes"], doubled, recipe={"times": 2}, inputs=["sha256:" + "1" * 64])
    assert second.manifest.inputs == [first.digest, "sha256:" + "1" * 64]
    assert second.manifest.facts["salt"] == "tenfold"
    third = second.rewrite("counted", ["labels"], counted, classes=Classes.flat(["top", "a", "b"]))
    assert Corpus.open(uri).tag == "counted"
    assert third.images.to_table(["number"])["number"].to_pylist() == [len(row) for row in before["labels"].to_pylist()]
    for tag, corpus in (("ingested", first), ("doubled", second), ("counted", third)):
        opened = Corpus.open(f"{uri}@{tag}")
        assert (opened.digest, opened.rows) == (corpus.digest, 30)
        assert opened.images.version == dataset(f"{uri}/images.lance").tags.list()[tag]["version"]
        assert digest_tables(opened.images, opened.classes)[0] == opened.digest
        assert Corpus.open(f"{uri}/manifests/{tag}.json") == corpus
    assert first.images.to_table() == before
    assert Corpus.open(f"{uri}@doubled").classes == THREE
    assert Corpus.open(uri).classes.parents == ((), (), ())
    votes = [2 * vote for row in before["votes"].to_pylist() for vote in row]
    assert [vote for row in second.images.to_table(["votes"])["votes"].to_pylist() for vote in row] == votes
    other = first.rewrite("other", ["votes"], doubled)  # a branch from the first state, not from the newest
    assert "number" not in other.images.schema.names
    assert other.digest == second.digest
    assert len({first.digest, second.digest, third.digest}) == 3


def counted(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([batch["labels"].value_lengths()], ["number"])


def test_states_on_files(tmp_path: Path) -> None:
    states(str(tmp_path / "me@work" / "c"))


def test_states_on_minio(minio: MinioServer) -> None:
    states(minio.uri("c"))


def test_a_corpus_can_be_moved_whole(tmp_path: Path) -> None:
    corpus = made(str(tmp_path / "c"))
    (tmp_path / "c").rename(tmp_path / "d")
    moved = Corpus.open(str(tmp_path / "d"))
    assert (moved.digest, moved.uri) == (corpus.digest, str(tmp_path / "d"))
    assert sum(batch.num_rows for batch in moved.batches(["image"])) == 30


def test_batches_are_the_first_rows_in_order(tmp_path: Path) -> None:
    corpus = made(str(tmp_path / "c"))
    ranks = images(30)["rank"].to_pylist()
    for n in (1, 11, 12, 30, None):
        found = [rank for batch in corpus.batches(["rank"], n, rows=4) for rank in batch["rank"].to_pylist()]
        assert found == ranks[:n]
    for n in (0, -1, 31):
        with pytest.raises(InputError, match="no subset"):
            list(corpus.batches(["rank"], n))


@given(
    st.integers(1, 40), st.lists(st.integers(1, 40), max_size=3), st.sampled_from(["labels", "votes", "flags", "width"])
)
@settings(max_examples=15, deadline=None)
def test_the_digest_is_of_content_not_of_storage(
    tmp_path_factory: pytest.TempPathFactory, count: int, cuts: list[int], column: str
) -> None:
    table = images(count)

    def digest(table: pa.Table, rows_a_file: int) -> str:
        uri = str(tmp_path_factory.mktemp("t") / "images.lance")
        return digest_tables(lance.write_dataset(table, uri, max_rows_per_file=rows_a_file), THREE)[0]

    digests = {digest(table, rows) for rows in (100, *cuts)}
    assert len(digests) == 1
    values = table[column].to_pylist()
    values[count // 2] = [2.5] if column == "votes" else [7] if column == "labels" else 77 + values[count // 2]
    if column in ("labels", "votes"):
        other = "votes" if column == "labels" else "labels"
        paired = table[other].to_pylist()
        paired[count // 2] = [1]
        table = table.set_column(
            IMAGES.get_field_index(other), IMAGES.field(other), pa.array(paired, IMAGES.field(other).type)
        )
    changed = table.set_column(
        IMAGES.get_field_index(column), IMAGES.field(column), pa.array(values, IMAGES.field(column).type)
    )
    assert digest(changed, 100) not in digests


def test_classes() -> None:
    assert Classes.from_arrow(THREE.to_arrow().take([2, 0, 1])) == THREE
    assert THREE.to_arrow().schema == CLASSES
    assert THREE.index("b") == 2
    with pytest.raises(InputError, match="no class is named 'c'"):
        THREE.index("c")


def test_what_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished corpus"):
        Corpus.open(str(tmp_path))
    made(str(tmp_path / "c"))
    with pytest.raises(InputError, match="no state 'closed'") as caught:
        Corpus.open(f"{tmp_path}/c@closed")
    assert "ingested" in caught.value.cure
    Manifest(kind="report", uri="x", digest="sha256:" + "0" * 64).write(str(tmp_path / "r.json"))
    with pytest.raises(InputError, match="is a report, not a corpus"):
        Corpus.open(str(tmp_path / "r.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="not a Tenfold manifest"):
        Corpus.open(str(tmp_path / "bad.json"))
    with pytest.raises(StorageError):
        dataset(str(tmp_path / "none.lance"))


def test_reading_the_schema_loads_no_lance() -> None:
    """Ingest's workers hold the schema, not Lance: a second and 80 MB each."""
    code = "import sys, tenfold.corpus.worker; print('lance' in sys.modules, 'pandas' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )
