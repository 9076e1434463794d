"""pixels.c: compiled once for this machine, kept in the user's cache, and left out where that is not possible.

It makes decoding and cropping of photographs faster, never different: its pixels equal those of images.py bit for bit,
which is checked once whenever it is loaded. Without a C compiler, without Pillow's libjpeg-turbo, or with
`TENFOLD_NATIVE=0`, images.py does the work alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("pixels.c")
FLAGS = ["-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-clobbered"]
COMPILE_SECONDS = 60

logger = logging.getLogger(__name__)

JpegCrop = Callable[[bytes | memoryview, float, float, int, int, bool, np.ndarray], bool]


@functools.cache
def jpeg_crop() -> JpegCrop | None:
    """The compiled function, or None where there is none; the first call may compile for a second.

    It takes (data, left, top, resize, crop, flip, out): the JPEG; place and side of the crop in an image that had been
    resized to `resize` x `resize`; whether to mirror; uint8 [crop, crop, 3], contiguous. It returns False, with `out`
    undefined, where the image has to take the other way: damaged, not RGB, smaller than the crop.
    """
    if os.environ.get("TENFOLD_NATIVE") == "0":
        return None
    try:
        return _bind(build(), pillow_libjpeg())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.info("photographs are decoded without pixels.c: %s", error)
        return None


def build(folder: Path | None = None) -> Path:
    """The shared library of pixels.c for this processor, compiled where it is not in `folder` (the user's cache) yet.

    Raises FileNotFoundError without a compiler, SubprocessError where it fails, OSError where nothing can be written.
    """
    source = SOURCE.read_bytes()
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc, gcc or clang)")
    key = hashlib.sha256(repr((source, FLAGS, compiler, _processor())).encode()).hexdigest()[:20]
    path = (folder or _cache()) / f"pixels-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            made = Path(aside) / "pixels.so"
            command = [compiler, *FLAGS, "-o", str(made), str(SOURCE), "-lm", "-ldl"]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
            os.replace(made, path)  # ranks that start together each compile; any one of them wins
    return path


def pillow_libjpeg() -> Path:
    """libjpeg-turbo as Pillow has loaded it into this process; raises FileNotFoundError where it cannot be told."""
    from PIL import _imaging  # noqa: F401

    if sys.platform == "linux" and platform.architecture()[0] == "64bit":
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.partition("/")[2]
            if "libjpeg" in path and ".so.62" in path:
                return Path("/" + path)
    raise FileNotFoundError("Pillow's libjpeg-turbo was not found")


def _bind(library: Path, libjpeg: Path) -> JpegCrop:
    code = ctypes.CDLL(str(library))
    if code.tenfold_open(os.fsencode(libjpeg)):
        raise ValueError(f"{libjpeg} is not libjpeg-turbo")
    new, free, crop_ = code.tenfold_scratch_new, code.tenfold_scratch_free, code.tenfold_jpeg_crop
    new.restype = ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None
    pointer, number = ctypes.c_void_p, ctypes.c_double
    crop_.argtypes = [pointer, pointer, ctypes.c_size_t, number, number, *[ctypes.c_int] * 3, pointer]
    local = threading.local()

    class Scratch:
        """Memory of a thread, given back when the thread ends."""

        def __init__(self) -> None:
            self.address = new()
            if self.address is None:
                raise MemoryError
            weakref.finalize(self, free, self.address)

    def call(
        data: bytes | memoryview, left: float, top: float, resize: int, crop: int, flip: bool, out: np.ndarray
    ) -> bool:
        try:
            scratch = local.scratch
        except AttributeError:
            scratch = local.scratch = Scratch()
        if (
            out.shape != (crop, crop, 3)
            or out.dtype != np.uint8
            or not out.flags.c_contiguous
            or not out.flags.writeable
        ):
            raise ValueError(f"out must be writable uint8 [{crop}, {crop}, 3], contiguous")
        bytes_ = np.frombuffer(data, np.uint8)
        where = (bytes_.ctypes.data, bytes_.size, left, top, resize, crop, flip, out.ctypes.data)
        return bool(crop_(scratch.address, *where) == 0)

    _check(call)
    return call


def _check(call: JpegCrop) -> None:
    """Raise ValueError where a small image does not come out as images.py makes it."""
    import simplejpeg

    from tenfold.engine.images import crop_pixels

    y, x = np.mgrid[:52, :61]
    image = np.stack([x * 4, y * 4, (x * y) % 256], axis=-1).astype(np.uint8)
    data = simplejpeg.encode_jpeg(image, quality=90, colorsubsampling="420")
    for flip in (False, True):
        native, plain = np.empty((2, 40, 40, 3), np.uint8)
        crop_pixels(simplejpeg.decode_jpeg(data), 3, 5, 46, 40, flip, plain)
        if not call(data, 3, 5, 46, 40, flip, native) or not np.array_equal(native, plain):
            raise ValueError("its pixels differ from those of images.py")


def _cache() -> Path:
    base = os.environ.get("TENFOLD_CACHE")
    if base:
        return Path(base).expanduser().absolute() / "native"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tenfold" / "native"


def _processor() -> str:
    """What `-march=native` depends on; a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
