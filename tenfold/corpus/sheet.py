"""A contact sheet: the first images of a corpus with their labels, as a picture or a page. Looking is part of curating.

Rows lie in random order, so the first n are a fair sample.
"""

from __future__ import annotations

import base64
import html
import io
import math

from PIL import Image, ImageDraw, ImageFont

from tenfold import storage
from tenfold.corpus.table import Corpus
from tenfold.errors import InputError

CELL, GAP, LINE, LINES = 160, 10, 14, 3  # pixels: side of a picture, space between, height and number of label lines
_MOST = 2000  # images on a sheet


def contact_sheet(corpus: Corpus, out: str, n: int = 24) -> int:
    """Draw the first `n` images (or all, where there are fewer) with their labels into `out`, a .png or an .html.

    Returns how many were drawn. Raises InputError for another ending or a number that makes no sheet.
    """
    form = out.rpartition(".")[2].lower()
    if form not in ("png", "html"):
        raise InputError(f"{out} is neither a .png nor an .html", "name the file like one of them")
    if not 0 < n <= _MOST:
        raise InputError(f"no sheet of {n} images", f"choose n from 1 to {_MOST:,}")
    n = min(n, corpus.rows)
    rows = [row for batch in corpus.batches(["image", "labels", "votes", "source"], n) for row in batch.to_pylist()]
    titles = corpus.classes.titles
    cells = [(row["image"], _captions(row, titles), row["source"]) for row in rows]
    head = f"{corpus.uri} ({corpus.tag}): the first {n:,} of {corpus.rows:,} images"
    data = _page(cells, head) if form == "html" else _picture(cells, head)
    storage.write_bytes(storage.normalise(out), data)
    return n


def _captions(row: dict[str, list[int]], titles: tuple[str, ...]) -> list[str]:
    """Labels for people, the strongest first; votes are named where they differ from 1."""
    pairs = sorted(zip(row["votes"], row["labels"], strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [titles[label] + (f" ({vote:g})" if vote != 1 else "") for vote, label in pairs]


def _picture(cells: list[tuple[bytes, list[str], str]], head: str) -> bytes:
    columns = min(len(cells), max(1, math.ceil(math.sqrt(len(cells) * 1.5))))
    height = CELL + LINES * LINE + GAP
    size = (GAP + columns * (CELL + GAP), 30 + math.ceil(len(cells) / columns) * height + GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    draw.text((GAP, 8), _fit(draw, head, size[0] - 2 * GAP, font), (0, 0, 0), font)
    for i, (data, captions, _) in enumerate(cells):
        x, y = GAP + i % columns * (CELL + GAP), 30 + i // columns * height
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        scale = CELL / max(picture.size)
        shown = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # Small pictures grow by whole pixels: blur would hide what the network sees.
        picture = picture.resize(shown, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
        sheet.paste(picture, (x + (CELL - shown[0]) // 2, y + (CELL - shown[1]) // 2))
        for line, text in enumerate(_lines(captions)):
            where = (x, y + CELL + 1 + line * LINE)
            draw.text(where, _fit(draw, text, CELL, font), (40, 40, 40), font)
    stored = io.BytesIO()
    sheet.save(stored, "PNG")
    return stored.getvalue()


def _lines(captions: list[str]) -> list[str]:
    """At most LINES lines; what is left over is counted."""
    if not captions:
        return ["(no label)"]
    return captions if len(captions) <= LINES else [*captions[: LINES - 1], f"+ {len(captions) - LINES + 1} more"]


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


_STYLE = """body{font:14px/1.35 system-ui,sans-serif;margin:16px;color:#222;background:#fff}h1{font-size:18px}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:14px}
figure{margin:0}figure div{height:160px;display:flex;align-items:center;justify-content:center;background:#f3f3f3}
img{max-width:100%;max-height:160px;min-width:64px;object-fit:contain}img.small{image-rendering:pixelated;height:160px}
figcaption{overflow-wrap:anywhere}small{color:#777}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}figure div{background:#262626}}"""


def _page(cells: list[tuple[bytes, list[str], str]], head: str) -> bytes:
    figures = []
    for data, captions, source in cells:
        kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
        with Image.open(io.BytesIO(data)) as opened:
            small = ' class="small"' if max(opened.size) < 80 else ""
        labels = html.escape(", ".join(captions) or "(no label)")
        where = html.escape(source)
        address = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        figures.append(
            f'<figure><div><img{small} src="{address}" alt="{labels}" title="{where}"></div>'
            f"<figcaption>{labels}<br><small>{where}</small></figcaption></figure>"
        )
    title = html.escape(head)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><main>{''.join(figures)}</main></html>\n"
    ).encode()
