"""Pickles of numpy arrays, read without running what a pickle may ask for."""

from __future__ import annotations

import codecs
import io
import pickle
import zipfile
from typing import Any

import numpy as np

from tenfold.errors import InputError

# Everything that a pickle of plain arrays may name. numpy moved its module; old pickles use the old name.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise InputError(
                f"the pickle asks for {module}.{name}, which an array does not need",
                "do not trust this file; fetch it anew from its official address",
            ) from None


def load_arrays(data: bytes) -> dict[Any, Any]:
    """The dictionary in a pickle of numpy arrays (also Python 2's, whose strings come out as bytes).

    Raises InputError where it names anything but arrays, or is no such pickle.
    """
    try:
        # Python 2 wrote array data as strings; "latin1" would be right for them and wrong for nothing we read, but
        # "bytes" keeps both kinds apart.
        value = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"not a pickle of arrays: {error}", "fetch the file anew") from None
    if not isinstance(value, dict):
        raise InputError(f"the pickle holds a {type(value).__name__}, not a dictionary", "fetch the file anew")
    return value


def load_torch_arrays(data: bytes) -> dict[Any, Any]:
    """The same from a `torch.save` file: a zip whose `data.pkl` holds numpy arrays (no torch is needed, or loaded)."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            return load_arrays(archive.read(name))
    except (zipfile.BadZipFile, StopIteration):
        raise InputError("not a file of torch.save", "fetch the file anew") from None
