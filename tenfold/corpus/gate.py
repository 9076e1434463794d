"""The near-duplicate gate: which test images have a near-duplicate in a corpus (D-14, D-15), before training.

Protocol of D-16: near-duplicates are removed from the TEST set, never from the corpus, and results are given with and
without them (C-07).

    CORPUS/gates/NAME/pairs.parquet   test file and id, corpus id, row and source, distance, mirrored, exact, near
    CORPUS/gates/NAME/tests.parquet   every test image: file, id, status (clean, near-duplicate, unreadable), distance
    CORPUS/gates/NAME/gallery.html    pairs side by side, for a person to judge the threshold by
    CORPUS/gates/NAME.json            manifest (kind "gate"), written last: without it the gate has not been run

    gate = run(Corpus.open("corpus"), "data/cifar10n:test")
    duplicates("corpus", gate.name)             # ids (or files) of test images to leave out
    clean_test_ids("corpus", gate.name)         # ids of the others, in the order of the test set

The distance of a pair is 1 - the correlation of the two pictures once aligned (tenfold.corpus.match). A file whose very
bytes are in the corpus is a duplicate whatever it shows (`exact`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from tenfold import storage
from tenfold.corpus import fingerprint, gallery
from tenfold.corpus.match import BLOCK, FARTHEST, HIT, THRESHOLD, Queries
from tenfold.corpus.pictures import PictureConfig, normalise
from tenfold.corpus.sniff import Rejected
from tenfold.corpus.table import Corpus
from tenfold.corpus.testsets import TestImage, TestSet, open_test
from tenfold.errors import GateError, InputError
from tenfold.manifest import Manifest, code_version, digest_bytes, digest_json

PAIRS = pa.schema(
    [
        pa.field("test_file", pa.string(), nullable=False),
        pa.field("test_id", pa.string(), nullable=False),
        pa.field("corpus_id", pa.string(), nullable=False),
        pa.field("corpus_row", pa.int64(), nullable=False),
        pa.field("corpus_source", pa.string(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),
        pa.field("mirrored", pa.bool_(), nullable=False),
        pa.field("exact", pa.bool_(), nullable=False),  # the same bytes
        pa.field("near", pa.bool_(), nullable=False),  # at most the threshold apart; the others are near misses
    ]
)
TESTS = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # clean, near-duplicate, unreadable
        pa.field("distance", pa.float32()),  # of the nearest pair; none where nothing was in sight
    ]
)
FALSE_ALARMS = (
    2e-8  # a pair, at THRESHOLD, measured on pairs of CIFAR-10 photographs of different classes (docs/gate.md)
)
KEPT = 16  # nearest pairs kept of a test image
MARGIN = 0.07  # beyond the threshold: near misses that are kept, so that it can be judged

Bars = Callable[[str, float | None], AbstractContextManager[Callable[[float], None]]]


def _no_bars(_: str, __: float | None = None) -> AbstractContextManager[Callable[[float], None]]:
    return nullcontext(lambda _: None)


class Gate(BaseModel):
    """What a gate found.

    Attributes:
        uri: its folder.
        name: of the gate.
        test: the test set, as given.
        corpus_rows: images it was held against.
        tested: test images that could be read.
        near_duplicates: of these, how many have a near-duplicate in the corpus.
        exact: of these, how many are there byte for byte.
        share: near_duplicates / tested.
        unreadable: test images that could not be read; they count neither way.
        pairs: near pairs kept (at most KEPT a test image).
        threshold: largest distance of a near pair.
        false_pairs: pairs of pictures of different things expected below THRESHOLD, by the rate measured at 32 pixels.
        max_share: the share that was allowed; None: any.
        passed: whether share <= max_share.
        digest: of pairs and tests.
        existed: whether it had been run before with the same settings, inputs and code.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    name: str
    test: str
    corpus_rows: int
    tested: int
    near_duplicates: int
    exact: int
    share: float
    unreadable: int
    pairs: int
    threshold: float
    false_pairs: float
    max_share: float | None = None
    passed: bool = True
    digest: str
    existed: bool = False

    def check(self) -> Gate:
        """Itself; raises GateError where more near-duplicates were found than allowed."""
        if not self.passed:
            raise GateError(
                f"{self.near_duplicates:,} of {self.tested:,} images of {self.test} ({self.share:.2%}) have a "
                f"near-duplicate in the corpus, more than the {self.max_share:.2%} allowed",
                f"look at {self.uri}/gallery.html; evaluate without them, or allow more (--max-share)",
            )
        return self


