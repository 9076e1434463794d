"""Pickles of arrays are read; pickles of anything else are refused before they act."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tenfold.corpus.sources.pickles import load_arrays, load_torch_arrays
from tenfold.errors import InputError


class _Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(5))
def test_arrays(protocol: int) -> None:
    value = {"a": np.arange(5), "b": np.ones((2, 3), np.float32), "c": [1, 2]}
    read = load_arrays(pickle.dumps(value, protocol=protocol))
    np.testing.assert_array_equal(read["a"], value["a"])
    np.testing.assert_array_equal(read["b"], value["b"])
    assert read["c"] == [1, 2]


def test_old_names_of_numpy() -> None:
    """Archives of the data were written by numpy 1, whose module was named otherwise."""
    data = pickle.dumps({"a": np.arange(5)}, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(load_arrays(data)["a"], np.arange(5))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    with pytest.raises(InputError, match=r"mkdir, which an array does not need"):
        load_arrays(pickle.dumps({"a": _Attack(target)}, protocol=protocol))
    assert not target.exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps({"a": 1})[:-3], pickle.dumps([1])])
def test_other_files(data: bytes) -> None:
    with pytest.raises(InputError):
        load_arrays(data)
    with pytest.raises(InputError, match="not a file of torch"):
        load_torch_arrays(data)


def test_equals_torch_save(tmp_path: Path) -> None:
    """Oracle: a file that torch.save wrote."""
    import torch

    value = {"clean_label": np.arange(7), "worse_label": np.arange(7)[::-1].copy()}
    torch.save(value, tmp_path / "labels.pt")
    read = load_torch_arrays((tmp_path / "labels.pt").read_bytes())
    assert read.keys() == value.keys()
    for name in value:
        np.testing.assert_array_equal(read[name], value[name])


def test_zip_without_a_pickle() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(InputError, match="not a file of torch"):
        load_torch_arrays(buffer.getvalue())
