"""Labels files: CSV, JSONL or Parquet with the columns file, labels and, perhaps, votes; read in a stream.

    file,labels,votes               {"file": "a.jpg", "labels": ["cat", "dog"], "votes": [3, 1]}
    a.jpg,cat;dog,3;1               {"file": "b.jpg", "labels": "cat"}
    b.jpg,cat,

A row names its file, so no join is needed: the row leads to the image. Several rows of one file are united.
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tenfold import storage
from tenfold.errors import InputError

COLUMNS = ("file", "labels", "votes")
Labels = tuple[str, list[str], list[float]]


def labelled(uri: str, root: str, separator: str) -> Iterator[Labels]:
    """File (relative to `root`), labels without repeats and votes of each row of the labels file `uri`.

    A row with an empty label field states that its image has none. Raises InputError naming the file's row.
    """
    readers = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    read = readers.get(posixpath.splitext(uri)[1].lower())
    if read is None:
        raise InputError(f"{uri} is no labels file that can be read", "give a .csv, .jsonl or .parquet file")
    for where, file, labels, votes in read(uri):
        try:
            yield _inside(file, root), *read_labels(labels, votes, separator)
        except ValueError as error:
            raise InputError(f"{uri}, {where}: {error}", "correct the row") from None


def read_labels(labels: Any, votes: Any, separator: str) -> tuple[list[str], list[float]]:
    """Labels and votes of one image from what a file says; raises ValueError with what is wrong.

    Labels are one or many: a list, or text with separators, or a number. Votes are as many, or one for all; 1 where
    there are none. A repeated label keeps its highest vote.
    """
    values = labels.split(separator) if isinstance(labels, str) else [] if _nothing(labels) else labels
    if not isinstance(values, list):
        values = [values]
    if any(isinstance(value, dict | list | float) or value is None for value in values):
        raise ValueError(f"labels are {labels!r}, not names")
    names = [str(value).strip() for value in values]
    given = 1.0 if _nothing(votes) else votes.split(separator) if isinstance(votes, str) else votes
    if not isinstance(given, list):
        given = [given] * len(names)
    if len(given) != len(names):
        raise ValueError(f"{len(given)} votes for {len(names)} labels")
    try:
        weights = [float(vote) for vote in given]
    except (TypeError, ValueError):
        raise ValueError(f"votes are {votes!r}, not numbers") from None
    if any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise ValueError(f"votes are {votes!r}, not numbers from 0 up")
    best: dict[str, float] = {}
    for name, weight in zip(names, weights, strict=True):
        if name:
            best[name] = max(weight, best.get(name, weight))
    return list(best), list(best.values())


def _nothing(value: Any) -> bool:
    """Whether a field is empty: null, blank text, or the NaN that data frames write for either."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _inside(file: Any, root: str) -> str:
    """The path relative to `root`; raises ValueError where it leads out of it."""
    if not isinstance(file, str) or not file.strip():
        raise ValueError("no file is named")
    inside = file.strip().removeprefix(root.rstrip("/") + "/")
    path = posixpath.normpath(inside)
    if path.startswith("/") or path.split("/")[0] in ("..", ".") or "://" in inside:
        raise ValueError(f"{file} lies outside {root}")
    return path


def _check_columns(uri: str, columns: Iterable[str | None]) -> None:
    there = [str(column) for column in columns]
    for needed in ("file", "labels"):
        if needed not in there:
            raise InputError(
                f"{uri} has no column {needed!r}, only {', '.join(there) or 'none'}",
                "name the columns file, labels and, perhaps, votes",
            )


def _csv(uri: str) -> Iterator[tuple[str, Any, Any, Any]]:
    with storage.open_read(uri) as raw, storage.translate(uri):
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        rows = csv.reader(text)
        try:
            header = [column.strip() for column in next(rows, [])]
            _check_columns(uri, header)
            at = [header.index(column) if column in header else -1 for column in COLUMNS]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"{uri}, line {rows.line_num}: {len(row)} fields where the header has {len(header)}",
                        "quote fields that hold a comma, or separate labels by another sign",
                    )
                file, labels, votes = (row[i] if i >= 0 else None for i in at)
                yield f"line {rows.line_num}", file, labels, votes
        except UnicodeDecodeError as error:
            raise InputError(f"{uri} is not UTF-8: {error}", "save it as UTF-8") from None
        except csv.Error as error:
            raise InputError(f"{uri}, line {rows.line_num}: {error}", "correct the line") from None


def _jsonl(uri: str) -> Iterator[tuple[str, Any, Any, Any]]:
    checked = False
    with storage.open_read(uri) as raw, storage.translate(uri):
        for number, line in enumerate(raw, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise InputError(f"{uri}, line {number} is not JSON: {error}", "write one object a line") from None
            if not checked:
                _check_columns(uri, row)
                checked = True
            yield f"line {number}", row.get("file"), row.get("labels"), row.get("votes")


def _parquet(uri: str) -> Iterator[tuple[str, Any, Any, Any]]:
    with storage.open_read(uri) as raw, storage.translate(uri):
        try:
            table = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise InputError(f"{uri} is not a Parquet file: {error}", "give a .csv, .jsonl or .parquet file") from None
        _check_columns(uri, table.schema_arrow.names)
        columns = [column for column in COLUMNS if column in table.schema_arrow.names]
        number = 0
        for batch in table.iter_batches(batch_size=4096, columns=columns):
            values = batch.to_pydict()
            for row in zip(*(values.get(column, [None] * batch.num_rows) for column in COLUMNS), strict=True):
                number += 1
                yield f"row {number}", *row
