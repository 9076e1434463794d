"""PNG bytes that are the same on every machine.

An image's id is the hash of its encoded bytes, and its rank and so every subset follow from the id (D-12): two machines
must write the same bytes. The usual encoders do not promise that: zlib and zlib-ng, which Python and Pillow are built
with, find different matches in the same data. Here every row is filtered with Paeth and the bytes are only
Huffman-coded (`Z_HUFFMAN_ONLY`), which leaves the library nothing to choose: both give the same bytes. On 32 px
photographs that costs 1 % in size against Pillow and takes a third of its time.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PAETH = 4  # filter type, PNG specification section 9


def encode(images: np.ndarray) -> list[bytes]:
    """PNG of each image.

    Args:
        images: uint8 [n, height, width, 3], RGB. A few hundred small images at a time filter fastest (they stay in the
            processor's cache). zlib lets go of Python's lock, so threads help.
    """
    _, height, width, _ = images.shape
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    end = _chunk(b"IEND", b"")
    head = SIGNATURE + header
    encoded = []
    for rows in _filtered(images):
        stream = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        data = stream.compress(rows)
        encoded.append(head + _chunk(b"IDAT", data + stream.flush()) + end)
    return encoded


def _filtered(images: np.ndarray) -> np.ndarray:
    """Rows with their filter byte: uint8 [n, height, 1 + 3 width]."""
    n, height, width, channels = images.shape
    x = images.reshape(n, height, width * channels).astype(np.int16)
    left, up, corner = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    left[:, :, channels:] = x[:, :, :-channels]
    up[:, 1:] = x[:, :-1]
    corner[:, 1:, channels:] = x[:, :-1, :-channels]
    to_left, to_up = np.abs(up - corner), np.abs(left - corner)
    to_corner = np.abs(left + up - 2 * corner)
    near_left = (to_left <= to_up) & (to_left <= to_corner)
    predicted = np.where(near_left, left, np.where(to_up <= to_corner, up, corner))
    rows = np.empty((n, height, 1 + width * channels), np.uint8)
    rows[:, :, 0] = PAETH
    rows[:, :, 1:] = (x - predicted).astype(np.uint8)
    return rows


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
