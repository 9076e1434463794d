"""The corpus report: one HTML file without scripts and requests that says what a corpus is, and its numbers as JSON.

    OUT.html   for people: light and dark, desktop, phone and paper
    OUT.json   a manifest of kind "report" whose facts are the same numbers (survey.Numbers); written last

The same state gives the same HTML, byte for byte.
"""

from __future__ import annotations

import base64
import io
import json
import posixpath
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from tenfold import storage
from tenfold.corpus import charts
from tenfold.corpus.hierarchy import state
from tenfold.corpus.survey import Numbers, survey
from tenfold.corpus.table import Corpus
from tenfold.corpus.tail import CUT_OFFS
from tenfold.corpus.tree import FIRST, class_tree, lines
from tenfold.errors import InputError
from tenfold.manifest import Manifest, digest_bytes

if TYPE_CHECKING:
    from jinja2 import Template

SHEET = 60  # images of the contact sheet
THUMBNAILS = 420  # images beside classes, all together
SIDE = 112  # longest side of an embedded image in pixels; shown at up to 96 px
_MEASURES = ("found", "tested", "test", "passed")  # facts of a gate that have their own place in the report


class Report(BaseModel):
    """Where a report lies.

    Attributes:
        html, json_: paths or addresses.
        digest: of the HTML file.
        corpus: digest of the state it describes.
        sentence: what the corpus is.
    """

    model_config = ConfigDict(frozen=True)

    html: str
    json_: str
    digest: str
    corpus: str
    sentence: str


@dataclass(frozen=True)
class Picture:
    """An image to embed.

    Attributes:
        uri: a data address.
        alt: what it is: row, and labels with their votes.
        caption: the label with most votes.
        small: shown larger than it is, so its pixels should stay sharp.
    """

    uri: str
    alt: str
    caption: str
    small: bool


def report(corpus: Corpus, out: str) -> Report:
    """Write the report of a state of a corpus to `out` (…​.html) and its numbers beside it (…​.json).

    Reads the label columns in a stream and some hundred images. Each file appears whole or not at all. Raises
    InputError where `out` is no .html path.
    """
    if not out.endswith(".html"):
        raise InputError(f"{out} does not end in .html", "name the report file, for example --out report.html")
    out = storage.normalise(out)
    beside = out.removesuffix(".html") + ".json"
    numbers, rows_of = survey(corpus)
    html = render(corpus, numbers, rows_of).encode()
    storage.write_bytes(out, html)
    manifest = Manifest(
        kind="report",
        uri=out,
        digest=digest_bytes(html),
        inputs=[corpus.digest, *(gate["digest"] for gate in numbers.gates)],
        recipe={"verb": "corpus report"},
        facts=numbers.model_dump(mode="json"),
    )
    manifest.write(beside)
    return Report(html=out, json_=beside, digest=manifest.digest, corpus=corpus.digest, sentence=sentence(numbers))


def sentence(c: Numbers) -> str:
    """What the corpus is, in one sentence."""
    text = f"{c.images:,} images in random order, labelled with {c.classes:,} classes"
    if c.closed and c.given:
        text += (
            f": {c.given.labels_per_image:.2f} labels an image as given, "
            f"{c.labels_per_image:.2f} with all ancestors along a hierarchy {c.hierarchy.depth} deep"
        )
    else:
        text += f": {c.labels_per_image:.2f} labels an image"
        text += ", ancestors included" if c.closed else ""
    return text + "."


def render(corpus: Corpus, numbers: Numbers, rows_of: np.ndarray) -> str:
    """The HTML page.

    Args:
        corpus: the state, for its images.
        numbers, rows_of: of `survey`.
    """
    classes = corpus.classes
    now = np.array([numbers.per_class[name][1] for name in classes.names])
    given = np.array([numbers.per_class[name][0] for name in classes.names])
    both = bool(numbers.closed and numbers.given)
    top, shown = class_tree(classes, now)
    beside = _beside_classes(shown, rows_of)
    wanted = sorted({*range(min(SHEET, corpus.rows)), *(row for rows in beside.values() for row in rows)})
    pictures = dict(zip(wanted, _pictures(corpus, wanted), strict=True))
    tags = {s["digest"]: s["tag"] for s in numbers.states}
    page = _template().render(
        c=numbers,
        sentence=sentence(numbers),
        quarantined=sum(q.files for q in numbers.quarantine),
        notes=_notes(numbers),
        sheet=[pictures[row] for row in range(min(SHEET, corpus.rows))],
        samples={index: [pictures[row] for row in rows] for index, rows in beside.items()},
        tree=list(lines(top)),
        top=top,
        first=FIRST,
        shown_classes=len(shown),
        names=classes.names,
        titles=classes.titles,
        now=now.tolist(),
        given=given.tolist(),
        largest=int(now.max(initial=1)) or 1,
        before_chart=both,
        gains=_gains(classes.titles, given, now) if both else [],
        gates=[_gate(gate) for gate in numbers.gates],
        states=numbers.states,
        tags=tags,
        salt=corpus.manifest.facts.get("salt", ""),
        commands=_commands(numbers),
        recipes=json.dumps({s["tag"]: s["recipe"] for s in numbers.states}, indent=1, ensure_ascii=False),
        **_charts(numbers, now, given, both),
    )
    return page + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tenfold.corpus", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html.j2")


