"""Charts as inline SVG: numbers in, text out; no script, no style of their own (classes are coloured by the page).

Every chart is 440 units wide, so that its text stays readable both in two columns and on a phone. Each mark has a
`<title>`, which browsers show as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 262
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 30, 42  # margins for axis texts


def short(value: float) -> str:
    """A number in few characters: 950, 12.3k, 4.56M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.99995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def ticks(top: float, count: int = 4) -> list[float]:
    """Round values from 0 to at least `top`, about `count` steps."""
    if top <= 0:
        return [0.0, 1.0]
    step = 10 ** math.floor(math.log10(top / count))
    step *= next(m for m in (1, 2, 5, 10) if m * step * count >= top)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def bars(labels: Sequence[str], series: Mapping[str, Sequence[int]], *, what: str, x: str, y: str) -> Markup:
    """Bars beside one another for one or two series over the same labels.

    Args:
        labels: one for each group of bars.
        series: name -> a count for each label; the first gets colour 1, the second colour 2.
        what: what the chart shows, for those who do not see it.
        x, y: what the axes mean.
    """
    top = max((max(values) for values in series.values() if len(values)), default=0)
    scale = ticks(top)
    inner, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    slot = inner / max(len(labels), 1)
    out = [_grid_y(scale, tall)]
    total = {name: sum(values) for name, values in series.items()}
    for at, label in enumerate(labels):
        present = [(nth, name, values) for nth, (name, values) in enumerate(series.items()) if values[at]]
        # Bars share the place of their label; one that has it alone is as wide as both.
        width = min(slot * 0.84 / max(len(present), 1), 46)
        for place, (nth, name, values) in enumerate(present):
            height = max(tall * values[at] / scale[-1], 1)
            left = LEFT + slot * (at + 0.5) + width * (place - len(present) / 2)
            share = f"{100 * values[at] / total[name]:.3g} %"
            tip = f"{x} {label}: {values[at]:,} ({share})" + (f", {name}" if len(series) > 1 else "")
            out.append(
                f'<rect class="c{nth + 1}" x="{left:.1f}" y="{TOP + tall - height:.1f}" width="{width - 1:.1f}" '
                f'height="{height:.1f}" rx="1.5"><title>{escape(tip)}</title></rect>'
            )
            if len(labels) * len(series) <= 10:
                out.append(_text(left + width / 2, TOP + tall - height - 4, share, "value", "middle"))
    widest = max((len(label) for label in labels), default=1)
    every = max(1, math.ceil((widest * 8 + 5) / slot))  # a phone shows texts larger
    for at, label in enumerate(labels):
        if at % every == 0:
            out.append(_text(LEFT + slot * (at + 0.5), HEIGHT - BOTTOM + 16, label, "", "middle"))
    return _chart(out, what, x, y)


def rank_frequency(series: Mapping[str, np.ndarray], cut_offs: Sequence[int], *, what: str, x: str, y: str) -> Markup:
    """Counts in falling order against their rank, both axes logarithmic, with lines at the cut-offs.

    Args:
        series: name -> counts of all classes, in any order; empty classes are left out.
        cut_offs: counts at which a dashed line is drawn.
        what, x, y: as for `bars`.
    """
    falling = {name: np.sort(counts[counts > 0])[::-1] for name, counts in series.items()}
    most = max((int(c[0]) for c in falling.values() if len(c)), default=1)
    ranks = max((len(c) for c in falling.values()), default=1)
    decades_x = max(math.ceil(math.log10(max(ranks, 2))), 1)
    decades_y = max(math.ceil(math.log10(max(most, *cut_offs, 2))), 1)
    inner, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(rank: float) -> float:
        return LEFT + inner * math.log10(rank) / decades_x

    def down(count: float) -> float:
        return TOP + tall * (1 - math.log10(count) / decades_y)

    out = []
    for power in range(decades_y + 1):
        at = down(10**power)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(_text(LEFT - 6, at + 4, short(10**power), "", "end"))
    for power in range(decades_x + 1):
        at = across(10**power)
        out.append(f'<line class="grid" y1="{TOP}" y2="{TOP + tall}" x1="{at:.1f}" x2="{at:.1f}"/>')
        out.append(_text(at, HEIGHT - BOTTOM + 16, short(10**power), "", "end" if power == decades_x else "middle"))
    for cut in cut_offs:
        at = down(cut)
        out.append(f'<line class="cut" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(_text(WIDTH - RIGHT - 4, at - 4, f"{cut} images", "cut-text", "end"))
    for nth, (name, counts) in reversed(list(enumerate(falling.items()))):
        if not len(counts):
            continue
        at_rank = np.unique(np.geomspace(1, len(counts), 240).round().astype(int))
        points = [(across(r), down(counts[r - 1]), r, counts[r - 1]) for r in at_rank.tolist()]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        out.append(f'<polyline class="line l{nth + 1}" points="{line}"/>')
        shown = points if len(points) <= 60 else points[:: math.ceil(len(points) / 60)]
        for px, py, rank, count in shown:
            tip = f"{name}: class {rank:,} of {len(counts):,} has {count:,} images"
            out.append(
                f'<circle class="c{nth + 1}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"><title>{escape(tip)}</title></circle>'
            )
    return _chart(out, what, x, y)


def _grid_y(scale: Sequence[float], tall: float) -> str:
    out = []
    for value in scale:
        at = TOP + tall * (1 - value / scale[-1])
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(_text(LEFT - 6, at + 4, short(value), "", "end"))
    return "".join(out)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _chart(marks: Sequence[str], what: str, x: str, y: str) -> Markup:
    axes = _text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 6, x, "axis", "middle") + _text(0, 10, y, "axis", "start")
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">'
        + "".join(marks)
        + axes
        + "</svg>"
    )
