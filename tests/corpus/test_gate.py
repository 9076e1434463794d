"""The near-duplicate gate: planted copies are all found, files and S3 agree, kills leave nothing half-written."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from tenfold import storage
from tenfold.cli import app
from tenfold.corpus import gate as module
from tenfold.corpus.fingerprint import has_fingerprints, stored
from tenfold.corpus.gate import GateConfig, clean_test_ids, duplicates, near_pairs, run, run_self
from tenfold.corpus.table import IMAGES, QUARANTINE, Classes, Corpus, commit, rank_of
from tenfold.errors import GateError, InputError
from tenfold.manifest import Manifest


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def tiles(photographs: list[Path]) -> list[Image.Image]:
    """Real photographs: parts of two that do not overlap and that show something."""
    out = []
    for path in photographs:
        whole = Image.open(path).convert("RGB")
        w, h = whole.width // 4, whole.height // 3
        out += [whole.crop((x * w, y * h, (x + 1) * w, (y + 1) * h)) for y in range(3) for x in range(4)]
    return [p for p in out if np.asarray(p.convert("L")).std() > 12]


def corpus_of(folder: str, images: dict[str, bytes]) -> Corpus:
    """A corpus of JPEG files, by name."""
    ids = [hashlib.sha256(data).hexdigest() for data in images.values()]
    ranks = rank_of(ids)
    order = np.argsort(ranks)
    names, data = list(images), list(images.values())
    sizes = [Image.open(io.BytesIO(d)).size for d in data]
    table = pa.table(
        {
            "id": [ids[i] for i in order],
            "rank": ranks[order],
            "image": [data[i] for i in order],
            "width": [sizes[i][0] for i in order],
            "height": [sizes[i][1] for i in order],
            "labels": [[0]] * len(ids),
            "votes": [[1.0]] * len(ids),
            "source": [names[i] for i in order],
            "flags": [0] * len(ids),
        },
        schema=IMAGES,
    )
    options = storage.lance_options(folder)
    lance.write_dataset(table, storage.join(folder, "images.lance"), max_rows_per_file=5, storage_options=options)
    lance.write_dataset(QUARANTINE.empty_table(), storage.join(folder, "quarantine.lance"), storage_options=options)
    return commit(folder, "ingested", classes=Classes.flat(["x"]), recipe={}, inputs=[], facts={"salt": "tenfold"})


def planted(photographs: list[Path]) -> tuple[dict[str, bytes], dict[str, bytes], dict[str, str]]:
    """Images of a corpus, of a test set, and which test file is a copy of which corpus file."""
    parts = tiles(photographs)
    known, others = parts[:11], parts[11:]
    corpus = {f"c{i}.jpg": jpeg(p) for i, p in enumerate(known)}
    corpus["blank.jpg"] = jpeg(Image.new("RGB", (60, 60), "white"))
    tests = {f"clean{i}.jpg": jpeg(p) for i, p in enumerate(others)}
    tests |= {
        "same.jpg": corpus["c0.jpg"],
        "blank.jpg": corpus["blank.jpg"],
        "mirror.jpg": jpeg(known[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "small.png": jpeg(known[2].resize((64, 60)), 40),
        "sub/crop.jpg": jpeg(known[3].crop((6, 7, 152, 136))),
        "grey.jpg": jpeg(known[4].convert("L")),
        "broken.jpg": corpus["c5.jpg"][:900],
        "white.jpg": jpeg(Image.new("RGB", (80, 60), "white")),
    }
    copies = {"same.jpg": "c0.jpg", "blank.jpg": "blank.jpg", "mirror.jpg": "c1.jpg", "small.png": "c2.jpg"}
    return corpus, tests, copies | {"sub/crop.jpg": "c3.jpg", "grey.jpg": "c4.jpg"}


def write(folder: str, images: dict[str, bytes]) -> str:
    for name, data in images.items():
        storage.write_bytes(storage.join(folder, name), data)
    storage.write_bytes(storage.join(folder, "readme.txt"), b"no image")
    return folder


@pytest.fixture
def made(tmp_path: Path, photographs: list[Path]) -> tuple[Corpus, str, dict[str, str]]:
    images, tests, copies = planted(photographs)
    return corpus_of(str(tmp_path / "corpus"), images), write(str(tmp_path / "tests"), tests), copies


def test_planted_copies_are_found(made: tuple[Corpus, str, dict[str, str]]) -> None:
    corpus, tests, copies = made
    result = run(corpus, tests)
    assert {(p["test_file"], p["corpus_source"]) for p in near_pairs(corpus, "tests")} == set(copies.items())
    assert (result.near_duplicates, result.exact, result.unreadable) == (6, 2, 1)
    assert result.tested == len(clean_test_ids(corpus, "tests")) + 6
    assert duplicates(corpus.uri, "tests", by="file") == set(copies)
    assert set(clean_test_ids(corpus, "tests", by="file")) >= {"clean0.jpg", "white.jpg"}
    assert next(p for p in near_pairs(corpus, "tests") if p["test_file"] == "mirror.jpg")["mirrored"]
    manifest = Manifest.read(f"{result.uri}.json")
    assert manifest.kind == "gate"
    assert corpus.digest in manifest.inputs
    assert manifest.facts["near_duplicates"] == 6
    page = storage.read_bytes(f"{result.uri}/gallery.html").decode()
    assert page.count("<figure") >= 6
    assert 'src="http' not in page


def test_the_state_gets_fingerprints_and_keeps_its_digest(made: tuple[Corpus, str, dict[str, str]]) -> None:
    """Stored fingerprints equal those made on the way; an older state is not touched, and answers the same."""
    corpus, tests, _ = made
    first = run(corpus, tests, name="a")
    newest = Corpus.open(corpus.uri)
    assert (newest.tag, newest.digest) == ("gated", corpus.digest)
    assert has_fingerprints(newest)
    assert not has_fingerprints(Corpus.open(f"{corpus.uri}@ingested"))
    kept = np.concatenate([prints for _, _, prints in stored(newest)])
    fresh = np.concatenate([prints for _, _, prints in stored(corpus, rows=3)])
    assert np.array_equal(kept, fresh)
    assert run(Corpus.open(f"{corpus.uri}@ingested"), tests, name="b", workers=1).digest == first.digest
    assert Corpus.open(corpus.uri).manifest == newest.manifest


def test_run_again_returns_what_is_there(made: tuple[Corpus, str, dict[str, str]]) -> None:
    corpus, tests, _ = made
    first = run(corpus, tests)
    again = run(Corpus.open(corpus.uri), tests)
    assert again.existed
    assert again.digest == first.digest
    assert not run(Corpus.open(corpus.uri), tests, GateConfig(threshold=0.05)).existed
    Path(tests, "clean0.jpg").unlink()
    assert not run(Corpus.open(corpus.uri), tests, GateConfig(threshold=0.05)).existed


def test_another_corpus_as_test_set_and_inside(tmp_path: Path, photographs: list[Path]) -> None:
    images, tests, copies = planted(photographs)
    corpus = corpus_of(str(tmp_path / "corpus"), images)
    readable = {name: data for name, data in tests.items() if name != "broken.jpg"}
    other = corpus_of(str(tmp_path / "other"), readable)
    result = run(corpus, other.uri)
    assert result.name == "other"
    ids = {hashlib.sha256(tests[name]).hexdigest() for name in copies}
    assert duplicates(corpus, "other") == ids
    both = corpus_of(str(tmp_path / "both"), images | {k: v for k, v in readable.items() if v not in images.values()})
    assert run_self(both).near_duplicates == len([c for c in copies if c not in ("same.jpg", "blank.jpg")])
    with pytest.raises(InputError, match="--self"):
        run(both, both.uri)


def test_files_and_s3_agree(tmp_path: Path, photographs: list[Path], minio: object) -> None:
    images, tests, _ = planted(photographs)
    root = minio.root  # type: ignore[attr-defined]
    results = [
        run(corpus_of(f"{where}/corpus", images), write(f"{where}/tests", tests)) for where in (str(tmp_path), root)
    ]
    assert results[0].digest == results[1].digest
    assert duplicates(f"{root}/corpus", "tests") == duplicates(f"{tmp_path}/corpus", "tests")


KILL = """
import os, signal, sys
from tenfold import storage
from tenfold.corpus.gate import run
from tenfold.corpus.table import Corpus
left, write = int(sys.argv[3]), storage.write_bytes
def dying(uri, data):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(uri, data)
storage.write_bytes = dying
run(Corpus.open(sys.argv[1]), sys.argv[2])
"""


def test_killed_it_leaves_nothing_half_written(made: tuple[Corpus, str, dict[str, str]]) -> None:
    """SIGKILL before each write: no gate is there, the corpus opens, and running again gives the whole result."""
    corpus, tests, copies = made
    for writes in (0, 3, 3):  # before the state, after the first table, before the manifest
        killed = subprocess.run([sys.executable, "-c", KILL, corpus.uri, tests, str(writes)], capture_output=True)
        assert killed.returncode == -9, killed.stderr.decode()
        assert Corpus.open(corpus.uri).digest == corpus.digest
        with pytest.raises(InputError, match="has no gate"):
            duplicates(corpus, "tests")
    assert run(Corpus.open(corpus.uri), tests).near_duplicates == len(copies)


def test_quality_gate_and_command(made: tuple[Corpus, str, dict[str, str]]) -> None:
    corpus, tests, _ = made
    with pytest.raises(GateError, match=r"more than the 10\.00% allowed"):
        run(corpus, tests, GateConfig(max_share=0.10)).check()
    done = CliRunner().invoke(app, ["corpus", "gate", corpus.uri, "--test", tests, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["near_duplicates"] == 6
    failed = CliRunner().invoke(app, ["corpus", "gate", corpus.uri, "--test", tests, "--max-share", "0.1"])
    assert isinstance(failed.exception, GateError)
    assert failed.exception.exit_code == 4


def test_what_a_person_can_get_wrong(made: tuple[Corpus, str, dict[str, str]], tmp_path: Path) -> None:
    corpus, tests, _ = made
    with pytest.raises(InputError, match="does not exist"):
        run(corpus, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no name for a gate"):
        run(corpus, tests, name="a/b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no readable image"):
        run(corpus, str(tmp_path / "empty"))
    for arguments in ([], ["--test", tests, "--self"], ["--test", tests, "--threshold", "2"]):
        failed = CliRunner().invoke(app, ["corpus", "gate", corpus.uri, *arguments])
        assert isinstance(failed.exception, InputError)
    with pytest.raises(InputError, match="has no gate 'none'"):
        duplicates(corpus, "none")


def test_only_the_nearest_are_kept() -> None:
    hits = np.zeros(100, module.HIT)
    hits["query"], hits["row"] = np.repeat([3, 1], 50), np.tile(np.arange(50), 2)
    hits["distance"] = np.random.default_rng(0).random(100)
    kept = module._nearest(np.concatenate([hits, hits]))
    for query in (1, 3):
        expected = np.sort(hits["distance"][hits["query"] == query])[: module.KEPT]
        assert kept["distance"][kept["query"] == query].tolist() == expected.tolist()
