"""From encoded bytes to the pixels a network is shown: decoding and augmentation (T-03), all in uint8.

A transform is a frozen model with `size` and `apply(data, random, out)`: it decodes, augments and writes straight into
its place in the batch. Pixels stay uint8 until the device, where the network scales them to [-1, 1].
"""

from __future__ import annotations

import io
from typing import Annotated, Literal, Protocol, Self

import numpy as np
import simplejpeg
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tenfold.engine.streams import SampleRandom
from tenfold.errors import InputError

JPEG = b"\xff\xd8"


class BadRowError(Exception):
    """A row whose content cannot be used (an image that does not decode); the loader counts and replaces it."""


class Transform(Protocol):
    """What turns encoded bytes into pixels of a fixed size."""

    @property
    def size(self) -> int:
        """Side of the square result, pixels."""

    def apply(self, data: bytes, random: SampleRandom, out: np.ndarray) -> None:
        """Decode and augment `data` into `out`, uint8 [size, size, 3]; raises BadRowError where it does not decode."""


class CropTransform(BaseModel):
    """Resize to `resize` x `resize`, crop `crop` x `crop`, flip left to right (T-03); for photographs.

    The crop is cut in the source, at the place the resized crop would have, and resized once: the same geometry
    without the pixels that would be thrown away.

    Attributes:
        resize: side that the whole image is resized to (its aspect ratio is not kept, as in the paper).
        crop: side of the crop, and of the result.
        random: random place and flip (training); otherwise the centre, never flipped (evaluation).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["crop"] = "crop"
    resize: int = Field(default=340, ge=1)
    crop: int = Field(default=299, ge=1)
    random: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop > self.resize:
            raise InputError(f"crop = {self.crop} is larger than resize = {self.resize}", "choose crop <= resize")
        return self

    @property
    def size(self) -> int:
        """Side of the square result, pixels."""
        return self.crop

    def apply(self, data: bytes, random: SampleRandom, out: np.ndarray) -> None:
        """See Transform."""
        spare = self.resize - self.crop
        left, top, flip = spare / 2, spare / 2, False
        if self.random:
            left, top, flip = random.below(spare + 1), random.below(spare + 1), bool(random.below(2))
        crop_pixels(decode(data), left, top, self.resize, self.crop, flip, out)


class PadTransform(BaseModel):
    """Pad with black, crop at random, flip left to right; for small images (CIFAR).

    Attributes:
        side: side of the result; images of another size are resized to it first.
        pad: black pixels added on each side before the crop.
        random: random place and flip (training); otherwise the image as it is (evaluation).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pad"] = "pad"
    side: int = Field(default=32, ge=1)
    pad: int = Field(default=4, ge=0)
    random: bool = True

    @property
    def size(self) -> int:
        """Side of the square result, pixels."""
        return self.side

    def apply(self, data: bytes, random: SampleRandom, out: np.ndarray) -> None:
        """See Transform."""
        pixels, side = decode(data), self.side
        if pixels.shape[:2] != (side, side):
            pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
        if not self.random:
            out[...] = pixels
            return
        x, y = random.below(2 * self.pad + 1) - self.pad, random.below(2 * self.pad + 1) - self.pad
        if random.below(2):
            pixels = pixels[:, ::-1]
        out[...] = 0
        out[max(-y, 0) : side - max(y, 0), max(-x, 0) : side - max(x, 0)] = pixels[
            max(y, 0) : side + min(y, 0), max(x, 0) : side + min(x, 0)
        ]


AnyTransform = Annotated[CropTransform | PadTransform, Field(discriminator="kind")]


def decode(data: bytes) -> np.ndarray:
    """Pixels of a JPEG or PNG, uint8 [height, width, 3] RGB; raises BadRowError saying why it does not decode."""
    try:
        if data[:2] == JPEG:
            pixels: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB")
            return pixels
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))  # a copy: torch refuses memory that it may not write to
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRowError(str(error) or type(error).__name__) from None


def crop_pixels(
    pixels: np.ndarray, left: float, top: float, resize: int, crop: int, flip: bool, out: np.ndarray
) -> None:
    """What resizing to `resize` x `resize`, cropping, and mirroring gives, by one resize; bilinear, antialiased.

    Where the crop is not enlarged, its edges are rounded to whole pixels of the source (half a pixel at most; the
    places of a random crop are as coarse) and torch's vector code does the work, seven times as fast as Pillow's; an
    enlargement, in which half a source pixel would be seen, is Pillow's, by the exact box.

    Args:
        pixels: uint8 [h, w, 3].
        left, top, resize, crop: place and side of the crop in the resized image.
        flip: mirror left to right.
        out: uint8 [crop, crop, 3], contiguous; written.
    """
    x, y = pixels.shape[1] / resize, pixels.shape[0] / resize
    box = (left * x, top * y, (left + crop) * x, (top + crop) * y)
    x0, y0, x1, y1 = (round(edge) for edge in box)
    if x1 - x0 < crop or y1 - y0 < crop:
        small = np.asarray(Image.fromarray(pixels).resize((crop, crop), Image.Resampling.BILINEAR, box=box))
        out[...] = small[:, ::-1] if flip else small
        return
    cut = torch.from_numpy(pixels)[y0:y1, x0:x1].permute(2, 0, 1)[None]
    into = torch.from_numpy(out).permute(2, 0, 1)[None]
    # Flipping before resizing costs nothing: the resize needs a contiguous copy of the cut anyway.
    cut = torch.flip(cut, [-1]) if flip else cut.contiguous(memory_format=torch.channels_last)
    if cut.shape == into.shape:
        into.copy_(cut)
    else:
        torch.ops.aten._upsample_bilinear2d_aa.out(cut, [crop, crop], False, out=into)
