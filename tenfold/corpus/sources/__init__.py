"""Fetched sources: where the images and labels of a corpus come from (`tenfold fetch NAME`).

    from tenfold.corpus import sources

    result = sources.fetch("cifar10n", to="data")       # download, check, unpack; instant when it is there
    source = sources.open_source("data/cifar10n")       # InputError where it is not a finished source
    source.manifest, source.name, source.splits         # Manifest, "cifar10n", {"train": 50000, "test": 10000}
    source.classes()                                     # corpus.table.Classes, the hierarchy included
    for record in source.records("train"): ...           # Record(file, image, labels, votes)
    for batch in source.batches("train", rows=512): ...  # the same as pyarrow record batches (schema RECORDS)

Sources in parquet (`DIR/NAME/SPLIT/*.parquet`) may as well be read directly; the others keep their official folder
layout and are read through the adapter of their name.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tenfold import storage
from tenfold.corpus.sources.base import RECORDS, Record, Source, read_classes
from tenfold.errors import InputError
from tenfold.manifest import Manifest

__all__ = ["NAMES", "RECORDS", "Record", "Source", "is_source", "open_source", "read_classes"]

# Name of the source and the module that fetches and reads it; modules load only when they are asked for.
NAMES: dict[str, str] = {
    "cifar10n": "tenfold.corpus.sources.cifar10n",
    "lmo": "tenfold.corpus.sources.lmo",
    "coco2017": "tenfold.corpus.sources.coco",
    "voc2012": "tenfold.corpus.sources.voc",
    "imagenet": "tenfold.corpus.sources.imagenet",
}


def is_source(path: str | Path) -> bool:
    """Whether a finished source lies at `path` (a folder with a `source.json`)."""
    return storage.exists(storage.join(storage.normalise(path), "source.json"))


def open_source(path: str | Path) -> Source:
    """Open the fetched source at `path`; raises InputError where there is none, or an unfinished one."""
    root = storage.normalise(path)
    if not is_source(root):
        raise InputError(
            f"{path} holds no finished source (no source.json)",
            f"run `tenfold fetch NAME` (again, if it was interrupted); NAME is one of: {', '.join(NAMES)}",
        )
    manifest = Manifest.read(storage.join(root, "source.json"))
    name = manifest.facts.get("name")
    if manifest.kind != "source" or name not in NAMES:
        raise InputError(f"{path} is no source that this version of Tenfold reads", f"known are: {', '.join(NAMES)}")
    manifest = manifest.model_copy(update={"uri": root})  # a source may be moved or copied whole
    source: Source = importlib.import_module(NAMES[name]).open_source(root, manifest)
    return source
