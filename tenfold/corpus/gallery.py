"""The gallery of a near-duplicate gate: pairs side by side on one self-contained page, for a person to judge.

Three parts: the closest pairs, those just below the threshold and those just above it. A click marks a pair as wrongly
placed, and the page counts: what share of the pairs below the threshold looked right to whoever clicked.
"""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tenfold.corpus.pictures import PictureConfig, normalise
from tenfold.corpus.sniff import Rejected

if TYPE_CHECKING:
    from tenfold.corpus.table import Corpus
    from tenfold.corpus.testsets import TestSet

_SIDE = 160  # pixels of a picture on the page
_WHOLE = PictureConfig(max_side=0)
_BINS = 40  # of the histogram


def page(corpus: Corpus, tests: TestSet, pairs: pa.Table, facts: dict[str, Any], each: int) -> bytes:
    """The page, UTF-8.

    Args:
        corpus: the corpus.
        tests: the test set; it is read once more for the pictures that are shown.
        pairs: schema gate.PAIRS, near misses included.
        facts: of the gate.
        each: pairs in each of the three parts; of a test image only its nearest pair is shown.
    """
    distance = pairs["distance"].to_numpy()
    order = np.argsort(distance, kind="stable")
    files = np.array(pairs["test_file"].to_pylist(), dtype=object)[order]
    order = order[np.sort(np.unique(files.astype(str), return_index=True)[1])] if len(order) else order
    near = order[distance[order] <= facts["threshold"]]
    far = order[distance[order] > facts["threshold"]]
    below = near[max(each, len(near) - each) :]
    parts = [
        ("Closest", "near-duplicates, the closest first", near[:each], True),
        ("Just below the threshold", f"the last {len(below)} that count as near-duplicates", below, True),
        ("Just above the threshold", "near misses: these stay in the test set", far[:each], False),
    ]
    shown = np.concatenate([rows for _, _, rows, _ in parts]).astype(int)
    rows = pairs.take(shown).to_pylist()
    left = _test_pictures(tests, {(row["test_file"], row["test_id"]) for row in rows})
    right = _corpus_pictures(corpus, [row["corpus_row"] for row in rows])
    body = []
    for title, note, members, counts in parts:
        body.append(f"<h2>{title}</h2><p class=note>{html.escape(note)}</p>")
        if not len(members):
            body.append("<p class=note>None.</p>")
        body.append("<main>")
        for row in pairs.take(members).to_pylist():
            a, b = left.get((row["test_file"], row["test_id"]), ""), right.get(row["corpus_row"], "")
            body.append(_pair(row, a, b, counts))
        body.append("</main>")
    return _PAGE.format(
        title=html.escape(f"Near-duplicates of {facts['test']}"),
        style=_STYLE,
        head=_head(corpus, facts),
        chart=_histogram(np.sort(distance[order]), facts["threshold"]),
        body="".join(body),
        script=_SCRIPT,
    ).encode()


def _head(corpus: Corpus, facts: dict[str, Any]) -> str:
    return (
        f"<b>{facts['near_duplicates']:,}</b> of {facts['tested']:,} test images ({facts['share']:.2%}) have a "
        f"near-duplicate among the {facts['corpus_rows']:,} images of {html.escape(corpus.uri)}; {facts['exact']:,} "
        f"are there byte for byte. Threshold {facts['threshold']:g}."
    )


def _pair(row: dict[str, Any], left: str, right: str, counts: bool) -> str:
    marks = [name for name in ("mirrored", "exact") if row[name]]
    where = html.escape(f"{row['test_file']} | row {row['corpus_row']:,}, {row['corpus_source']}")
    said = f"{row['distance']:.3f}" + (f" · {', '.join(marks)}" if marks else "")
    return (
        f'<figure data-counts="{int(counts)}" title="{where}"><div>{left}{right}</div>'
        f"<figcaption>{said}<br><small>{where}</small></figcaption></figure>"
    )