def _gains(titles: Sequence[str], given: np.ndarray, now: np.ndarray) -> list[tuple[str, int, int]]:
    """The classes that closing gave most images: title, images before and after."""
    order = np.argsort(given - now, kind="stable")[:7]
    return [(titles[i], int(given[i]), int(now[i])) for i in order if now[i] > given[i]]


def _charts(c: Numbers, now: np.ndarray, given: np.ndarray, both: bool) -> dict[str, Any]:
    per_image = {"with ancestors": c.per_image} if both else {"labels": c.per_image}
    if both and c.given:
        per_image["as given"] = c.given.per_image
    labels, series = _aligned(per_image)
    votes = c.given.votes if c.given else None
    agreement = c.given.agreement if c.given else None
    ranked = {"with ancestors": now, "as given": given} if both else {"labels": now}
    return {
        "per_image_chart": charts.bars(
            labels, series, what="Histogram of labels an image", x="labels an image", y="images"
        ),
        "votes_chart": votes
        and len(votes.labels) > 1
        and charts.bars(
            votes.labels, {"labels": votes.counts}, what="Histogram of the votes of labels", x="votes", y="labels"
        ),
        "agreement_chart": agreement
        and charts.bars(
            agreement.labels,
            {"images": agreement.counts},
            what="Histogram of the share of votes on the first label of an image",
            x="share of votes",
            y="images",
        ),
        "tail_chart": charts.rank_frequency(
            ranked, CUT_OFFS, what="Images of each class against its rank", x="rank of the class", y="images"
        ),
        "sizes_chart": charts.bars(
            c.sizes.short_side.labels,
            {"images": c.sizes.short_side.counts},
            what="Histogram of the short side",
            x="pixels",
            y="images",
        ),
    }


def _aligned(histograms: dict[str, Any]) -> tuple[list[str], dict[str, list[int]]]:
    """Histograms of whole numbers over the same labels; where one is binned they stay apart, the first alone."""
    if any("-" in label for h in histograms.values() for label in h.labels):
        name, first = next(iter(histograms.items()))
        return first.labels, {name: first.counts}
    counts = {name: dict(zip(map(int, h.labels), h.counts, strict=True)) for name, h in histograms.items()}
    keys = sorted({k for values in counts.values() for k in values})
    every = list(range(keys[0], keys[-1] + 1)) if keys else []
    return [str(k) for k in every], {name: [values.get(k, 0) for k in every] for name, values in counts.items()}


def _beside_classes(shown: Sequence[int], rows_of: np.ndarray) -> dict[int, list[int]]:
    """Rows to show beside each class: five where classes are few, else three, until THUMBNAILS are used up."""
    each = 5 if len(shown) * 5 <= THUMBNAILS else 3
    chosen: dict[int, list[int]] = {}
    left = THUMBNAILS
    for index in shown:
        rows = [int(row) for row in rows_of[index] if row >= 0][: min(each, left)]
        left -= len(rows)
        chosen[index] = rows
    return chosen


