"""Ingest against the limit that no ingest can pass by much: reading and decoding the same files on the same cores.

Ingest does more (checks, hashes, scales, encodes, sorts, writes), and a little less: what is stored byte for byte is
decoded grey, which reads all of the entropy coding and so finds all damage.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import simplejpeg
from PIL import Image

from benchmarks.harness import Benchmark, Ratio, Values
from tenfold.corpus.ingest import ingest
from tenfold.corpus.inputs import IngestConfig
from tenfold.corpus.pool import cores

SMALL, LARGE = (510, 340), (4000, 2668)  # pixels: what is stored as it is, and what a camera makes


def benchmark(scale: float) -> Benchmark:
    """Two folders of photographs: small ones that keep their bytes, large ones that are scaled down."""
    folder = Path(tempfile.mkdtemp(prefix="tenfold-ingest-"))
    small = _photographs(folder / "small", SMALL, max(400, round(6_000 * scale)))
    large = _photographs(folder / "large", LARGE, max(20, round(160 * scale)))

    def ours() -> Values:
        values = {}
        for name, files in (("small", small), ("large", large)):
            to = folder / f"corpus-{name}"
            start = time.perf_counter()
            ingest(IngestConfig(input=str(folder / name)), str(to))
            values[f"{name}_rate"] = len(files) / (time.perf_counter() - start)
            shutil.rmtree(to)
        return values

    def bare() -> Values:
        values = {}
        for name, files in (("small", small), ("large", large)):
            start = time.perf_counter()
            with multiprocessing.get_context("spawn").Pool(cores()) as pool:  # ours starts its processes, too
                pool.map(_decode, files, chunksize=max(1, len(files) // 64))
            values[f"{name}_rate"] = len(files) / (time.perf_counter() - start)
        return values

    return Benchmark(
        what=f"images/s from class folders to a corpus: {len(small):,} of {SMALL[0]}x{SMALL[1]} px stored as they are, "
        f"{len(large):,} of {LARGE[0]}x{LARGE[1]} px scaled down",
        sides={"tenfold": ours, "bare decoding": bare},
        ratios=[Ratio("small", "small_rate", "higher", 0.8), Ratio("large", "large_rate", "higher", 0.6)],
        limits={"bare decoding": lambda: f"simplejpeg on {cores()} cores, to half size or less where that is enough"},
        close=lambda: shutil.rmtree(folder),
    )


def _photographs(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """Crops of a real photograph in twelve class folders; a comment makes the bytes of each its own."""
    spec = find_spec("sklearn")
    assert spec
    assert spec.origin
    with Image.open(Path(spec.origin).parent / "datasets" / "images" / "china.jpg") as opened:
        whole = opened.convert("RGB")
    kinds = []
    for i in range(24):
        stored = io.BytesIO()
        crop = whole.crop((i * 4, i * 2, 480 + i * 4, 320 + i * 2))
        crop.resize(size, Image.Resampling.BICUBIC).save(stored, "JPEG", quality=85)
        kinds.append(stored.getvalue())
    files = []
    for i in range(count):
        path = folder / f"class {i % 12}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = kinds[i % len(kinds)]
        path.write_bytes(data[:2] + b"\xff\xfe\x00\x0a" + i.to_bytes(8, "big") + data[2:])
        files.append(str(path))
    return files


def _decode(path: str) -> Any:
    data = Path(path).read_bytes()
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    part = 4 if min(width, height) >= 4 * 340 else 1
    options = {"min_height": math.ceil(height / part), "min_width": math.ceil(width / part)} if part > 1 else {}
    return simplejpeg.decode_jpeg(data, **options).shape
