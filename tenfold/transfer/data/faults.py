"""What is wrong with annotations, named by file and id, with what was done about it and the cure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from tenfold.errors import InputError

TOLERANCE = 1.0  # px by which a box may reach over the edge without being a fault: rounding in the official files

# Kind of fault: what is done about it, and what cures it at the source.
KINDS: dict[str, tuple[str, str]] = {
    "image-missing": ("image left out", "put the file beside the others, or drop its entry"),
    "image-unreadable": ("image left out", "replace the file"),
    "image-size": ("image left out", "correct width and height, or put the original image back"),
    "image-id-repeated": ("first entry kept", "give every image an id of its own"),
    "image-malformed": ("image left out", "give the image an id and a file_name"),
    "annotation-malformed": ("annotation left out", "give the annotation id, image_id and category_id"),
    "annotation-id-repeated": ("first annotation kept", "give every annotation an id of its own"),
    "annotation-of-no-image": ("annotation left out", "list the image, or drop the annotation"),
    "category-unknown": ("annotation left out", "list the category, or correct the annotation"),
    "box-malformed": ("annotation left out", "give four finite numbers"),
    "box-empty": ("annotation left out", "give a box with a width and a height"),
    "box-outside": ("annotation left out", "correct the box, or remove it"),
    "box-clipped": ("box clipped to the image", "clip the box"),
    "mask-empty": ("mask left out, box kept", "draw the polygon, or drop the annotation"),
    "polygon-invalid": ("polygon left out", "give at least three points, an x and a y each"),
    "rle-size": ("mask left out, box kept", "encode the mask at the size of its image"),
    "rle-invalid": ("mask left out, box kept", "encode the mask anew"),
    "keypoints-count": ("keypoints left out, box kept", "give x, y, visibility for every keypoint of the category"),
    "keypoints-visibility": ("keypoints left out, box kept", "visibility is 0, 1 or 2"),
    "keypoints-outside": ("these keypoints count as not labelled", "correct them, or set their visibility to 0"),
    "map-missing": ("image left out", "put the class map beside the others"),
    "map-size": ("image left out", "give the class map the size of its image"),
    "map-values": ("strange values become 255 (ignore)", "use class indices and 255"),
    "label-unknown": ("label left out", "correct the label, or list the class"),
}


class Fault(BaseModel):
    """One fault.

    Attributes:
        kind: a key of KINDS.
        file: the file that holds the faulty thing (annotation file, image).
        id: of the image or annotation, `annotation 42`; empty where the file says it all.
        detail: what is wrong, with numbers.
        done: what was done about it.
        cure: what to do at the source.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    file: str
    id: str
    detail: str
    done: str
    cure: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.id}" if self.id else self.file
        return f"{where}: {self.kind}: {self.detail}; {self.done} (cure: {self.cure})"


@dataclass
class Faults:
    """Collects faults: all are counted, the first `keep` of each kind are kept (all where it is None)."""

    keep: int | None = 20
    counts: Counter[str] = field(default_factory=Counter)
    found: list[Fault] = field(default_factory=list)

    def add(self, kind: str, file: str, id: str, detail: str) -> None:
        """Note a fault of a kind in KINDS."""
        self.counts[kind] += 1
        if self.keep is None or self.counts[kind] <= self.keep:
            done, cure = KINDS[kind]
            self.found.append(Fault(kind=kind, file=file, id=id, detail=detail, done=done, cure=cure))

    @property
    def total(self) -> int:
        """Number of faults."""
        return sum(self.counts.values())

    def refuse(self) -> None:
        """Raises InputError naming the first faults, where there are any (`--strict`)."""
        if self.total:
            first = "\n  ".join(str(fault) for fault in self.found[:5])
            raise InputError(
                f"{self.total:,} faults in the annotations:\n  {first}",
                "`tenfold dataset check` lists them all; without --strict they are left out and counted",
            )


@dataclass(frozen=True)
class Report:
    """Notes faults of one thing: `report(kind, detail)`.

    Attributes:
        faults: where to.
        file: the file that holds it.
        id: what it is called there.
    """

    faults: Faults
    file: str
    id: str

    def __call__(self, kind: str, detail: str) -> None:
        """Note a fault of a kind in KINDS."""
        self.faults.add(kind, self.file, self.id, detail)


def clip_box(
    box: tuple[float, float, float, float], size: tuple[int, int], report: Report
) -> tuple[float, float, float, float] | None:
    """The part of a box x1, y1, x2, y2 inside the image of that width and height; None where there is none."""
    x1, y1, x2, y2 = box
    said = f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"
    if x2 <= x1 or y2 <= y1:
        report("box-empty", said)
        return None
    if x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]:
        report("box-outside", f"{said} of an image of {size[0]} x {size[1]}")
        return None
    if min(x1, y1) < -TOLERANCE or x2 > size[0] + TOLERANCE or y2 > size[1] + TOLERANCE:
        report("box-clipped", f"{said} of an image of {size[0]} x {size[1]}")
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1]))
