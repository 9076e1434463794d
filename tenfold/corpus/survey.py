"""The numbers of a corpus: one streaming pass over its columns (images are not read), for the report and for `info`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tenfold import storage
from tenfold.corpus.hierarchy import Hierarchy, HierarchyStatistics, state
from tenfold.corpus.table import Corpus, Flags
from tenfold.corpus.tail import Tail, tail
from tenfold.errors import TenfoldError
from tenfold.manifest import Manifest

SAMPLES = 5  # rows remembered for each class
BARS = 24  # most bars of a histogram
INGEST = ("files", "repeats", "missing", "unlisted", "image_bytes")  # facts of the ingested state


class Histogram(BaseModel):
    """Counts of values.

    Attributes:
        labels: what each count is of, as text: a value, or `from-to` with both ends included.
        counts: how many.
    """

    model_config = ConfigDict(frozen=True)

    labels: list[str]
    counts: list[int]


class Given(BaseModel):
    """Labels as they were given, before ancestors were added.

    Attributes:
        tag, digest: the state that has them.
        labels: of all images.
        per_image: histogram of labels an image.
        votes: histogram of the votes of single labels.
        agreement: images by the share of their votes that the most voted label has; None where every label has one
            vote, as labels from the web have: they say nothing about agreement.
        unanimous: share of images with votes in which one label has all of them; None as above.
    """

    model_config = ConfigDict(frozen=True)

    tag: str
    digest: str
    labels: int
    labels_per_image: float
    per_image: Histogram
    votes: Histogram
    agreement: Histogram | None
    unanimous: float | None


class Sizes(BaseModel):
    """Sizes of the stored images in pixels.

    Attributes:
        different: how many different sizes there are.
        width, height: smallest, median and largest.
        short_side: histogram.
        commonest: the commonest size and how many images have it.
        mean_bytes: mean of the encoded bytes of the first 512 images.
    """

    model_config = ConfigDict(frozen=True)

    different: int
    width: tuple[int, int, int]
    height: tuple[int, int, int]
    short_side: Histogram
    commonest: tuple[int, int, int]
    mean_bytes: int


class Quarantined(BaseModel):
    """Files that ingest turned away for one reason, with some of them as examples (file, detail)."""

    model_config = ConfigDict(frozen=True)

    reason: str
    files: int
    examples: list[tuple[str, str]]


class Numbers(BaseModel):
    """Everything that the report says in numbers.

    Attributes:
        name: of the corpus folder.
        tag, digest, created, code: of the state.
        images, labels, classes: totals; `labels_per_image` is their mean.
        per_image: histogram of labels an image.
        given: labels before ancestors were added; the state itself where it was not closed, None where that state is
            out of reach (a copied subset).
        closed: how ancestors got their votes (`sum`, `max`), empty where the state was not closed.
        tail, hierarchy, sizes: see there.
        flags: name of a flag -> images that have it (`table.Flags`).
        sources: the commonest first parts of `source` and their images, at most twelve.
        ingest: what ingest counted, from the manifest of its state; empty where it is out of reach.
        quarantine: by reason, most files first.
        gates: manifests of the near-duplicate gate, `facts` and digest.
        states: manifests of all states, oldest first.
        per_class: class name -> (images by given labels, images by labels); the first is -1 where `given` is None.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    tag: str
    digest: str
    created: str
    code: str
    images: int
    labels: int
    classes: int
    labels_per_image: float
    per_image: Histogram
    given: Given | None
    closed: str
    tail: Tail
    hierarchy: HierarchyStatistics
    sizes: Sizes
    flags: dict[str, int]
    sources: list[tuple[str, int]]
    ingest: dict[str, int]
    quarantine: list[Quarantined]
    gates: list[dict[str, Any]]
    states: list[dict[str, Any]]
    per_class: dict[str, tuple[int, int]]