class GateConfig(BaseModel):
    """How a gate judges.

    Attributes:
        threshold: largest distance of near-duplicates.
        max_share: largest share of near-duplicates that passes; None: any.
        gallery: pairs in each part of the gallery; 0: no gallery.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=THRESHOLD, ge=0, le=FARTHEST - MARGIN)
    max_share: float | None = Field(default=None, ge=0, le=1)
    gallery: int = Field(default=60, ge=0, le=500)


# --- running ---------------------------------------------------------------------------------------------------------


def run(
    corpus: Corpus,
    test: str,
    config: GateConfig | None = None,
    *,
    name: str = "",
    workers: int | None = None,
    bars: Bars = _no_bars,
) -> Gate:
    """Find the near-duplicates of every image of `test` in the corpus, and write the gate.

    Args:
        corpus: opened corpus; where it is the newest state and has no fingerprints, they are added to it first.
        test: fetched source (DIR/NAME:SPLIT), corpus, or folder of images.
        config: threshold and what is allowed.
        name: of the gate; named like the test set by default.
        workers: threads; all cores by default. The result does not depend on it.
        bars: makes progress bars.

    Raises InputError for what is no test set or has no readable image. The result may have failed: see Gate.check.
    """
    config = config or GateConfig()
    tests = open_test(test)
    if tests.kind == "corpus" and tests.uri == corpus.uri:
        raise InputError(f"{test} is the corpus itself", "use --self to find duplicates inside a corpus")
    place = _place(corpus, name or tests.name)
    recipe = {"verb": "corpus gate", "test": test, "threshold": config.threshold, "fingerprint": fingerprint.VERSION}
    if tests.digest and (known := _known(place, recipe, [corpus.digest, tests.digest])):
        return _judge(known, config, existed=True)
    corpus = with_fingerprints(corpus, bars)
    read = _read(tests, workers, bars)
    inputs = [corpus.digest, tests.digest or read.digest]
    if not tests.digest and (known := _known(place, recipe, inputs)):
        return _judge(known, config, existed=True)
    queries = Queries.of(read.grids)
    hits = _search(corpus, queries, read.ids, config.threshold + MARGIN, workers, bars)
    pairs, table = _tables(corpus, read, hits, config.threshold)
    return _write(corpus, place, tests, read, pairs, table, recipe, inputs, config)


def run_self(
    corpus: Corpus,
    config: GateConfig | None = None,
    *,
    name: str = "self",
    workers: int | None = None,
    bars: Bars = _no_bars,
) -> Gate:
    """Find near-duplicates inside the corpus: every image against those before it in rank order.

    Those found are the ones a corpus without duplicates would drop. Time grows with the square of the rows: a minute
    for 50,000, an hour for 500,000 on two cores.
    """
    config = config or GateConfig()
    place = _place(corpus, name)
    recipe = {"verb": "corpus gate --self", "threshold": config.threshold, "fingerprint": fingerprint.VERSION}
    if known := _known(place, recipe, [corpus.digest]):
        return _judge(known, config, existed=True)
    corpus = with_fingerprints(corpus, bars)
    tests = TestSet("corpus", corpus.uri, name, corpus.digest, corpus)
    read = _read(tests, workers, bars)
    found = [np.empty(0, HIT)]
    with bars("comparing", corpus.rows) as bar:
        for start in range(0, corpus.rows, BLOCK):
            part = Queries.of(read.grids[start : start + BLOCK])
            for first, _, prints in fingerprint.stored(corpus, rows=BLOCK, stop=min(start + BLOCK, corpus.rows)):
                hits = part.search(prints, first, config.threshold + MARGIN, workers)
                hits["query"] += start
                found = [_nearest(np.concatenate([*found, hits[hits["row"] < hits["query"]]]))]
            bar(len(part))
    pairs, table = _tables(corpus, read, found[0], config.threshold)
    return _write(corpus, place, tests, read, pairs, table, recipe, [corpus.digest], config)


def with_fingerprints(corpus: Corpus, bars: Bars = _no_bars) -> Corpus:
    """The corpus with fingerprints where it is the newest state; an older state stays as it is."""
    if fingerprint.has_fingerprints(corpus) or Corpus.open(corpus.uri).tag != corpus.tag:
        return corpus
    with bars("fingerprints", corpus.rows) as bar:
        return fingerprint.add_fingerprints(corpus, bar=bar)


@dataclass
class _Read:
    """A test set in memory: names, ids and luminance (1 kB) of every readable image, names of the others."""

    files: list[str]
    ids: list[str]
    grids: np.ndarray
    unreadable: list[tuple[str, str]]

    @property
    def digest(self) -> str:
        return digest_json(sorted([*zip(self.files, self.ids, strict=True), *self.unreadable]))


_WHOLE = PictureConfig(max_side=0)


def _luminance(image: TestImage) -> np.ndarray | None:
    try:
        data = image.data if image.stored else normalise(image.data, _WHOLE).image
        return fingerprint.luminance(data)
    except (Rejected, InputError):
        return None


def _read(tests: TestSet, workers: int | None, bars: Bars) -> _Read:
    read = _Read([], [], np.empty((0, fingerprint.GRID, fingerprint.GRID), np.uint8), [])
    grids = [read.grids]

    def work(images: list[TestImage]) -> tuple[list[TestImage], list[np.ndarray | None]]:
        return images, [_luminance(image) for image in images]

    with bars("reading the test set", None) as bar:
        for images, parts in fingerprint.in_order(work, tests.batches(), workers):
            for image, grid in zip(images, parts, strict=True):
                if grid is None:
                    read.unreadable.append((image.file, image.id))
                else:
                    read.files.append(image.file)
                    read.ids.append(image.id)
            grids.append(np.stack(kept) if (kept := [g for g in parts if g is not None]) else read.grids)
            bar(len(images))
    read.grids = np.concatenate(grids)
    if not read.files:
        raise InputError(
            f"{tests.uri} holds no readable image", "pass a fetched source, a corpus or a folder of images"
        )
    return read


def _search(
    corpus: Corpus, queries: Queries, ids: list[str], threshold: float, workers: int | None, bars: Bars
) -> np.ndarray:
    """The nearest pairs of each query in the whole corpus, in a stream of blocks; exact ones at distance 0."""
    found = np.empty(0, HIT)
    wanted = pa.array(ids)
    place = {id_: i for i, id_ in reversed(list(enumerate(ids)))}
    again = [(i, place[id_]) for i, id_ in enumerate(ids) if place[id_] != i]
    with bars("comparing", corpus.rows) as bar:
        for first, block_ids, prints in fingerprint.stored(corpus, rows=BLOCK):
            hits = queries.search(prints, first, threshold, workers)
            same = pc.index_in(pa.array(block_ids), wanted).to_numpy(zero_copy_only=False)
            rows = np.flatnonzero(~np.isnan(same.astype(float)))
            exact = [(int(same[r]), first + int(r)) for r in rows]
            exact += [(i, row) for i, known in again for query, row in exact if query == known]
            if exact:
                extra = np.array([(query, row, -1.0, False) for query, row in exact], HIT)  # -1 sorts first: exact
                hits = np.concatenate([extra, hits])
            found = _nearest(np.concatenate([found, hits]))
            bar(len(block_ids))
    return found


def _nearest(hits: np.ndarray) -> np.ndarray:
    """Each (query, row) once, at most KEPT rows a query, the nearest; ordered by (query, distance, row)."""
    hits = hits[np.lexsort((hits["distance"], hits["row"], hits["query"]))]
    hits = hits[(np.diff(hits["query"], prepend=-1) != 0) | (np.diff(hits["row"], prepend=-1) != 0)]
    hits = hits[np.lexsort((hits["row"], hits["distance"], hits["query"]))]
    starts = np.flatnonzero(np.diff(hits["query"], prepend=-1))
    nth = np.arange(len(hits)) - np.repeat(starts, np.diff(starts, append=len(hits)))
    return hits[nth < KEPT]


def _tables(corpus: Corpus, read: _Read, hits: np.ndarray, threshold: float) -> tuple[pa.Table, pa.Table]:
    """Tables in the schemas PAIRS and TESTS."""
    rows, where = np.unique(hits["row"], return_inverse=True)
    known = corpus.images.take(rows.tolist(), columns=["id", "source"]) if len(rows) else None
    columns: dict[str, Any] = {
        "test_file": [read.files[i] for i in hits["query"]],
        "test_id": [read.ids[i] for i in hits["query"]],
        "corpus_id": known["id"].take(where) if known else [],
        "corpus_row": hits["row"],
        "corpus_source": known["source"].take(where) if known else [],
        "distance": np.maximum(hits["distance"], 0),
        "mirrored": hits["mirrored"],
        "exact": hits["distance"] < 0,
        "near": hits["distance"] <= threshold,
    }
    pairs = pa.table({f.name: pa.array(_plain(columns[f.name]), f.type) for f in PAIRS}, schema=PAIRS)
    nearest = np.full(len(read.files), np.inf)
    np.minimum.at(nearest, hits["query"], np.maximum(hits["distance"], 0))
    status = np.where(nearest <= threshold, "near-duplicate", "clean").tolist()
    distance = [None if np.isinf(d) else d for d in nearest.tolist()] + [None] * len(read.unreadable)
    tests = pa.table(
        {
            "file": read.files + [file for file, _ in read.unreadable],
            "id": read.ids + [id_ for _, id_ in read.unreadable],
            "status": status + ["unreadable"] * len(read.unreadable),
            "distance": pa.array(distance, pa.float32()),
        },
        schema=TESTS,
    )
    return pairs, tests


def _plain(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


# --- writing and reading ---------------------------------------------------------------------------------------------


def _place(corpus: Corpus, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"{name!r} is no name for a gate", "choose one of letters, digits, dots, - and _ (--name)")
    return storage.join(corpus.uri, "gates", name)


def _known(place: str, recipe: dict[str, Any], inputs: list[str]) -> Manifest | None:
    """The manifest of this very gate (settings, inputs, code), where it has been run."""
    if not storage.exists(f"{place}.json"):
        return None
    manifest = Manifest.read(f"{place}.json")
    same = (manifest.recipe, manifest.inputs, manifest.code) == (recipe, inputs, code_version())
    return manifest if same else None


def _judge(manifest: Manifest, config: GateConfig, *, existed: bool = False) -> Gate:
    facts = {k: v for k, v in manifest.facts.items() if k in Gate.model_fields}
    passed = config.max_share is None or facts["share"] <= config.max_share
    return Gate(
        **{**facts, "max_share": config.max_share, "passed": passed},
        uri=manifest.uri,
        digest=manifest.digest,
        existed=existed,
    )


def _write(
    corpus: Corpus,
    place: str,
    tests: TestSet,
    read: _Read,
    pairs: pa.Table,
    table: pa.Table,
    recipe: dict[str, Any],
    inputs: list[str],
    config: GateConfig,
) -> Gate:
    near = pairs.filter(pairs["near"])
    found = int(pc.sum(pc.equal(table["status"], "near-duplicate")).as_py() or 0)
    exact = len(pc.unique(near.filter(near["exact"])["test_file"]))
    share = found / len(read.files)
    facts = {
        "name": place.rpartition("/")[2],
        "test": recipe.get("test", "the corpus itself"),
        "corpus_tag": corpus.tag,
        "corpus_rows": corpus.rows,
        "tested": len(read.files),
        "near_duplicates": found,
        "exact": exact,
        "share": share,
        "unreadable": len(read.unreadable),
        "pairs": len(near),
        "threshold": config.threshold,
        "false_pairs": FALSE_ALARMS * len(read.files) * corpus.rows,
        "max_share": config.max_share,
        "passed": config.max_share is None or share <= config.max_share,
    }
    files = {"pairs.parquet": _parquet(pairs), "tests.parquet": _parquet(table)}
    page = gallery.page(corpus, tests, pairs, facts, config.gallery) if config.gallery else None
    storage.remove(f"{place}.json")  # from here to the end there is no gate of this name
    for name, data in files.items():
        storage.write_bytes(storage.join(place, name), data)
    if page is not None:
        storage.write_bytes(storage.join(place, "gallery.html"), page)
    digest = digest_bytes("".join(digest_bytes(data) for data in files.values()).encode())
    manifest = Manifest(kind="gate", uri=place, digest=digest, inputs=inputs, recipe=recipe, facts=facts)
    manifest.write(f"{place}.json")
    return _judge(manifest, config)


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _table(corpus: Corpus | str, name: str, file: str) -> pa.Table:
    uri = corpus.uri if isinstance(corpus, Corpus) else storage.normalise(corpus.partition("@")[0])
    place = storage.join(uri, "gates", name)
    if not storage.exists(f"{place}.json"):
        folder = storage.join(uri, "gates")
        there = [n.removesuffix(".json") for n in storage.list_files(folder) if n.endswith(".json") and "/" not in n]
        cure = f"choose one of: {', '.join(there)}" if there else "run `tenfold corpus gate` first"
        raise InputError(f"{uri} has no gate {name!r}", cure)
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(place, file))))


def duplicates(corpus: Corpus | str, name: str, *, by: Literal["id", "file"] = "id") -> set[str]:
    """Test images that have a near-duplicate in the corpus, by id (sha256 of the file, as in a corpus) or by file.

    Raises InputError where there is no gate of that name.
    """
    tests = _table(corpus, name, "tests.parquet")
    return set(tests.filter(pc.equal(tests["status"], "near-duplicate"))[by].to_pylist())


def clean_test_ids(corpus: Corpus | str, name: str, *, by: Literal["id", "file"] = "id") -> list[str]:
    """Test images without a near-duplicate in the corpus, in the order of the test set (D-16)."""
    tests = _table(corpus, name, "tests.parquet")
    return [str(value) for value in tests.filter(pc.equal(tests["status"], "clean"))[by].to_pylist()]


def near_pairs(corpus: Corpus | str, name: str) -> Iterator[dict[str, Any]]:
    """The near pairs (schema PAIRS), the nearest first."""
    pairs = _table(corpus, name, "pairs.parquet")
    yield from pairs.filter(pairs["near"]).sort_by("distance").to_pylist()
