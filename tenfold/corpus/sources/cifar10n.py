"""CIFAR-10 photographs with the labels that three people really gave each training image (CIFAR-10N)."""

from __future__ import annotations

from tenfold.corpus.sources.base import Source
from tenfold.corpus.sources.parquet import ParquetSource
from tenfold.manifest import Manifest


def open_source(root: str, manifest: Manifest) -> Source:
    """The source at `root`: parquet, splits `train` and `test`."""
    return ParquetSource(root, manifest)
