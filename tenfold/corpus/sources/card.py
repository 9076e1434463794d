"""The data card of a source: what a reader must know before believing a number made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Card:
    """What is known about a source, in sentences (Markdown).

    Attributes:
        what: what the images show and how large they are.
        origin: who made it, and where it is described.
        licence: of the images, the labels and the packages, and what they do not say.
        labels: how the labels arose.
        splits: what the splits are and what keeps them apart.
        faults: known faults, each a sentence.
    """

    what: str
    origin: str
    licence: str
    labels: str
    splits: str
    faults: tuple[str, ...]


def render(title: str, card: Card, facts: dict[str, Any], digest: str) -> str:
    """`card.md`.

    Args:
        title: name of the source for people.
        card: what is known about it anywhere.
        facts: what was counted in this copy: `splits`, `images`, `bytes`, `classes`, `archives`, `measured`.
        digest: `sha256:…` of the content.
    """
    rows = "".join(f"| {name} | {count:,} |\n" for name, count in facts["splits"].items())
    archives = "".join(
        f"| {key} | {value['place']} | `{value['sha256']}` |\n" for key, value in facts.get("archives", {}).items()
    )
    measured = "".join(f"- {name}: {value}\n" for name, value in facts.get("measured", {}).items())
    faults = "".join(f"- {fault}\n" for fault in card.faults)
    size = f"{sum(facts['splits'].values()):,} images, {facts['bytes'] / 1e6:,.1f} MB, {facts['classes']:,} classes"
    sections = [
        f"# {title}\n",
        f"{card.what}\n",
        f"- Size: {size}\n- Digest: `{digest}`\n",
        f"## Origin\n\n{card.origin}\n",
        f"## Licence\n\n{card.licence}\n",
        f"## How the labels arose\n\n{card.labels}\n",
        f"## Splits\n\n{card.splits}\n\n| split | images |\n|---|---:|\n{rows}",
        f"## Known faults\n\n{faults}",
    ]
    if measured:
        sections.append(f"## Measured in this copy\n\n{measured}")
    if archives:
        sections.append(f"## Where this copy came from\n\n| part | place | sha256 |\n|---|---|---|\n{archives}")
    return "\n".join(sections)