def _pictures(corpus: Corpus, rows: Sequence[int]) -> Iterable[Picture]:
    """The images of some rows, small, with their labels as given (where that state is in reach)."""
    closed = corpus.manifest.facts.get("closed") or {}
    source = (state(corpus, closed["of"], closed["digest"]) if closed else None) or corpus
    titles = source.classes.titles
    for start in range(0, len(rows), 64):
        part = list(rows[start : start + 64])
        images = corpus.images.take(part, columns=["image"])["image"].to_pylist()
        labels = source.images.take(part, columns=["labels", "votes"]).to_pylist()
        for row, image, given in zip(part, images, labels, strict=True):
            pairs = sorted(zip(given["votes"], given["labels"], strict=True), key=lambda p: (-p[0], p[1]))
            named = [f"{titles[index]} {vote:g}" for vote, index in pairs]
            alt = f"row {row}: " + (", ".join(named[:6]) + (", …" if len(named) > 6 else "") or "no label")
            uri, small = thumbnail(image)
            yield Picture(uri, alt, titles[pairs[0][1]] if pairs else "no label", small)


def thumbnail(data: bytes) -> tuple[str, bool]:
    """An encoded image as a data address, at most SIDE pixels long, and whether it is shown larger than it is.

    Small images keep their bytes. One that cannot be decoded becomes a grey square: a report has to appear anyway.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.get_format_mimetype() or "image/png"
            small = max(image.size) <= SIDE
            if not small or len(data) > 16384:
                image.draft("RGB", (SIDE, SIDE))
                reduced = image.convert("RGB")
                reduced.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                reduced.save(stream, "JPEG", quality=80)
                data, kind = stream.getvalue(), "image/jpeg"
            small = max(image.size) <= 64
    except (UnidentifiedImageError, OSError, ValueError):
        grey = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path fill="#999" d="M0 0h1v1H0z"/></svg>'
        data, kind, small = grey.encode(), "image/svg+xml", False
    return f"data:{kind};base64,{base64.b64encode(data).decode()}", small


def _gate(facts: dict[str, Any]) -> dict[str, Any]:
    """A gate's facts for the page: the measures by name, everything else that is short as (name, value)."""
    found = facts.get("near_duplicates", facts.get("found"))
    rest = [
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value)
        for key, value in facts.items()
        if key not in (*_MEASURES, "near_duplicates", "digest") and isinstance(value, int | float | str) and value != ""
    ]
    return {
        "found": len(found) if isinstance(found, list) else found,
        "tested": facts.get("tested"),
        "test": facts.get("test", ""),
        "passed": facts.get("passed"),
        "digest": facts["digest"],
        "more": [(key, value) for key, value in rest if len(str(value)) <= 80],
    }


def _notes(c: Numbers) -> str:
    """What else happened at ingest, in sentences."""
    said = []
    if c.ingest.get("files"):
        said.append(f"Ingest met {c.ingest['files']:,} pictures.")
    if c.ingest.get("repeats"):
        said.append(f"{c.ingest['repeats']:,} of them had the bytes of another one; their labels were united.")
    if c.ingest.get("missing"):
        said.append(f"{c.ingest['missing']:,} rows of the labels file had no picture.")
    if c.ingest.get("unlisted"):
        said.append(f"{c.ingest['unlisted']:,} files had no row in the labels file.")
    if c.flags:
        said.append("Flags: " + ", ".join(f"{name} {count:,}" for name, count in c.flags.items()) + ".")
    return " ".join(said)


def _commands(c: Numbers) -> list[str]:
    """The commands that made the states, oldest first, and this report."""
    out = []
    tags = {s["digest"]: s["tag"] for s in c.states}
    for s in c.states:
        recipe, facts = s["recipe"], s["facts"]
        given = next((f"{c.name}@{tags[d]}" for d in s["inputs"] if d in tags), c.name)
        verb = str(recipe.get("verb") or "")
        if verb == "corpus close":
            words = ["corpus", "close", given, "--votes", recipe["votes"]]
            words += ["--tag", s["tag"]] if s["tag"] != "closed" else []
        elif verb == "corpus subset":
            part = facts["subset_of"]
            words = ["corpus", "subset", f"{part['of'].rsplit('/', 1)[-1]}@{part['tag']}", "--to", c.name]
            words += ["--n", str(recipe["n"])] if recipe.get("n") else []
            words += ["--classes-file", "classes.txt"] if recipe.get("classes") else []
        elif facts.get("input"):
            words = ["corpus", "ingest", posixpath.basename(str(facts["input"]).rstrip("/")), "--to", c.name]
        else:
            words = [*(verb or f"corpus {s['tag']}").split(), given]
        out.append(shlex.join(["tenfold", *words]) + f"   # {s['tag']}: {s['digest'][:19]}…")
    return [*out, shlex.join(["tenfold", "corpus", "report", f"{c.name}@{c.tag}", "--out", "report.html"])]
