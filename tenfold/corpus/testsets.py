"""Test sets as the near-duplicate gate reads them: a split of a fetched source, another corpus, or a folder of images.

DIR/cifar10n:test     split of what `tenfold fetch` wrote
CORPUS, CORPUS@TAG    a corpus
FOLDER                any folder (or s3:// prefix); files that are no images are left out
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold import storage
from tenfold.corpus import sources
from tenfold.corpus.inputs import walk
from tenfold.corpus.table import Corpus
from tenfold.errors import InputError

_BATCH = 256  # images read at once
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")


@dataclass(frozen=True)
class TestImage:
    """One image of a test set.

    Attributes:
        file: its name in the test set.
        id: sha256 of the source file's bytes, 64 hex digits, as in a corpus.
        data: encoded bytes.
        stored: whether they are as a corpus stores them (upright 8-bit RGB); others may be anything.
    """

    __test__ = False  # no test class, whatever pytest thinks

    file: str
    id: str
    data: bytes
    stored: bool = False


@dataclass(frozen=True)
class TestSet:
    """A test set that was recognised.

    Attributes:
        kind: which of the three.
        uri: as given, made absolute.
        name: short name, for the gate's name.
        digest: of its manifest (with the split); None for a folder, which is known by content only when it is read.
    """

    __test__ = False

    kind: Literal["source", "corpus", "folder"]
    uri: str
    name: str
    digest: str | None
    _opened: Any = field(default=None, repr=False)
    _split: str = ""

    def batches(self) -> Iterator[list[TestImage]]:
        """All images in a fixed order, at most a few hundred in memory."""
        if self.kind == "corpus":
            for batch in self._opened.batches(["id", "image", "source"], rows=_BATCH):
                rows = zip(*(batch[name].to_pylist() for name in ("source", "id", "image")), strict=True)
                yield [TestImage(file, id_, data, stored=True) for file, id_, data in rows]
        elif self.kind == "source":
            for batch in self._opened.batches(self._split, rows=_BATCH):
                rows = zip(batch["file"].to_pylist(), batch["image"].to_pylist(), strict=True)
                yield [_image(file, data) for file, data in rows]
        else:
            held = []
            for file, _ in sorted(walk(self.uri)):
                if file.lower().endswith(_SUFFIXES):
                    held.append(_image(file, storage.read_bytes(storage.join(self.uri, file))))
                    if len(held) == _BATCH:
                        yield held
                        held = []
            if held:
                yield held


def _image(file: str, data: bytes) -> TestImage:
    return TestImage(file, hashlib.sha256(data).hexdigest(), data)


def open_test(test: str) -> TestSet:
    """Recognise a test set; raises InputError where it is none of the three."""
    where, colon, split = test.rpartition(":")
    if colon and where and "/" not in split and sources.is_source(where):
        source = sources.open_source(where)
        source.check_split(split)
        return TestSet(
            "source", f"{source.root}:{split}", f"{source.name}-{split}", source.manifest.digest, source, split
        )
    root = storage.normalise(test)
    if sources.is_source(root):
        splits = sources.open_source(root).splits
        if "test" not in splits:
            raise InputError(f"{test} does not say which split", f"add one of: :{', :'.join(splits)}")
        return open_test(f"{test}:test")
    bare = root.rpartition("@")[0] or root
    if root.endswith(".json") or storage.exists(storage.join(bare, "images.lance")):
        corpus = Corpus.open(test)
        return TestSet("corpus", corpus.uri, corpus.uri.rpartition("/")[2], corpus.digest, corpus)
    if not storage.exists(root):
        raise InputError(f"{test} does not exist", "pass a fetched source (DIR/NAME:SPLIT), a corpus or a folder")
    return TestSet("folder", root, root.rpartition("/")[2] or "test", None)
