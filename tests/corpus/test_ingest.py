"""`tenfold corpus ingest` from every kind of input, on files and on MinIO; what it refuses, and what it says."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import official_folders
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tenfold import storage
from tenfold.cli import app
from tenfold.corpus import inputs, ordering, sources
from tenfold.corpus.ingest import IngestReport, ingest
from tenfold.corpus.inputs import IngestConfig, Tally, class_list, recognise, walk
from tenfold.corpus.pictures import PictureConfig
from tenfold.corpus.sources.base import RECORDS, classes_json
from tenfold.corpus.sources.spec import Advance
from tenfold.corpus.table import Classes, Corpus, Flags, rank_of
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest, digest_bytes

if TYPE_CHECKING:
    from tests.conftest import MinioServer


def picture(seed: int, form: str = "PNG") -> bytes:
    """A small picture of its own for each seed."""
    stored = io.BytesIO()
    grid = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(grid).resize((16, 12), Image.Resampling.BILINEAR).save(stored, form)
    return stored.getvalue()


def tree(root: Path, count: int = 60, seed: int = 0) -> Path:
    """A folder as people have them: nested classes, litter, damage, copies; written in an order that `seed` decides."""
    files = {
        f"{('cat', 'dog/big', 'dog/small', 'Ö/ü')[i % 4]}/{i}.{'png' if i % 3 else 'jpg'}": i for i in range(count)
    }
    content = {name: picture(i, "PNG" if name.endswith("png") else "JPEG") for name, i in files.items()}
    content |= {
        "cat/copy of 1.png": content["dog/big/1.png"],
        "dog/big/again.png": content["dog/big/1.png"],
        "cat/empty.jpg": b"",
        "cat/cut.jpg": content["cat/0.jpg"][:-20],
        "dog/page.jpg": b"<!DOCTYPE html><html>404</html>",
        "README.md": b"# About these pictures\n",
        "stray.png": picture(999),
        ".hidden/secret.png": picture(998),
        "cat/.DS_Store": b"\0\0\0\1Bud1",
        "__MACOSX/cat/1.png": b"x",
    }
    names = sorted(content)
    random.Random(seed).shuffle(names)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content[name])
    return root


def rows(corpus: Corpus) -> list[dict[str, object]]:
    return [
        row
        for batch in corpus.batches(["id", "rank", "labels", "votes", "source", "flags"])
        for row in batch.to_pylist()
    ]


def labels_by_source(corpus: Corpus) -> dict[str, dict[str, float]]:
    names = corpus.classes.names
    return {
        r["source"]: {names[label]: vote for label, vote in zip(r["labels"], r["votes"], strict=True)}
        for r in rows(corpus)
    }


def quarantine(corpus: Corpus) -> dict[str, str]:
    return {row["file"]: row["reason"] for row in corpus.quarantine().to_pylist()}


def test_class_folders(tmp_path: Path) -> None:
    told: list[tuple[str, float | None, float, str]] = []

    @contextmanager
    def bars(description: str, total: float | None = None) -> Iterator[Advance]:
        yield lambda amount, note: told.append((description, total, amount, note))

    report = ingest(IngestConfig(input=str(tree(tmp_path / "in"))), str(tmp_path / "c"), workers=1, bars=bars)
    corpus = Corpus.open(str(tmp_path / "c"))
    assert (report.rows, report.files, report.repeats) == (60, 62, 2)
    assert (corpus.rows, corpus.tag, corpus.digest, report.existed) == (60, "ingested", report.digest, False)
    assert corpus.classes.names == ("cat", "dog", "dog/big", "dog/small", "Ö", "Ö/ü")
    assert corpus.classes.titles == ("cat", "dog", "big", "small", "Ö", "ü")
    assert corpus.classes.parents == ((), (), (1,), (1,), (), (4,))
    found = labels_by_source(corpus)
    assert found["cat/copy of 1.png"] == {"cat": 1.0, "dog/big": 1.0}  # the first name in order stands for all three
    assert found["dog/small/2.png"] == {"dog/small": 1.0}
    assert quarantine(corpus) == {
        "cat/empty.jpg": "empty",
        "cat/cut.jpg": "truncated",
        "dog/page.jpg": "foreign",
        "README.md": "foreign",
        "stray.png": "unlabelled",
    }
    assert report.quarantined == {"foreign": 2, "empty": 1, "truncated": 1, "unlabelled": 1}
    table = rows(corpus)
    ids = [r["id"] for r in table]
    assert [r["rank"] for r in table] == sorted(rank_of(ids).tolist())
    assert digest_bytes((tmp_path / "in/dog/small/2.png").read_bytes()).removeprefix("sha256:") in ids
    assert [r["source"] for r in table if r["flags"] & Flags.REPEATED] == ["cat/copy of 1.png"]
    assert not (tmp_path / "c" / ".ingest").exists()
    reading = [t for t in told if t[0] == "reading"]
    assert {t[1] for t in reading} == {67}
    assert sum(t[2] for t in reading) == 67
    assert reading[-1][3].endswith("/s, 5 quarantined")


def test_the_corpus_depends_on_nothing_but_input_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ingest(IngestConfig(input=str(tree(tmp_path / "one"))), str(tmp_path / "c1"), workers=1)
    monkeypatch.setattr(inputs, "FIRST", 5)
    monkeypatch.setattr(ordering, "LEAST", 3000)
    monkeypatch.setattr(ordering, "MOST", 4000)
    second = ingest(IngestConfig(input=str(tree(tmp_path / "two", seed=7))), str(tmp_path / "c2"), workers=2)
    one, two = Corpus.open(first.uri), Corpus.open(second.uri)
    assert second.digest == first.digest
    assert len(two.images.get_fragments()) > 4 > len(one.images.get_fragments())
    assert rows(one) == rows(two)
    assert one.images.to_table(["image"]) == two.images.to_table(["image"])
    other = ingest(IngestConfig(input=str(tmp_path / "one"), salt="x"), str(tmp_path / "c3"), workers=1)
    assert other.digest != first.digest


def test_labels_file_with_classes(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.png").write_bytes(picture(i))
    labels = tmp_path / "in" / "labels.csv"
    labels.write_text(
        "file,labels,votes\n0.png,cat|dog,2|1\n1.png,cat,1\ngone.png,cat,1\n2.png,,\n0.png,cat,3\n3.png,animal,1\n"
    )
    classes = Classes(("animal", "dog", "cat"), ("Animal", "Dog", "Cat"), ((), (0,), (0,)))
    (tmp_path / "classes.json").write_bytes(classes_json(classes))
    arguments = ["corpus", "ingest", str(tmp_path / "in"), "--to", str(tmp_path / "c"), "--labels", str(labels)]
    arguments += ["--classes", str(tmp_path / "classes.json"), "--separator", "|", "--workers", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    report = IngestReport.model_validate_json(result.stdout)
    corpus = Corpus.open(str(tmp_path / "c"))
    assert (report.rows, report.missing, report.unlisted, report.quarantined, report.repeats) == (4, 1, 2, {}, 0)
    assert corpus.classes == classes
    assert labels_by_source(corpus) == {
        "0.png": {"cat": 3.0, "dog": 1.0},
        "1.png": {"cat": 1.0},
        "2.png": {},
        "3.png": {"animal": 1.0},
    }
    assert quarantine(corpus) == {"gone.png": "missing"}
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout  # nothing to do, and it says so
    assert "complete already: 4 images" in shown
    assert "1 rows of the labels file have no image" in shown
    assert "2 files of the folder have no row" in shown


def test_shards(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "in" / f"s{shard}.tar", "w") as archive:
            for i in range(5):
                for name, data in ((f"{i}.png", picture(10 * shard + i)), (f"{i}.cls", str(i * 5).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    ingest(IngestConfig(input=str(tmp_path / "in")), str(tmp_path / "c"), workers=1)
    corpus = Corpus.open(str(tmp_path / "c"))
    assert corpus.classes.names == ("0", "5", "10", "15", "20")  # as numbers, not as words
    assert labels_by_source(corpus)["s1.tar/2.png"] == {"10": 1.0}
    assert corpus.rows == 10


def fetched(root: Path, count: int) -> Path:
    """A source as `tenfold fetch cifar10n` leaves it."""
    classes = Classes(("b", "a", "top"), ("B", "A", "Top"), ((2,), (2,), ()))
    for split, first in (("train", 0), ("test", 1000)):
        (root / split).mkdir(parents=True)
        columns = {
            "file": [f"{split}/{i}.png" for i in range(count)],
            "image": [picture(first + i) for i in range(count)],
            "labels": [["a", "b"] if i % 2 else ["a"] for i in range(count)],
            "votes": [[2.0, 1.0] if i % 2 else [3.0] for i in range(count)],
        }
        pq.write_table(pa.table(columns, schema=RECORDS), root / split / "part-1.parquet", row_group_size=40)
    (root / "classes.json").write_bytes(classes_json(classes))
    facts = {"name": "cifar10n", "splits": {"train": count, "test": count}}
    Manifest(kind="source", uri=str(root), digest="sha256:" + "5" * 64, facts=facts).write(str(root / "source.json"))
    return root


def test_fetched_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PARQUET_ROWS", 80)
    source = fetched(tmp_path / "cifar10n", 200)
    assert [len(part["groups"]) for part in recognise(IngestConfig(input=str(source))).parts(Tally())] == [2, 2, 1]
    ingest(IngestConfig(input=str(source)), str(tmp_path / "c"), workers=1)
    corpus = Corpus.open(str(tmp_path / "c"))
    assert corpus.rows == 200
    assert corpus.classes.names == ("b", "a", "top")
    assert corpus.manifest.inputs == ["sha256:" + "5" * 64]
    assert labels_by_source(corpus)["train/3.png"] == {"a": 2.0, "b": 1.0}
    assert all(name.startswith("train/") for name in labels_by_source(corpus))
    with pytest.raises(InputError, match="no split 'val'"):
        ingest(IngestConfig(input=str(source), split="val"), str(tmp_path / "v"))


def test_fetched_source_in_its_official_layout(tmp_path: Path, photographs: list[Path]) -> None:
    """The adapter names files and labels, workers read the files; an image without annotation has no labels."""
    expected = official_folders.coco(tmp_path / "coco", photographs[0])["train"]
    sources.fetch("coco2017", tmp_path / "data", from_dir=tmp_path / "coco", cache=tmp_path / "cache", offline=True)
    source = sources.open_source(tmp_path / "data" / "coco2017")
    report = ingest(IngestConfig(input=str(tmp_path / "data" / "coco2017")), str(tmp_path / "c"), workers=1)
    corpus = Corpus.open(report.uri)
    assert {file: set(labels) for file, labels in labels_by_source(corpus).items()} == {
        record.file: set(record.labels) for record in source.records("train")
    }
    assert len(expected) == report.files
    assert corpus.classes == source.classes()


def test_photographs(tmp_path: Path, photographs: list[Path]) -> None:
    """Real JPEGs: reduced to 340 on the short side by default, byte for byte where that is allowed."""
    (tmp_path / "in" / "things").mkdir(parents=True)
    for path in photographs:
        (tmp_path / "in" / "things" / path.name).write_bytes(path.read_bytes())
    ingest(IngestConfig(input=str(tmp_path / "in")), str(tmp_path / "small"), workers=1)
    small = Corpus.open(str(tmp_path / "small")).images.to_table().to_pylist()
    assert [(r["width"], r["height"], r["flags"]) for r in small] == [(510, 340, 3)] * 2
    whole = IngestConfig(input=str(tmp_path / "in"), picture=PictureConfig(max_side=0))
    ingest(whole, str(tmp_path / "whole"), workers=1)
    stored = {r["source"]: r["image"] for r in Corpus.open(str(tmp_path / "whole")).images.to_table().to_pylist()}
    for path in photographs:
        assert stored[f"things/{path.name}"] == path.read_bytes()


def test_from_minio_to_minio(tmp_path: Path, minio: MinioServer) -> None:
    here = tree(tmp_path / "in")
    for name in storage.list_files(str(here)):
        storage.copy(str(here / name), minio.uri("in", name))
    report = ingest(IngestConfig(input=minio.uri("in")), minio.uri("corpus"), workers=1)
    local = ingest(IngestConfig(input=str(here)), str(tmp_path / "c"), workers=1)
    assert report.digest == local.digest
    assert quarantine(Corpus.open(minio.uri("corpus"))) == quarantine(Corpus.open(local.uri))
    assert not [name for name in storage.list_files(minio.uri("corpus")) if name.startswith(".ingest")]
    assert ingest(IngestConfig(input=minio.uri("in")), minio.uri("corpus")).existed
    labels = minio.uri("labels.jsonl")
    named = ["cat/0.jpg", "cat/empty.jpg", "dog/none.png"]
    storage.write_bytes(labels, "\n".join(json.dumps({"file": n, "labels": "x"}) for n in named).encode())
    report = ingest(IngestConfig(input=minio.uri("in"), labels=labels), minio.uri("second"), workers=1)
    assert (report.rows, report.missing, report.quarantined) == (1, 1, {"empty": 1})


def test_another_corpus_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source, to = tree(tmp_path / "in", 8), str(tmp_path / "c")
    config = IngestConfig(input=str(source))
    first = ingest(config, to, workers=1)
    Corpus.open(to).rewrite("closed", ["labels", "votes"], lambda b: b.select(["labels", "votes"]))
    with pytest.raises(InputError, match=r"other settings \(salt\)"):
        ingest(config.model_copy(update={"salt": "x"}), to)
    (source / "cat" / "new.png").write_bytes(picture(500))
    with pytest.raises(InputError, match="this input as it was before"):
        ingest(config, to)
    second = ingest(config, to, workers=1, overwrite=True)
    assert (second.rows, Corpus.open(to).tag) == (first.rows + 1, "ingested")
    assert storage.list_files(f"{to}/manifests") == ["ingested.json"]  # what was made of the old one is gone
    corpus = Corpus.open(to)
    assert len(os.listdir(f"{to}/images.lance/data")) == len(corpus.images.get_fragments())
    assert list(corpus.images.tags.list()) == ["ingested"]


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ({}, {}, "holds no images"),
        ({"a.png": picture(1)}, {}, "has no class folders"),
        ({"a/b.txt": b"hello"}, {}, r"none of the files .* could be taken: 1 foreign \(a/b.txt\)"),
        ({"l.csv": b"file,labels\n"}, {"labels": "l.csv"}, "has no rows"),
        ({"l.csv": b"file,labels\na.png,cat\n", "c.json": b'[{"name": "dog"}]'},
         {"labels": "l.csv", "classes": "c.json"}, "the label 'cat' of a.png is no class"),
        ({"cat/a.png": picture(1), "c.json": b'[{"name": "dog"}]'},
         {"classes": "c.json"}, "1 labels are no classes of the list: 'cat'"),
    ],
)  # fmt: skip
def test_what_cannot_be_ingested(tmp_path: Path, files: dict[str, bytes], options: dict[str, str], says: str) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    config = IngestConfig(input=str(root), **{name: str(root / file) for name, file in options.items()})
    with pytest.raises(InputError, match=says) as caught:
        ingest(config, str(tmp_path / "c"), workers=1)
    assert caught.value.cure
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_places_and_settings_are_checked_first(tmp_path: Path) -> None:
    tree(tmp_path / "in", 4)
    config = IngestConfig(input=str(tmp_path / "in"))
    with pytest.raises(InputError, match="inside its own input"):
        ingest(config, str(tmp_path / "in" / "corpus"))
    with pytest.raises(InputError, match="too little memory"):
        ingest(config, str(tmp_path / "c"), memory=2**29)
    with pytest.raises(StorageError, match="is not there"):
        ingest(IngestConfig(input=str(tmp_path / "nothing")), str(tmp_path / "c"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="is a file that cannot be ingested"):
        ingest(IngestConfig(input=str(tmp_path / "notes.txt")), str(tmp_path / "c"))
    arguments = ["corpus", "ingest", str(tmp_path / "in"), "--to", str(tmp_path / "c"), "--quality", "101"]
    with pytest.raises(InputError, match="--quality"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_odd_files_on_disk(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "a.png").write_bytes(picture(1))
    os.symlink("a.png", root / "cat" / "link.png")  # a link to a picture is that picture
    os.symlink("nowhere.png", root / "cat" / "broken.png")
    os.symlink("..", root / "cat" / "round")  # a circle
    os.symlink(root / "cat", root / "dog")  # a folder under a second name
    os.mkfifo(root / "cat" / "pipe.png")  # would block whoever opens it
    (root / "cat" / os.fsdecode(b"\xff\xfe.png")).write_bytes(picture(2))  # a name that is not UTF-8
    with (root / "cat" / "huge.png").open("wb") as file:
        file.truncate(3 << 30)
    assert {name for name, _ in walk(str(root))} >= {"cat/a.png", "dog/a.png", "cat/broken.png"}
    ingest(IngestConfig(input=str(root)), str(tmp_path / "c"), workers=1)
    corpus = Corpus.open(str(tmp_path / "c"))
    assert labels_by_source(corpus) == {"cat/a.png": {"cat": 1, "dog": 1}, "cat/��.png": {"cat": 1, "dog": 1}}
    assert quarantine(corpus) == {
        "cat/broken.png": "missing",
        "dog/broken.png": "missing",
        "cat/huge.png": "oversize",
        "dog/huge.png": "oversize",
    }


def test_class_names() -> None:
    assert class_list("shards", {"10", "9", "1"}, None).names == ("1", "9", "10")
    assert class_list("labels", {"b", "a", "10"}, None).names == ("10", "a", "b")
    assert class_list("labels", {"a/b"}, None).names == ("a/b",)  # only folders are a hierarchy
    assert class_list("folder", {"a/b c", "a-b", "a"}, None).names == ("a", "a/b c", "a-b")
    stated = Classes.flat(["z", "a"])
    assert class_list("shards", {"a"}, stated) is stated
