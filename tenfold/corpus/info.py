"""What a corpus holds, in numbers: `tenfold corpus info`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.compute as pc
from pydantic import BaseModel

from tenfold import storage
from tenfold.corpus.table import Corpus, Flags
from tenfold.corpus.tail import Tail, tail
from tenfold.manifest import Manifest

_CUTS = (0.0, 0.05, 0.5, 0.95, 1.0)


class State(BaseModel):
    """One tagged state of a corpus."""

    tag: str
    digest: str
    rows: int
    labels: int
    created: str
    newest: bool


class Info(BaseModel):
    """Numbers of one state of a corpus.

    Attributes:
        uri: the corpus.
        tag: of the state.
        digest: of its content.
        rows: images.
        classes: classes, with or without images.
        used_classes: classes that have images.
        depth: edges on the longest way to a root; 0 without a hierarchy.
        labels: labels of all images together.
        labels_an_image: number of images by number of labels.
        tail: how the labels are spread over the classes, with the paper's cut-offs (D-09).
        widths: least, 5 %, median, 95 % and greatest width of the stored images, pixels.
        heights: the same of heights.
        image_bytes: of all stored images; None where an older ingest did not say.
        flags: number of images by flag.
        salt: of the order.
        input: what was ingested.
        files: pictures taken; more than rows where the same bytes came under several names.
        quarantined: number of files by reason.
        states: all states.
    """

    uri: str
    tag: str
    digest: str
    rows: int
    classes: int
    used_classes: int
    depth: int
    labels: int
    labels_an_image: dict[int, int]
    tail: Tail
    widths: list[int]
    heights: list[int]
    image_bytes: int | None
    flags: dict[str, int]
    salt: str
    input: str
    files: int
    quarantined: dict[str, int]
    states: list[State]

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of each number, for people."""
        mean = self.labels / max(1, self.rows)
        spread = ", ".join(f"{count:,} with {labels}" for labels, count in list(self.labels_an_image.items())[:8])
        spread += ", …" if len(self.labels_an_image) > 8 else ""
        bad = sum(self.quarantined.values())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.quarantined.items())
        each = f" ({self.image_bytes / max(1, self.rows):,.0f} bytes an image)" if self.image_bytes is not None else ""
        lines = [
            ("corpus", self.uri),
            ("digest", self.digest),
            ("images", f"{self.rows:,}" + (f" (of {self.files:,} files)" if self.files > self.rows else "")),
            ("classes", f"{self.classes:,}, {self.used_classes:,} with images, depth {self.depth}"),
            ("labels", f"{self.labels:,}, {mean:.2f} an image: {spread}"),
            (
                "tail",
                f"{self.tail.below_100:,} classes with fewer than 100 images, {self.tail.below_20:,} with fewer "
                "than 20 (the paper's JFT-300M: more than 3,000 and about 2,000)",
            ),
            ("width", _spread(self.widths)),
            ("height", _spread(self.heights)),
            ("bytes", f"{self.image_bytes:,}{each}" if self.image_bytes is not None else "unknown"),
            ("flags", ", ".join(f"{count:,} {name}" for name, count in self.flags.items()) or "none"),
            ("input", f"{self.input} (salt {self.salt!r})"),
            ("quarantine", f"{bad:,} files: {reasons}" if bad else "empty"),
        ]
        for state in self.states:
            mark = " <- newest" if state.newest else ""
            lines.append(
                ("state", f"{state.tag}: {state.rows:,} images, {state.labels:,} labels, {state.created}{mark}")
            )
        return lines


def _spread(values: list[int]) -> str:
    low, p5, median, p95, high = values
    return f"{median:,} px in the middle, {p5:,} to {p95:,} for nine in ten, {low:,} to {high:,} in all"


def describe(corpus: Corpus) -> Info:
    """Read the small columns of a state, in a stream, and count."""
    widths: Counter[int] = Counter()
    heights: Counter[int] = Counter()
    lengths: Counter[int] = Counter()
    flags: Counter[int] = Counter()
    images = np.zeros(len(corpus.classes), np.int64)
    for batch in corpus.batches(["width", "height", "labels", "flags"]):
        for counter, column in (
            (widths, batch["width"]),
            (heights, batch["height"]),
            (lengths, batch["labels"].value_lengths()),
            (flags, batch["flags"]),
        ):
            values, counts = np.unique(column.to_numpy(zero_copy_only=False), return_counts=True)
            counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        labels = batch["labels"].flatten().to_numpy(zero_copy_only=False)
        images += np.bincount(labels, minlength=len(images))
    states = _states(corpus)
    first = storage.join(corpus.uri, "manifests", "ingested.json")
    begun = Manifest.read(first).facts if storage.exists(first) else corpus.manifest.facts
    faults = corpus.quarantine()["reason"]
    return Info(
        uri=corpus.uri,
        tag=corpus.tag,
        digest=corpus.digest,
        rows=corpus.rows,
        classes=len(corpus.classes),
        used_classes=int((images > 0).sum()),
        depth=_depth(corpus.classes.parents),
        labels=sum(length * count for length, count in lengths.items()),
        labels_an_image=dict(sorted(lengths.items())),
        tail=tail(images, corpus.rows, corpus.classes),
        widths=_quantiles(widths),
        heights=_quantiles(heights),
        image_bytes=begun.get("image_bytes"),
        flags={
            flag.name.lower(): count
            for flag in Flags
            if flag.name and (count := sum(n for bits, n in flags.items() if bits & flag))
        },
        salt=str(corpus.manifest.facts["salt"]),
        input=str(begun.get("input", "unknown")),
        files=int(begun.get("files", corpus.rows)),
        quarantined={v["values"]: v["counts"] for v in pc.value_counts(faults).to_pylist()},
        states=states,
    )


def _states(corpus: Corpus) -> list[State]:
    folder = storage.join(corpus.uri, "manifests")
    manifests = [Manifest.read(storage.join(folder, name)) for name in storage.list_files(folder)]
    newest = Corpus.open(corpus.uri).digest
    return [
        State(
            tag=m.facts["tag"],
            digest=m.digest,
            rows=m.facts["rows"],
            labels=m.facts["labels"],
            created=m.created,
            newest=m.digest == newest,
        )
        for m in sorted(manifests, key=lambda m: (m.created, m.facts["images_version"]))
    ]


def _quantiles(counts: Counter[int]) -> list[int]:
    """Values at _CUTS of a distribution given as counts."""
    values = np.array(sorted(counts))
    sums = np.cumsum([counts[v] for v in values.tolist()])
    at = np.searchsorted(sums, np.maximum(1, np.ceil(np.array(_CUTS) * sums[-1])))
    return [int(v) for v in values[at]]


def _depth(parents: tuple[tuple[int, ...], ...]) -> int:
    """Edges on the longest way up; a cycle, which `corpus close` refuses, is not followed round."""
    depth = [-1] * len(parents)
    for start in range(len(parents)):
        stack = [start]
        while stack:
            node = stack[-1]
            if depth[node] == -1:
                depth[node] = -2  # under way
                stack += [p for p in parents[node] if depth[p] == -1]
            else:
                stack.pop()
                if depth[node] == -2:
                    depth[node] = max((depth[p] + 1 for p in parents[node] if depth[p] >= 0), default=0)
    return max(depth, default=0)