@dataclass
class _Labels:
    """Running counts over the label columns of one state."""

    counts: np.ndarray
    per_image: np.ndarray
    votes: Counter[float]
    agreement: Counter[float]

    @classmethod
    def of(cls, classes: int) -> _Labels:
        return cls(np.zeros(classes, np.int64), np.zeros(1, np.int64), Counter(), Counter())

    def add(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Count a batch; returns its lengths and labels."""
        lengths = batch["labels"].value_lengths().to_numpy(zero_copy_only=False)
        labels = batch["labels"].flatten().to_numpy(zero_copy_only=False)
        votes = batch["votes"].flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        self.counts += np.bincount(labels, minlength=len(self.counts))
        longest = np.bincount(lengths, minlength=len(self.per_image))
        longest[: len(self.per_image)] += self.per_image
        self.per_image = longest
        for value, times in zip(*np.unique(votes.round(3), return_counts=True), strict=True):
            self.votes[float(value)] += int(times)
        if len(votes):
            first = (np.cumsum(lengths) - lengths)[lengths > 0]
            most, total = np.maximum.reduceat(votes, first), np.add.reduceat(votes, first)
            share = (most / np.where(total > 0, total, np.inf)).round(3)
            for value, times in zip(*np.unique(share, return_counts=True), strict=True):
                self.agreement[float(value)] += int(times)
        return lengths, labels

    def given(self, corpus: Corpus) -> Given:
        """What was counted, for a state with labels as they were given."""
        labels, voted = int(self.counts.sum()), self.votes.keys() - {1.0}
        return Given(
            tag=corpus.tag,
            digest=corpus.digest,
            labels=labels,
            labels_per_image=round(labels / max(corpus.rows, 1), 4),
            per_image=_of_counts(self.per_image),
            votes=_of_values(self.votes),
            agreement=_shares(self.agreement) if voted else None,
            unanimous=round(self.agreement[1.0] / sum(self.agreement.values()), 4) if voted else None,
        )


def survey(corpus: Corpus) -> tuple[Numbers, np.ndarray]:
    """Count everything in a state of a corpus, streaming.

    Returns:
        the numbers, and for each class the first `SAMPLES` rows that have it: int64 [C, SAMPLES], -1 where there are
        fewer. Rows lie in random order, so these are random samples.
    """
    classes = corpus.classes
    known = Hierarchy.of(classes)
    now = _Labels.of(len(classes))
    rows_of = np.full((len(classes), SAMPLES), -1, np.int64)
    found = np.zeros(len(classes), np.int64)
    sizes: Counter[tuple[int, int]] = Counter()
    sources: Counter[str] = Counter()
    flags = np.zeros(32, np.int64)
    seen = 0
    for batch in corpus.batches(["labels", "votes", "width", "height", "source", "flags"]):
        lengths, flat = now.add(batch)
        _remember(np.repeat(np.arange(seen, seen + batch.num_rows), lengths), flat, rows_of, found)
        seen += batch.num_rows
        width, height = (batch[c].to_numpy(zero_copy_only=False).astype(np.int64) for c in ("width", "height"))
        for value, times in zip(*np.unique(width << 32 | height, return_counts=True), strict=True):
            sizes[int(value) >> 32, int(value) & 0xFFFFFFFF] += int(times)
        sources.update(part.split("/", 1)[0].split("#", 1)[0] for part in batch["source"].to_pylist())
        bits = batch["flags"].to_numpy(zero_copy_only=False).astype(np.uint32)
        if bits.any():
            flags += np.array([np.count_nonzero(bits & (1 << bit)) for bit in range(32)])
    closed = corpus.manifest.facts.get("closed") or {}
    before = state(corpus, closed["of"], closed["digest"]) if closed else corpus
    was = now
    if before is not None and before is not corpus:
        was = _Labels.of(len(classes))
        for batch in before.batches(["labels", "votes"]):
            was.add(batch)
    states = _manifests(corpus, "manifests", "corpus")
    labels = int(now.counts.sum())
    given = was.counts if before is not None else np.full(len(classes), -1)
    numbers = Numbers(
        name=corpus.uri.rstrip("/").rsplit("/", 1)[-1],
        tag=corpus.tag,
        digest=corpus.digest,
        created=corpus.manifest.created,
        code=corpus.manifest.code,
        images=corpus.rows,
        labels=labels,
        classes=len(classes),
        labels_per_image=round(labels / max(corpus.rows, 1), 4),
        per_image=_of_counts(now.per_image),
        given=was.given(before) if before is not None else None,
        closed=str(closed.get("votes", "")),
        tail=tail(
            now.counts,
            corpus.rows,
            classes,
            hierarchy=known.statistics,
            given=int(was.counts.sum()) if was is not now else None,
        ),
        hierarchy=known.statistics,
        sizes=_sizes(corpus, sizes),
        flags={_flag(bit): int(count) for bit, count in enumerate(flags) if count},
        sources=sources.most_common(12),
        ingest={k: v for m in states[:1] for k, v in m.facts.items() if k in INGEST and isinstance(v, int)},
        quarantine=_quarantine(corpus),
        gates=[{"digest": m.digest, **m.facts} for m in _manifests(corpus, "gates", "gate")],
        states=[{"tag": str(m.facts.get("tag", "")), **m.model_dump(exclude={"uri", "kind"})} for m in states],
        per_class={n: (int(a), int(b)) for n, a, b in zip(classes.names, given, now.counts, strict=True)},
    )
    return numbers, rows_of


def _remember(rows: np.ndarray, labels: np.ndarray, rows_of: np.ndarray, found: np.ndarray) -> None:
    """Enter rows for classes that have fewer than SAMPLES yet; `rows_of` and `found` are changed."""
    wanted = found[labels] < SAMPLES
    rows, labels = rows[wanted], labels[wanted]
    order = np.argsort(labels, kind="stable")
    rows, labels = rows[order], labels[order]
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    nth = np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))
    slot = found[labels] + nth
    fits = slot < SAMPLES
    rows_of[labels[fits], slot[fits]] = rows[fits]
    found += np.bincount(labels[fits], minlength=len(found))


def _flag(bit: int) -> str:
    known = {flag.value: str(flag.name).lower().replace("_", " ") for flag in Flags}
    return known.get(1 << bit, f"bit {bit}")


def _of_counts(counts: np.ndarray) -> Histogram:
    """Histogram of 0, 1, 2, … by their counts, in at most BARS bars, without empty ones at the ends."""
    return _of_values(Counter({float(i): int(c) for i, c in enumerate(counts) if c}), whole=True)


def _of_values(values: Counter[float], *, whole: bool = False) -> Histogram:
    """Histogram of values: one bar a value where they are few; `whole` numbers keep the empty bars between them."""
    if not values:
        return Histogram(labels=[], counts=[])
    low, high = min(values), max(values)
    if (whole and high - low < BARS) or (not whole and len(values) <= BARS):
        keys = [low + i for i in range(int(high - low) + 1)] if whole else sorted(values)
        return Histogram(labels=[f"{k:g}" for k in keys], counts=[values.get(k, 0) for k in keys])
    step = (high - low + whole) / BARS
    step = float(np.ceil(step)) if whole else step
    counts = [0] * BARS
    for value, times in values.items():
        counts[min(int((value - low) / step), BARS - 1)] += times
    ends = [(low + i * step, low + (i + 1) * step - whole) for i in range(BARS)]
    used = max(i for i, c in enumerate(counts) if c) + 1
    return Histogram(
        labels=[f"{a:g}" if a == b else f"{a:.4g}-{b:.4g}" for a, b in ends[:used]],
        counts=counts[:used],
    )


def _shares(shares: Counter[float]) -> Histogram:
    """Shares of 0 to 1 in per cent: one bar a value where they are few, else bars of ten per cent."""
    if len(shares) <= 8:
        return Histogram(
            labels=[f"{100 * k:.3g} %" for k in sorted(shares)], counts=[shares[k] for k in sorted(shares)]
        )
    counts = [0] * 10
    for share, times in shares.items():
        counts[min(int(share * 10), 9)] += times
    return Histogram(labels=[f"{10 * i}-{10 * i + 10} %" for i in range(10)], counts=counts)


def _sizes(corpus: Corpus, sizes: Counter[tuple[int, int]]) -> Sizes:
    def spread(axis: int) -> tuple[int, int, int]:
        by: Counter[int] = Counter()
        for size, times in sizes.items():
            by[size[axis]] += times
        keys = sorted(by)
        reached = np.cumsum([by[k] for k in keys])
        return keys[0], keys[int(np.searchsorted(reached, reached[-1] / 2))], keys[-1]

    short: Counter[float] = Counter()
    for size, times in sizes.items():
        short[float(min(size))] += times
    first = corpus.images.to_table(columns=["image"], limit=512)["image"].combine_chunks()
    (width, height), most = sizes.most_common(1)[0]
    return Sizes(
        different=len(sizes),
        width=spread(0),
        height=spread(1),
        short_side=_of_values(short, whole=len(short) > BARS),
        commonest=(width, height, most),
        mean_bytes=int(sum(len(image.as_buffer()) for image in first) / len(first)),
    )


def _quarantine(corpus: Corpus) -> list[Quarantined]:
    table = corpus.quarantine()
    reasons = Counter(table["reason"].to_pylist())
    examples: dict[str, list[tuple[str, str]]] = {reason: [] for reason in reasons}
    for file, reason, detail in zip(*(table[c].to_pylist() for c in ("file", "reason", "detail")), strict=True):
        if len(examples[reason]) < 3:
            examples[reason].append((file, detail))
    return [Quarantined(reason=r, files=c, examples=examples[r]) for r, c in reasons.most_common()]


def _manifests(corpus: Corpus, folder: str, kind: str) -> list[Manifest]:
    """Manifests of a kind in a folder of the corpus, oldest first; what is none is passed over."""
    where = storage.join(corpus.uri, folder)
    found = []
    for path in storage.list_files(where) if storage.exists(where) else []:
        if path.endswith(".json") and "/" not in path:
            try:
                manifest = Manifest.read(storage.join(where, path))
            except TenfoldError:
                continue
            if manifest.kind == kind:
                found.append(manifest)
    found.sort(key=lambda m: m.created)
    ordered: list[Manifest] = []
    while found:  # `created` has whole seconds, so what a state was made from decides
        made = {m.digest for m in found}
        following = next((m for m in found if not made & set(m.inputs) - {m.digest}), found[0])
        found.remove(following)
        ordered.append(following)
    return ordered
