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

import difflib
import importlib
from pathlib import Path

from tenfold import storage
from tenfold.corpus.sources import fetching
from tenfold.corpus.sources.base import RECORDS, Record, Source, read_classes
from tenfold.corpus.sources.fetching import Fetched
from tenfold.corpus.sources.spec import Bars, Spec, no_bars
from tenfold.errors import InputError
from tenfold.manifest import Manifest

__all__ = [
    "NAMES",
    "RECORDS",
    "Fetched",
    "Record",
    "Source",
    "fetch",
    "is_source",
    "open_source",
    "read_classes",
    "spec",
]

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
    return spec(name).read(root, manifest)


def spec(name: str) -> Spec:
    """What the source's module states; raises InputError naming the sources there are."""
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"no source is named {name!r}", f"{hint}There are: {', '.join(NAMES)}")
    stated: Spec = importlib.import_module(NAMES[name]).SPEC
    return stated


def fetch(
    name: str,
    to: str | Path = "data",
    *,
    from_dir: str | Path | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
    verify: bool = False,
    bars: Bars = no_bars,
) -> Fetched:
    """Fetch a source by name to `TO/NAME`, or find it there whole; see `fetching.fetch` for the arguments."""
    return fetching.fetch(spec(name), to, from_dir=from_dir, cache=cache, offline=offline, verify=verify, bars=bars)
