"""What a file is and whether it is all there, told from its bytes before anything is decoded.

Decoders forgive: libjpeg paints a cut photograph grey to the end, Pillow reads a PNG whose check sums are wrong. A
person would not want such a picture, so the container is checked first, and what is no picture at all is named.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

# What a quarantined file suffers from, one word each.
REASONS = {
    "empty": "the file has no bytes",
    "foreign": "the file is no picture in a format that is read here",
    "truncated": "the end of the file is missing",
    "corrupt": "the bytes contradict the format",
    "bomb": "more pixels than the limit, told from the header before decoding",
    "oversize": "more bytes than the limit, not read",
    "crashed": "the decoder process died on this file twice",
    "unreadable": "storage does not let us read it",
    "unlabelled": "there is no label for it",
    "missing": "there is a label for it, but no file",
}
SCAN_LIMIT = 500  # scans of a progressive JPEG; real ones have about ten, a "scan bomb" has tens of thousands


class Rejected(Exception):  # noqa: N818 - a verdict about a picture, not a fault of the program
    """A file that the corpus cannot take.

    Attributes:
        reason: one of REASONS.
        detail: a sentence for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def identify(data: bytes) -> str:
    """Format of a picture: jpeg, png, gif, webp, bmp, tiff, avif, jp2 or ppm.

    Raises Rejected ("empty", "foreign"; "truncated" where not even the signature is whole) with what it is instead.
    """
    if not data:
        raise Rejected("empty", "The file is empty.")
    head = data[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head.startswith(b"BM") and len(data) > 26 and 12 <= struct.unpack_from("<I", data, 14)[0] <= 124:
        return "bmp"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "avif"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "jp2"
    if re.match(rb"P[1-6]\s", head):
        return "ppm"
    if len(data) < 12 and (b"\xff\xd8\xff".startswith(head) or b"\x89PNG\r\n\x1a\n".startswith(head)):
        raise Rejected("truncated", f"The file ends after {len(data)} bytes.")
    raise Rejected("foreign", f"It looks like {name_foreign(data)}, not a picture in a format that is read here.")


_FOREIGN: tuple[tuple[bytes, str], ...] = (  # pattern at the start (after white space for text), and its name
    (rb"(?i)(<!doctype html|<html|<head|<body|<!--)", "an HTML page"),
    (rb"(?is)(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing"),
    (rb"<\?xml", "an XML document"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS", "a PostScript document"),
    (rb"....ftyp(heic|heix|hevc|mif1|msf1)", "a HEIC picture"),
    (rb"....ftyp|....moov|....mdat", "an MP4 or QuickTime video"),
    (rb"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (rb"RIFF....AVI ", "an AVI video"),
    (rb"RIFF....WAVE|ID3|\xff[\xfb\xf3]|OggS|fLaC", "a sound file"),
    (rb"\x00\x00\x01[\xb3\xba]", "an MPEG video"),
    (rb"FLV\x01", "a Flash video"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\x00\x00[\x01\x02]\x00", "an icon or a cursor"),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe", "a program"),
    (rb"PAR1|ARROW1|SQLite format 3|\x93NUMPY|\x80[\x02-\x05]", "a data file"),
)


def name_foreign(data: bytes) -> str:
    """What a file that is no picture seems to be, for people: `an HTML page`, `a text file`, …."""
    head = data[:1024]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _FOREIGN:
        if re.compile(pattern, re.DOTALL).match(text if text[:1] in b"<%" else head):
            return name
    if b"\0" not in head:
        try:
            head[:-3].decode() if len(head) == 1024 else head.decode()
        except UnicodeDecodeError:
            return "unknown binary data"
        return "a text file"
    return "unknown binary data"


@dataclass(frozen=True)
class PngHeader:
    """What the chunks of a PNG say.

    Attributes:
        width: pixels.
        height: pixels.
        depth: bits a channel: 1, 2, 4, 8 or 16.
        colour: colour type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
        interlaced: whether the pixels come in seven passes.
        chunks: names of all chunks.
        pixels: where the bytes of the compressed pixels lie, [start, end) of each chunk.
    """

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    chunks: frozenset[bytes]
    pixels: tuple[tuple[int, int], ...]


def check_png(data: bytes) -> PngHeader:
    """Walk the chunks of a PNG to its end; raises Rejected where it stops early or a check sum is wrong.

    Pillow does not compare the check sums of pixel data, and forgives a missing end.
    """
    at, chunks, pixels = 8, set(), []
    size = len(data)
    while True:
        if at + 12 > size:
            raise Rejected("truncated", "The PNG stops before its IEND chunk.")
        length, name = struct.unpack_from(">I4s", data, at)
        if length > 0x7FFFFFFF or not name.isalpha():
            raise Rejected("corrupt", f"The PNG has a chunk with an impossible header at byte {at}.")
        end = at + 8 + length
        if end + 4 > size:
            raise Rejected("truncated", f"The PNG ends inside its {name.decode()} chunk.")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Rejected("corrupt", f"The check sum of the PNG's {name.decode()} chunk is wrong.")
        chunks.add(name)
        if name == b"IDAT":
            pixels.append((at + 8, end))
        if name == b"IEND":
            break
        at = end + 4
    if data[12:16] != b"IHDR" or b"IDAT" not in chunks:
        raise Rejected("corrupt", "The PNG has no header or no pixels.")
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    return PngHeader(width, height, depth, colour, bool(interlaced), frozenset(chunks), tuple(pixels))


def check_png_pixels(data: bytes, header: PngHeader) -> None:
    """Unpack the pixels of an 8-bit RGB PNG without interlacing; raises Rejected where a decoder would fail.

    That is all there is to know before such a file is stored as it is, at a third of the time of decoding it.
    """
    line = 1 + 3 * header.width
    unpacker = zlib.decompressobj()
    packed = b"".join(data[start:end] for start, end in header.pixels)
    try:
        rows = unpacker.decompress(packed, line * header.height)
    except zlib.error as error:
        raise Rejected("corrupt", f"The PNG's pixels cannot be unpacked: {error}.") from None
    if len(rows) < line * header.height:
        raise Rejected("truncated", "The PNG has fewer pixels than its header says.")
    if max(rows[::line]) > 4:
        raise Rejected("corrupt", "The PNG has a row with an unknown filter.")


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a PNG, before its chunks are walked."""
    return struct.unpack_from(">II", data, 16) if len(data) >= 24 and data[12:16] == b"IHDR" else None


def check_jpeg(data: bytes) -> None:
    """Walk the segments of a JPEG to its first scan; raises Rejected where there is none, or there are too many scans.

    Whether the last scan is all there is for the decoder to say, which reads it anyway. Only in a progressive JPEG, or
    one with a scan for each component, scans are counted: that means reading all bytes.
    """
    at, one_scan = 2, 0  # components of the frame, where its only scan would have all of them
    while at + 5 <= len(data):
        if data[at] != 0xFF:
            at += 1  # padding between segments; decoders skip it
            continue
        marker = data[at + 1]
        if marker == 0xDA:
            if data[at + 4] != one_scan:
                if data.find(b"\xff\xd9", at) < 0:  # inside a scan FF is followed by 00 or a restart marker
                    raise Rejected("truncated", "The JPEG has no end marker.")
                if data.count(b"\xff\xda", at) > SCAN_LIMIT:
                    raise Rejected("bomb", f"The JPEG has more than {SCAN_LIMIT} scans.")
            return
        if marker == 0xD9:
            raise Rejected("corrupt", "The JPEG ends before its first scan.")
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2  # no length behind these
            continue
        if marker in (0xC0, 0xC1) and at + 9 < len(data):
            one_scan = data[at + 9]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise Rejected("truncated", "The JPEG ends before its first scan.")


def check_webp(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP's canvas; raises Rejected where bytes are missing or the header is wrong.

    Read here because Pillow allocates the canvas as it opens the file.
    """
    if len(data) < 30 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise Rejected("truncated", "The WebP is shorter than its header says.")
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise Rejected("corrupt", "The WebP has no picture header.")


def check_boxes(data: bytes) -> None:
    """Walk the boxes of an AVIF or JPEG 2000 file; raises Rejected where the last one is not all there."""
    at = 0 if data[4:8] in (b"ftyp", b"jP  ") else len(data)  # a bare JPEG 2000 stream has no boxes
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length == 0:  # to the end of the file
            return
        if length < 8 or at + length > len(data):
            raise Rejected("truncated", "The file ends inside a box.")
        at += length


def is_lossless(kind: str, data: bytes) -> bool:
    """Whether a format keeps pixels exactly, so that re-encoding it as JPEG would be a loss of its own."""
    if kind == "webp":
        return b"VP8L" in data[12:4096]
    return kind in ("png", "gif", "bmp", "tiff", "ppm")