def _test_pictures(tests: TestSet, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for images in tests.batches() if wanted else ():
        for image in images:
            if (image.file, image.id) in wanted:
                found[image.file, image.id] = _picture(image.data, "test image")
        if len(found) == len(wanted):
            break
    return found


def _corpus_pictures(corpus: Corpus, rows: list[int]) -> dict[int, str]:
    unique = sorted(set(rows))
    images = corpus.images.take(unique, columns=["image"])["image"].to_pylist() if unique else []
    return {row: _picture(data, "corpus image") for row, data in zip(unique, images, strict=True)}


def _picture(data: bytes, what: str) -> str:
    """An `img` with the picture inside; small pictures grow by whole pixels, for blur would hide what differs."""
    try:
        with Image.open(io.BytesIO(normalise(data, _WHOLE).image)) as opened:
            picture = opened.convert("RGB")
    except Rejected:  # it was read before; a file may have changed since
        return f"<span>{what} is gone</span>"
    small = max(picture.size) <= 64
    picture.thumbnail((_SIDE * 2, _SIDE * 2))
    stored = io.BytesIO()
    picture.save(stored, "PNG" if small else "JPEG", quality=82)
    address = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stored.getvalue()).decode()}"
    return f'<img{" class=small" if small else ""} alt="{what}" src="{address}">'


def _histogram(distances: np.ndarray, threshold: float) -> str:
    """Test images by the distance of their nearest pair, as SVG; bars left of the threshold are near-duplicates."""
    if not len(distances):
        return ""
    top = max(float(distances[-1]), threshold) * 1.001
    counts, edges = np.histogram(distances, bins=_BINS, range=(0, top))
    width, tall = 640, 120
    bars = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        height = tall * count / counts.max()
        colour = "near" if high <= threshold + top / _BINS / 2 else "far"
        bars.append(
            f'<rect class={colour} x="{width * low / top:.1f}" y="{tall - height:.1f}" width="{width / _BINS - 1:.1f}" '
            f'height="{height:.1f}"><title>{low:.3f} to {high:.3f}: {count:,} test images</title></rect>'
        )
    x = width * threshold / top
    ticks = "".join(
        f'<text x="{width * at / top:.1f}" y="{tall + 16}">{at:g}</text>' for at in np.arange(0, top, 0.05).round(2)
    )
    return (
        f'<svg viewBox="0 0 {width} {tall + 24}" role="img" aria-label="Test images by distance">{"".join(bars)}'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{tall}"/>{ticks}</svg>'
        "<p class=note>Test images by the distance of their nearest image in the corpus; the line is the threshold.</p>"
    )


_STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:20px auto;max-width:1240px;padding:0 16px;color:#222}
h1{font-size:22px}h2{font-size:17px;margin:28px 0 0}.note,small{color:#6b6b6b}.note{margin:2px 0 10px}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:14px}
figure{margin:0;padding:8px;border:1px solid #ddd;border-radius:6px;cursor:pointer}
figure div{display:grid;grid-template-columns:1fr 1fr;gap:4px;height:130px;align-items:center;justify-items:center}
figure img{max-width:100%;max-height:130px;object-fit:contain}img.small{image-rendering:pixelated;height:130px}
figcaption small{display:block;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}
figure.wrong{border-color:#c0392b;box-shadow:inset 0 0 0 2px #c0392b}
#verdict{position:sticky;top:0;background:#fffd;padding:8px 0;font-weight:600}
svg{width:100%;max-width:640px;display:block}rect.near{fill:#b5532a}rect.far{fill:#9aa5b1}
line{stroke:#222;stroke-width:1.5;stroke-dasharray:4 3}text{font-size:11px;fill:#6b6b6b}
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}#verdict{background:#161616dd}
figure{border-color:#333}.note,small,text{color:#999;fill:#999}line{stroke:#ddd}}"""
_SCRIPT = """const all=[...document.querySelectorAll('figure')],out=document.getElementById('verdict');
const say=()=>{const below=all.filter(f=>f.dataset.counts==='1'),wrong=below.filter(f=>f.classList.contains('wrong'));
const missed=all.filter(f=>f.dataset.counts==='0'&&f.classList.contains('wrong'));
out.textContent=`Click what is placed wrongly: ${below.length-wrong.length} of ${below.length} shown below the threshold
 look right, ${missed.length} shown above it should count.`};
all.forEach(f=>f.addEventListener('click',()=>{f.classList.toggle('wrong');say()}));say();"""
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style><h1>{title}</h1><p>{head}</p>{chart}<p id="verdict"></p>{body}
<script>{script}</script></html>
"""
