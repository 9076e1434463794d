"""CIFAR-10N: a miniature in both forms of the photographs, and the real thing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tenfold.corpus import sources
from tenfold.corpus.sources import cifar10n, wordnet
from tenfold.corpus.sources.obtain import cache_folder
from tenfold.corpus.sources.places import Obtained, Place
from tenfold.corpus.sources.spec import no_bars
from tenfold.errors import StorageError

N = 30  # images a sheet


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class Miniature:
    """Six sheets of N small images with human labels, in every form that CIFAR-10N comes in."""

    def __init__(self, folder: Path, photograph: Path) -> None:
        rng = np.random.default_rng(0)
        with Image.open(photograph) as image:
            pixels = np.asarray(image.convert("RGB"))
        corners = rng.integers(0, [pixels.shape[0] - 32, pixels.shape[1] - 32], (6 * N, 2))
        self.images = np.stack([pixels[y : y + 32, x : x + 32] for y, x in corners])
        self.clean = rng.integers(0, 10, 6 * N)
        clean = self.clean[: 5 * N]
        noisy = [np.where(rng.random(5 * N) < 0.3, rng.integers(0, 10, 5 * N), clean) for _ in range(3)]
        self.human = {"clean_label": clean, "aggre_label": noisy[0], "worse_label": noisy[1]}
        self.human |= {f"random_label{k + 1}": noisy[k] for k in range(3)}
        self.folder = folder

    def photographs(self, form: str) -> Obtained:
        path = self.folder / f"{form}.tgz"
        with tarfile.open(path, "w:gz") as tar:
            if form == "python":
                self.write_batches(tar)
            else:
                self.write_sheets(tar)
        return Obtained(Place("http", "", path.name, form=form), path, "0" * 64)

    def write_batches(self, tar: tarfile.TarFile) -> None:
        """The official archive: not in order, planar colours, keys in bytes."""
        for sheet in (3, 5, 0, 2, 4, 1):
            span = slice(sheet * N, (sheet + 1) * N)
            planes = self.images[span].transpose(0, 3, 1, 2).reshape(N, -1)
            batch = {
                b"batch_label": b"x",
                b"labels": self.clean[span].tolist(),
                b"data": planes,
                b"filenames": [b"a"] * N,
            }
            name = "test_batch" if sheet == 5 else f"data_batch_{sheet + 1}"
            add(tar, f"cifar-10-batches-py/{name}", pickle.dumps(batch, protocol=2))
        add(tar, "cifar-10-batches-py/batches.meta", b"not read")

    def write_sheets(self, tar: tarfile.TarFile) -> None:
        """The package: a PNG of N rows x 1,024 px a sheet, labels behind them, the one file misspelt."""
        for sheet in range(6):
            buffer = io.BytesIO()
            Image.fromarray(self.images[sheet * N : (sheet + 1) * N].reshape(N, 1024, 3)).save(buffer, "PNG")
            add(tar, f"package/{'test_batch' if sheet == 5 else f'data_batch_{sheet + 1}'}.png", buffer.getvalue())
        add(tar, "package/index.bundle.js", b"throw 'never run'")
        add(tar, "package/test_lables.json", json.dumps(self.clean[5 * N :].tolist()).encode())
        add(tar, "package/train_lables.json", json.dumps(self.clean[: 5 * N].tolist()).encode())

    def labels(self, form: str) -> Obtained:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(self.human, protocol=2))
            archive.writestr("archive/version", "3\n")
        data = buffer.getvalue()
        if form == "wheel":
            for name in ("CIFAR-N/CIFAR-10_human.pt", "noisy_cifar/CIFAR-N.zip"):
                buffer = io.BytesIO()
                with zipfile.ZipFile(buffer, "w") as archive:
                    archive.writestr(name, data)
                data = buffer.getvalue()
        path = self.folder / f"labels-{form}"
        path.write_bytes(data)
        return Obtained(Place("http", "", path.name, form=form), path, "0" * 64)

    def digests(self) -> tuple[str, ...]:
        """sha256 of the sheets as official binary batches."""
        found = []
        for sheet in range(6):
            rows = [
                bytes([self.clean[i]]) + self.images[i].transpose(2, 0, 1).tobytes()
                for i in range(sheet * N, (sheet + 1) * N)
            ]
            found.append(hashlib.sha256(b"".join(rows)).hexdigest())
        return tuple(found)


@pytest.fixture
def miniature(tmp_path: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Miniature:
    made = Miniature(tmp_path, photographs[0])
    monkeypatch.setattr(cifar10n, "SHEET", N)
    monkeypatch.setattr(cifar10n, "CHUNK", 7)
    monkeypatch.setattr(cifar10n, "ROW_GROUP", 10)
    monkeypatch.setattr(cifar10n, "BATCHES", made.digests())
    return made


def test_every_form_gives_the_same_files(miniature: Miniature, tmp_path: Path) -> None:
    trees, digests = [], set()
    for photographs, labels in (("python", "torch"), ("sheets", "wheel")):
        into = tmp_path / photographs
        into.mkdir()
        parts = {"photographs": miniature.photographs(photographs), "labels": miniature.labels(labels)}
        digests.add(cifar10n.build(parts, into, no_bars).digest)
        trees.append({p.relative_to(into).as_posix(): p.read_bytes() for p in sorted(into.rglob("*.parquet"))})
    assert len(digests) == 1
    assert trees[0] == trees[1]
    assert list(trees[0]) == ["judge.parquet", "test/part-1.parquet", *(f"train/part-{i}.parquet" for i in range(1, 6))]


def test_rows_labels_votes(miniature: Miniature, tmp_path: Path) -> None:
    parts = {"photographs": miniature.photographs("sheets"), "labels": miniature.labels("wheel")}
    built = cifar10n.build(parts, tmp_path, no_bars)
    assert built.splits == {"train": 5 * N, "test": N}
    train = [r for i in range(1, 6) for r in pq.read_table(tmp_path / f"train/part-{i}.parquet").to_pylist()]
    for i, row in enumerate(train):
        assert row["file"] == f"train/{i:05d}.png"
        chosen = [wordnet.CIFAR10[miniature.human[f"random_label{k}"][i]] for k in (1, 2, 3)]
        assert dict(zip(row["labels"], row["votes"], strict=True)) == {name: chosen.count(name) for name in chosen}
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), miniature.images[i])
    test = pq.read_table(tmp_path / "test/part-1.parquet").to_pylist()
    assert [r["file"] for r in test] == [f"test/{i:05d}.png" for i in range(N)]
    assert [r["labels"] for r in test] == [[wordnet.CIFAR10[c]] for c in miniature.clean[5 * N :]]
    assert all(r["votes"] == [1.0] for r in test)
    judge = pq.read_table(tmp_path / "judge.parquet").to_pydict()
    assert judge["file"] == [r["file"] for r in train]
    assert judge["clean_label"] == [wordnet.CIFAR10[c] for c in miniature.clean[: 5 * N]]
    measured = built.facts["measured"]
    assert measured["random_label1"] == pytest.approx(
        np.mean(miniature.human["random_label1"] != miniature.human["clean_label"])
    )
    assert pq.ParquetFile(tmp_path / "test/part-1.parquet").num_row_groups == 3


def test_photographs_that_are_not_cifar10s(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"photographs": miniature.photographs("sheets"), "labels": miniature.labels("torch")}
    monkeypatch.setattr(cifar10n, "BATCHES", (*cifar10n.BATCHES[:2], "0" * 64, *cifar10n.BATCHES[3:]))
    with pytest.raises(StorageError, match=r"batch 3 in sheets\.tgz is not CIFAR-10's: expected sha256 0000"):
        cifar10n.build(parts, tmp_path, no_bars)


def test_labels_of_other_images(miniature: Miniature, tmp_path: Path) -> None:
    miniature.human["clean_label"] = miniature.human["clean_label"][::-1].copy()
    parts = {"photographs": miniature.photographs("sheets"), "labels": miniature.labels("torch")}
    with pytest.raises(StorageError, match="rows are not aligned"):
        cifar10n.build(parts, tmp_path, no_bars)


def test_without_the_package_the_recorded_tree() -> None:
    nodes, notes = cifar10n._tree(None)
    assert (nodes, notes) == (wordnet.recorded(), [])


def test_a_damaged_package_of_the_tree_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "darknet.deb").write_bytes(b"no package")
    part = Obtained(Place("apt", "darknet", "darknet.deb"), tmp_path / "darknet.deb", "0" * 64)
    nodes, notes = cifar10n._tree(part)
    assert nodes == wordnet.recorded()
    assert "the recorded tree is used" in notes[0]


@pytest.mark.slow
def test_the_real_one(tmp_path: Path) -> None:
    """All that the card claims, on the real archives: from the cache, else from a place that has them."""
    result = sources.fetch("cifar10n", tmp_path, cache=os.environ.get("TENFOLD_CACHE") or cache_folder())
    assert result.splits == {"train": 50_000, "test": 10_000}
    assert result.notes == []  # the PNG bytes are the recorded ones, the tree of the package too
    source = sources.open_source(tmp_path / "cifar10n")
    assert source.manifest.digest == "sha256:54987e7f868c0f345ba95a09fa7c575e1e6adc2ab6124babbfc91e63402b6871"
    measured = source.manifest.facts["measured"]
    assert measured["aggre_label"] == pytest.approx(0.0901, abs=1e-4)
    assert measured["worse_label"] == pytest.approx(0.4021, abs=1e-4)
    assert all(0.17 < measured[f"random_label{k}"] < 0.182 for k in (1, 2, 3))
    classes = source.classes()
    assert len(classes) == 40
    votes = dict.fromkeys(classes.names, 0.0)
    for batch in source.batches("train"):
        for labels, counts in zip(batch["labels"].to_pylist(), batch["votes"].to_pylist(), strict=True):
            assert sum(counts) == 3
            for label, count in zip(labels, counts, strict=True):
                votes[label] += count
    assert sum(votes.values()) == 150_000
    assert {name for name, count in votes.items() if count} == set(wordnet.CIFAR10)
    assert sources.fetch("cifar10n", tmp_path, offline=True).status == "present"
