"""A subset as a corpus of its own: the first n images (D-12), or the images and labels of some classes (D-13).

Most work needs neither: rows lie in random order, so every verb that takes `n` reads the first n rows in place. A copy
is for handing a small corpus on, and for the class subset, whose labels differ.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tenfold import storage
from tenfold.corpus.hierarchy import Hierarchy, graph_digest
from tenfold.corpus.table import QUARANTINE, Classes, Corpus, commit
from tenfold.errors import InputError, StorageError

ROWS = 256  # rows held at a time


def subset(
    corpus: Corpus,
    to: str,
    *,
    n: int | None = None,
    classes: list[str] | None = None,
    advance: Callable[[float, str], None] = lambda amount, note: None,
) -> Corpus:
    """Copy a part of a corpus to `to`, a corpus of its own with one state; ids, ranks and order stay.

    Args:
        corpus: the state to copy from.
        to: folder or `s3://` address of the new corpus.
        n: how many images, the first in order of rank; of the class subset where `classes` are given too.
        classes: names (or titles) of the classes to keep, in their new order; images without any of them are left out.
            A class's new parents are its nearest kept ancestors.
        advance: called with the number of images written so far more, and a note.

    Streams in bounded memory. The manifest is written last, so an interrupted copy is no corpus, and running it again
    replaces what lies there; the same copy done before is returned. Raises InputError for an unknown class, for n
    beyond what there is, and where another corpus lies at `to`.
    """
    to = storage.normalise(to)
    classes = resolve(corpus.classes, classes) if classes is not None else None
    recipe = {"verb": "corpus subset", "n": n, "classes": classes}
    if storage.exists(storage.join(to, "manifest.json")):
        there = Corpus.open(to)
        if there.manifest.recipe == recipe and there.manifest.inputs == [corpus.digest]:
            return there
        raise InputError(f"{to} holds another corpus already", "choose another folder, or remove that one first")
    kept, new_index = select_classes(corpus.classes, classes) if classes is not None else (corpus.classes, None)
    rows = corpus.check_size(n) if new_index is None else _rows_with(corpus, new_index, n)
    for name in ("images.lance", "classes.lance", "quarantine.lance", "manifests"):
        storage.remove(storage.join(to, name))  # what an interrupted copy left, and nothing else that lies there
    table = corpus.images
    columns = [name for name in table.schema.names if not name.endswith("__new")]
    schema = pa.schema([table.schema.field(name) for name in columns])

    def copied() -> Iterator[pa.RecordBatch]:
        left = rows
        # Without a class filter the scan stops at n; with one it stops when enough were found.
        limit = rows if new_index is None else None
        scanner = table.scanner(
            columns=columns,
            limit=limit,
            batch_size=ROWS,
            batch_readahead=4,
            io_buffer_size=256 << 20,  # Lance reads up to 2 GiB ahead unless told
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            if new_index is not None:
                batch = keep_classes(batch, new_index)
            batch = batch.slice(0, left)
            left -= batch.num_rows
            advance(batch.num_rows, "")
            if batch.num_rows:
                yield batch.select(columns)
            if not left:
                break

    options = storage.lance_options(to)
    reader = pa.RecordBatchReader.from_batches(schema, copied())
    images = lance.write_dataset(reader, storage.join(to, "images.lance"), schema=schema, storage_options=options)
    if images.count_rows() != rows:
        raise StorageError(f"{to}: {images.count_rows():,} of {rows:,} images arrived", "run the same command again")
    lance.write_dataset(QUARANTINE.empty_table(), storage.join(to, "quarantine.lance"), storage_options=options)
    facts = {k: v for k, v in corpus.manifest.facts.items() if k in ("salt", "closed")}
    if classes is not None:
        facts["closed"] = None if not facts.get("closed") else {**facts["closed"], "classes": graph_digest(kept)}
    part = {"of": corpus.manifest.uri, "tag": corpus.tag, "digest": corpus.digest, "rows": corpus.rows}
    return commit(to, "subset", classes=kept, recipe=recipe, inputs=[corpus.digest], facts={**facts, "subset_of": part})


def resolve(classes: Classes, names: list[str]) -> list[str]:
    """Class names for names or titles; a title has to belong to one class only.

    Raises InputError for what is neither, naming the nearest names.
    """
    known, titled = set(classes.names), Counter(classes.titles)
    by_title = dict(zip(classes.titles, classes.names, strict=True))
    out = []
    for name in names:
        if name not in known and titled[name] > 1:
            these = ", ".join(n for n, t in zip(classes.names, classes.titles, strict=True) if t == name)
            raise InputError(f"{name!r} is the title of {titled[name]} classes", f"name one of them: {these}")
        if name not in known and not titled[name]:
            near = difflib.get_close_matches(name, [*classes.names, *classes.titles], 3)
            raise InputError(
                f"no class has the name or title {name!r}",
                f"did you mean {', '.join(near)}?" if near else "`tenfold corpus report` shows the classes",
            )
        out.append(name if name in known else by_title[name])
    return out


def select_classes(classes: Classes, names: list[str]) -> tuple[Classes, np.ndarray]:
    """The named classes in the given order, and for every old index its new one, or -1: int32 [C].

    A class's new parents are its nearest kept ancestors, so labels that were closed stay closed (D-10, D-13). Raises
    InputError for a name that is unknown or given twice, and for no name at all.
    """
    if not names:
        raise InputError("no class to keep", "name at least one class")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"class {twice!r} is there twice", "name every class once")
    old = np.array([classes.index(name) for name in names])
    new_index = np.full(len(classes), -1, np.int32)
    new_index[old] = np.arange(len(names))
    hierarchy = Hierarchy.of(classes)
    parents = []
    for own in old.tolist():
        above = {int(i) for i in hierarchy.of_class(own) if new_index[i] >= 0 and i != own}
        farther = {int(f) for a in above for f in hierarchy.of_class(a) if f != a}
        parents.append(tuple(sorted(int(new_index[i]) for i in above - farther)))
    return Classes(tuple(names), tuple(classes.titles[i] for i in old), tuple(parents)), new_index


def keep_classes(batch: pa.RecordBatch, new_index: np.ndarray) -> pa.RecordBatch:
    """Rows that have a kept class, with only the kept labels and their votes; the other columns as they are.

    Args:
        batch: with the columns `labels` and `votes`, any others beside them.
        new_index: int32 [C], new class index, or -1 for a class to drop.
    """
    lengths = batch["labels"].value_lengths().to_numpy(zero_copy_only=False)
    labels = new_index[batch["labels"].flatten().to_numpy(zero_copy_only=False)]
    votes = batch["votes"].flatten().to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(batch.num_rows), lengths)
    stays = labels >= 0
    order = np.flatnonzero(stays)
    order = order[np.lexsort((labels[order], row[order]))]  # the new order of classes may be another
    counts = np.bincount(row[order], minlength=batch.num_rows)
    mask = counts > 0
    ends = pa.array(np.concatenate([[0], np.cumsum(counts[mask])]).astype(np.int32))
    new = {"labels": pa.array(labels[order]), "votes": pa.array(votes[order])}
    batch = pc.filter(batch, pa.array(mask)) if not mask.all() else batch
    columns = [
        pa.ListArray.from_arrays(ends, new[field.name]).cast(field.type) if field.name in new else batch[field.name]
        for field in batch.schema
    ]
    return pa.record_batch(columns, schema=batch.schema)


def _rows_with(corpus: Corpus, new_index: np.ndarray, n: int | None) -> int:
    """How many images have a kept class, at most `n`; raises InputError where there are none, or fewer than `n`."""
    if n is not None and n < 1:
        raise InputError(f"a subset of {n} images was asked for", "choose n from 1 on")
    found = 0
    for batch in corpus.batches(["labels", "votes"], rows=65536):
        found += keep_classes(batch, new_index).num_rows
        if n is not None and found >= n:
            return n
    if n is not None or not found:
        raise InputError(
            f"{corpus.uri} has {found:,} images with these classes" + (f", so no {n:,}" if n else ""),
            f"choose n from 1 to {found}" if found else "choose classes that have images (`tenfold corpus report`)",
        )
    return found


def read_names(uri: str) -> list[str]:
    """Class names from a text file, one a line (`#` begins a comment), or from JSON: names, or objects with `name`.

    Raises InputError where it is neither.
    """
    text = storage.read_bytes(storage.normalise(uri)).decode("utf-8-sig", errors="replace")
    if not text.lstrip().startswith(("[", "{")):
        lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
        return [line for line in lines if line]
    try:
        entries: list[Any] = json.loads(text)
        return [str(entry["name"] if isinstance(entry, dict) else entry) for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{uri} is no list of class names", 'write one name a line, or JSON: ["cat", "dog"]') from None
