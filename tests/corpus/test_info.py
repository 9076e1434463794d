"""`tenfold corpus info` and `sample`: counted by hand, and looked at."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from tenfold import storage
from tenfold.cli import app
from tenfold.corpus.info import describe
from tenfold.corpus.sheet import contact_sheet
from tenfold.corpus.table import IMAGES, QUARANTINE, Classes, Corpus, commit, rank_of
from tenfold.errors import InputError

CLASSES = Classes(("top", "a<b>", "c"), ("Top", "A <b>&", "C"), ((), (0,), (1, 0)))
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def made(uri: str) -> Corpus:
    """Five flat pictures of their own colours, of 10, 20, … px width."""
    ids = sorted((f"{i:064x}" for i in range(5)), key=lambda i: int(rank_of([i])[0]))
    pictures = []
    for i, colour in enumerate(COLOURS):
        stored = io.BytesIO()
        Image.new("RGB", (10 * (i + 1), 300), colour).save(stored, "PNG" if i % 2 else "JPEG")
        pictures.append(stored.getvalue())
    labels = [[1], [1, 2], [], [2], [0, 1, 2]]
    columns = [ids, rank_of(ids), pictures, [10, 20, 30, 40, 50], [300] * 5, labels, [[2.5] * len(x) for x in labels]]
    columns += [[f"<file {i}>" for i in range(5)], [0, 1 | 2, 2, 0, 8]]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, IMAGES, strict=True)], schema=IMAGES)
    lance.write_dataset(table, f"{uri}/images.lance")
    faults = [("x", "corrupt", "It is."), ("y", "empty", "It is."), ("z", "empty", "It is.")]
    columns = [pa.array(column, pa.string()) for column in zip(*faults, strict=True)]
    lance.write_dataset(pa.table(columns, schema=QUARANTINE), f"{uri}/quarantine.lance")
    facts = {"salt": "s", "input": "/pile", "files": 7, "image_bytes": sum(map(len, pictures))}
    return commit(uri, "ingested", classes=CLASSES, recipe={}, inputs=[], facts=facts)


def test_info_counts(tmp_path: Path) -> None:
    corpus = made(str(tmp_path / "c"))
    found = describe(corpus)
    assert (found.rows, found.files, found.classes, found.used_classes, found.depth) == (5, 7, 3, 3, 2)
    assert (found.labels, found.labels_an_image) == (7, {0: 1, 1: 2, 2: 1, 3: 1})
    assert (found.widths, found.heights) == ([10, 10, 30, 50, 50], [300] * 5)
    assert found.flags == {"reduced": 1, "reencoded": 2, "repeated": 1}
    assert found.quarantined == {"corrupt": 1, "empty": 2}
    corpus.rewrite("second", ["flags"], lambda batch: batch.select(["flags"]))
    result = CliRunner().invoke(app, ["corpus", "info", f"{tmp_path}/c@ingested", "--json"], catch_exceptions=False)
    told = json.loads(result.stdout)
    assert told["digest"] == corpus.digest
    assert [state["tag"] for state in told["states"]] == ["ingested", "second"]
    text = CliRunner().invoke(app, ["corpus", "info", f"{tmp_path}/c"], catch_exceptions=False).stdout
    for line in ("5 (of 7 files)", "7, 1.40 an image", "1 corrupt, 2 empty", "/pile (salt 's')", "second: 5 images"):
        assert line in text


def test_sheet_as_a_picture(tmp_path: Path) -> None:
    made(str(tmp_path / "c"))
    arguments = ["corpus", "sample", f"{tmp_path}/c", "--out", f"{tmp_path}/s.png", "--n", "4"]
    assert "4 images" in CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int).reshape(-1, 3)
    shown = [bool((np.abs(pixels - colour).max(1) < 6).sum() > 500) for colour in COLOURS]
    assert shown == [True, True, True, True, False]  # the first four in order of rank


def test_sheet_as_a_page(tmp_path: Path) -> None:
    corpus = made(str(tmp_path / "c"))
    assert contact_sheet(corpus, str(tmp_path / "s.html"), 99) == 5
    page = (tmp_path / "s.html").read_text()
    images = re.findall(r'src="data:image/(png|jpeg);base64,([^"]+)"', page)
    stored = [row["image"] for row in corpus.images.to_table(["image"]).to_pylist()]
    assert [base64.b64decode(data) for _, data in images] == stored
    assert "A &lt;b&gt;&amp; (2.5)" in page
    assert "<b>" not in page.replace("<body", "")
    assert "http" not in page  # nothing from outside


def test_sheets_that_cannot_be(tmp_path: Path) -> None:
    corpus = made(str(tmp_path / "c"))
    with pytest.raises(InputError, match=r"neither a \.png nor an \.html"):
        contact_sheet(corpus, str(tmp_path / "s.pdf"))
    with pytest.raises(InputError, match="no sheet of 0 images"):
        contact_sheet(corpus, str(tmp_path / "s.png"), 0)
    assert not storage.exists(str(tmp_path / "s.png"))
