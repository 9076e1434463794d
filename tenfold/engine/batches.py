"""Formats: how the records of a table become a batch. The loader knows only the protocol; a task brings its format.

`LabelledImages` is the format of the corpus table, for pretraining; `Samples` makes one from a sample function and a
collate function, for tasks whose targets vary (boxes, masks, keypoints).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from tenfold.engine.images import Transform
from tenfold.engine.records import Record
from tenfold.engine.streams import SampleRandom

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)
S = TypeVar("S")


@dataclass(frozen=True)
class Place:
    """Which batch this is: `slots` of a global step, and the epoch and the step inside it."""

    step: int
    epoch: int
    epoch_step: int
    slots: range


class Builder(Protocol[B_co]):
    """One batch while it is filled, by several threads at once."""

    def put(self, index: int, record: Record, random: SampleRandom) -> None:
        """Make sample `index` of this rank's share; raises BadRowError where the record cannot be used."""

    def finish(self) -> B_co:
        """The finished batch; called once, when all samples are in."""


class Format(Protocol[B_co]):
    """What a task says to the loader: the columns it reads, and how a batch is made."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the table that records hold."""

    def begin(self, place: Place) -> Builder[B_co]:
        """Start a batch of len(place.slots) samples."""


@dataclass(frozen=True)
class Batch:
    """Labelled images of one rank in one step.

    Attributes:
        place: global step, epoch, slots.
        images: uint8 [b, 3, H, W], channels_last in memory.
        rows: table rows, int64 [b].
        ids: image ids, b of them.
        offsets: int64 [b + 1]; the labels of sample i are labels[offsets[i] : offsets[i + 1]].
        labels: class indices, int64 [offsets[-1]].
        votes: weight of evidence of each label, float32 [offsets[-1]], where the format asks for them.
    """

    place: Place
    images: torch.Tensor
    rows: torch.Tensor
    ids: list[str]
    offsets: torch.Tensor
    labels: torch.Tensor
    votes: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`; the copy does not wait (pin the memory, LabelledImages.pin)."""
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name in ("images", "rows", "offsets", "labels", "votes")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class LabelledImages:
    """Format of the corpus table: images with ragged labels.

    Attributes:
        transform: decoding and augmentation.
        votes: whether batches hold the votes too.
        pin: page-locked image memory, for a fast copy to a GPU.
    """

    transform: Transform
    votes: bool = False
    pin: bool = False

    @property
    def columns(self) -> Sequence[str]:
        """See Format."""
        return ["id", "image", "labels", *(["votes"] if self.votes else [])]

    def begin(self, place: Place) -> Builder[Batch]:
        """See Format."""
        return _LabelledImagesBuilder(self, place)


class _LabelledImagesBuilder:
    def __init__(self, form: LabelledImages, place: Place) -> None:
        b, side = len(place.slots), form.transform.size
        self.form, self.place = form, place
        self.memory = torch.empty((b, side, side, 3), dtype=torch.uint8, pin_memory=form.pin)
        self.pixels = self.memory.numpy()
        self.records: list[Record] = [{}] * b

    def put(self, index: int, record: Record, random: SampleRandom) -> None:
        self.form.transform.apply(record["image"], random, self.pixels[index])
        self.records[index] = {name: value for name, value in record.items() if name != "image"}

    def finish(self) -> Batch:
        offsets = np.zeros(len(self.records) + 1, np.int64)
        np.cumsum([len(record["labels"]) for record in self.records], out=offsets[1:])

        def joined(name: str, dtype: type) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([record[name] for record in self.records]).astype(dtype))

        return Batch(
            place=self.place,
            images=self.memory.permute(0, 3, 1, 2),
            rows=torch.tensor([record["row"] for record in self.records], dtype=torch.int64),
            ids=[record["id"] for record in self.records],
            offsets=torch.from_numpy(offsets),
            labels=joined("labels", np.int64),
            votes=joined("votes", np.float32) if self.form.votes else None,
        )


@dataclass(frozen=True)
class Samples(Generic[S, B]):
    """A format from two functions, for tasks whose targets vary (boxes, masks, keypoints).

    Attributes:
        columns: columns that `sample` needs.
        sample: (record, random) -> sample; raises BadRowError where the record cannot be used. All its randomness comes
            from `random`, so that a sample is the same at any world size; it runs in several threads at once.
        collate: (samples in slot order, place) -> batch.
    """

    columns: Sequence[str]
    sample: Callable[[Record, SampleRandom], S]
    collate: Callable[[list[S], Place], B]

    def begin(self, place: Place) -> Builder[B]:
        """See Format."""
        return _SamplesBuilder(self, place)


class _SamplesBuilder(Generic[S, B]):
    def __init__(self, form: Samples[S, B], place: Place) -> None:
        self.form, self.place = form, place
        self.samples: list[S | None] = [None] * len(place.slots)

    def put(self, index: int, record: Record, random: SampleRandom) -> None:
        self.samples[index] = self.form.sample(record, random)

    def finish(self) -> B:
        return self.form.collate(self.samples, self.place)  # type: ignore[arg-type]
