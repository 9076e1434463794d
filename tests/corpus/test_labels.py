"""Labels files: three formats say the same, and what is wrong is named with its row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tenfold.corpus.labels import labelled, read_labels
from tenfold.errors import InputError

ROWS = [
    ("a.jpg", ["cat", "dog"], [3.0, 1.0]),
    ("b/c d.png", ["cat"], [1.0]),
    ("e,f.jpg", [], []),
]


def write(path: Path, rows: list[tuple[str, list[str], list[float]]]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            out = csv.writer(file)
            out.writerow(["votes", "file", "remark", "labels"])
            out.writerows([";".join(map(str, votes)), name, "x", ";".join(labels)] for name, labels, votes in rows)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"file": name, "labels": labels, "votes": votes}) for name, labels, votes in rows]
        path.write_text("\n\n".join(lines))
    else:
        names, labels, votes = zip(*rows, strict=True)
        pq.write_table(pa.table({"file": names, "labels": labels, "votes": votes, "remark": ["x"] * len(rows)}), path)
    return str(path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_three_formats_say_the_same(tmp_path: Path, form: str) -> None:
    assert list(labelled(write(tmp_path / f"l.{form}", ROWS), "/data", ";")) == ROWS


@pytest.mark.parametrize(
    ("labels", "votes", "result"),
    [
        ("cat", None, (["cat"], [1.0])),
        (" cat ;; dog ", "", (["cat", "dog"], [1.0, 1.0])),
        ("cat;dog", "2;3", (["cat", "dog"], [2.0, 3.0])),
        ("cat;dog", 2, (["cat", "dog"], [2.0, 2.0])),
        ("cat;cat;dog", "1;3;2", (["cat", "dog"], [3.0, 2.0])),
        (7, None, (["7"], [1.0])),
        ([7, "x;y"], [1, 2], (["7", "x;y"], [1.0, 2.0])),
        (None, None, ([], [])),
        (float("nan"), float("nan"), ([], [])),
        ([], None, ([], [])),
    ],
)
def test_one_or_many(labels: Any, votes: Any, result: Any) -> None:
    assert read_labels(labels, votes, ";") == result


@pytest.mark.parametrize(
    ("labels", "votes", "says"),
    [
        ("a;b", "1", "1 votes for 2 labels"),
        ("a", "much", "not numbers"),
        ("a", [-1], "from 0 up"),
        ("a", ["nan"], "from 0 up"),
        ({"a": 1}, None, "not names"),
        ([["a"]], None, "not names"),
        ([1.5], None, "not names"),
    ],
)
def test_what_is_wrong_is_said(labels: Any, votes: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_labels(labels, votes, ";")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.csv", "image,label\na.jpg,cat\n", "no column 'file', only image, label"),
        ("l.csv", "file,label\na.jpg,cat\n", "no column 'labels'"),
        ("l.csv", "", "no column 'file', only none"),
        ("l.csv", "file,labels\na.jpg,cat\nb.jpg,cat,dog\n", "line 3: 3 fields where the header has 2"),
        ("l.csv", "file,labels,votes\na.jpg,cat,x\n", "line 2: votes are 'x'"),
        ("l.csv", b"file,labels\n\xff\xfe.jpg,cat\n", "not UTF-8"),
        ("l.csv", "file,labels\n,cat\n", "line 2: no file is named"),
        ("l.csv", "file,labels\n../../etc/passwd,cat\n", "lies outside"),
        ("l.csv", "file,labels\n/etc/passwd,cat\n", "lies outside"),
        ("l.csv", "file,labels\nhttp://x/a.jpg,cat\n", "lies outside"),
        ("l.jsonl", '{"file": "a.jpg", "labels": "cat"}\n{"file": \n', "line 2 is not JSON"),
        ("l.jsonl", '[1]\n', "line 1 is not JSON: not an object"),
        ("l.jsonl", '{"name": "a.jpg"}\n', "no column 'file', only name"),
        ("l.jsonl", '{"file": "a.jpg", "labels": ["a", "b"], "votes": [1]}\n', "line 1: 1 votes for 2 labels"),
        ("l.parquet", "no parquet", "not a Parquet file"),
        ("l.xlsx", "", "no labels file that can be read"),
    ],
)  # fmt: skip
def test_errors_name_file_and_row(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        list(labelled(str(path), "/data", ";"))
    assert says in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.cure


def test_addresses_inside_the_input_are_taken_as_relative(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("file,labels\n./a.jpg,x\n/data/b.jpg,x\nc/../d.jpg,x\n")
    assert [row[0] for row in labelled(str(path), "/data", ";")] == ["a.jpg", "b.jpg", "d.jpg"]
    path.write_text("file,labels\ns3://bucket/data/b.jpg,x\n")
    assert [row[0] for row in labelled(str(path), "s3://bucket/data", ";")] == ["b.jpg"]
