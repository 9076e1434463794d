"""The corpus: one Lance table of images in random order, one of classes, and a manifest for each tagged state.

    CORPUS/images.lance       the images in order of `rank` (schema below)
    CORPUS/classes.lance      index, name, title, parents
    CORPUS/quarantine.lance   file, reason, detail: what ingest could not take
    CORPUS/manifests/TAG.json one manifest for each state (`ingested`, `closed`, `gated`, …)
    CORPUS/manifest.json      the newest state; written last, so a corpus without it is not complete

Rows lie in order of `rank`, so a random subset of n images is the first n rows (D-12). Labels are columns: a step that
changes them rewrites columns, never images, and every earlier state stays readable under its tag (design section 4).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tenfold import storage
from tenfold.errors import InputError
from tenfold.manifest import Manifest

if TYPE_CHECKING:  # loaded where it is used: it takes a second and 80 MB, and ingest's workers only need the schema
    import lance

IMAGES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # sha256 of the source file's bytes, 64 hex digits
        pa.field("rank", pa.uint64(), nullable=False),  # hash of id and salt; the table's order
        pa.field("image", pa.large_binary(), nullable=False),  # encoded JPEG or PNG, upright 8-bit RGB
        pa.field("width", pa.int32(), nullable=False),  # of the stored image, pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),  # class indices, ascending, no repeats
        pa.field("votes", pa.list_(pa.float32()), nullable=False),  # one for each label: weight of evidence
        pa.field("source", pa.string(), nullable=False),  # where it came from, for people
        pa.field("flags", pa.int32(), nullable=False),  # bits of Flags below
    ]
)
CLASSES = pa.schema(
    [
        pa.field("index", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # unique and stable: a synset id, a folder name
        pa.field("title", pa.string(), nullable=False),  # for people
        pa.field("parents", pa.list_(pa.int32()), nullable=False),
    ]
)
QUARANTINE = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # one word: truncated, corrupt, empty, foreign, bomb, …
        pa.field("detail", pa.string(), nullable=False),  # a sentence
    ]
)
DEFAULT_SALT = "tenfold"


class Flags(enum.IntFlag):
    """Bits of the column `flags`: what happened to an image on its way in."""

    REDUCED = 1  # scaled down to the largest short side
    REENCODED = 2  # the stored bytes are not those of the source file
    RECOVERED = 4  # the decoder met stray bytes that it could skip
    REPEATED = 8  # the same bytes came under several names


def rank_of(ids: list[str], salt: str = DEFAULT_SALT) -> np.ndarray:
    """Rank of each id: the first 8 bytes of blake2b(id, key=salt) as big-endian uint64.

    A pure function of id and salt, so an image keeps its rank whatever else is in the corpus: subsets are nested and
    stable (D-12).
    """
    key = salt.encode()
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


@dataclass(frozen=True)
class Classes:
    """The class list with its hierarchy, a directed graph whose edges point to parents (D-05, D-10).

    Attributes:
        names: unique, stable names; the position is the class index.
        titles: names for people.
        parents: for each class the indices of its parents; several are allowed.
    """

    names: tuple[str, ...]
    titles: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def flat(cls, names: list[str]) -> Classes:
        """Classes without a hierarchy."""
        return cls(tuple(names), tuple(names), ((),) * len(names))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of a class by name; raises InputError where there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise InputError(f"no class is named {name!r}", "see `tenfold corpus info` for the classes") from None

    def find(self, name: str) -> int:
        """Index of a class by name, -1 where there is none."""
        return self._by_name.get(name, -1)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def to_arrow(self) -> pa.Table:
        """As a table in the schema CLASSES."""
        columns = [range(len(self)), list(self.names), list(self.titles), [list(p) for p in self.parents]]
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, CLASSES, strict=True)], schema=CLASSES)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Classes:
        """From a table in the schema CLASSES, in order of index."""
        table = table.sort_by("index")
        return cls(
            tuple(table["name"].to_pylist()),
            tuple(table["title"].to_pylist()),
            tuple(tuple(p) for p in table["parents"].to_pylist()),
        )


@dataclass(frozen=True)
class Corpus:
    """One state of a corpus, opened for reading. Later steps write new states; this one stays as it is.

    Attributes:
        uri: the corpus folder.
        manifest: of this state; `facts` hold tag, versions, rows, salt.
    """

    uri: str
    manifest: Manifest

    @classmethod
    def open(cls, uri: str) -> Corpus:
        """Open `CORPUS` (its newest state), `CORPUS@TAG`, or a manifest's path.

        Raises InputError where there is no finished corpus, or no such tag (naming those there are).
        """
        where, at, tag = uri.rpartition("@")
        if not at or "/" in tag:  # folders may have an @ in their names
            where, tag = uri, ""
        if where.endswith(".json"):
            manifest = Manifest.read(where)
        else:
            root = storage.normalise(where)
            path = storage.join(root, "manifests", f"{tag}.json") if tag else storage.join(root, "manifest.json")
            if not storage.exists(path):
                there = [p.removesuffix(".json") for p in storage.list_files(storage.join(root, "manifests"))]
                if tag and there:
                    raise InputError(f"{where} has no state {tag!r}", f"choose one of: {', '.join(there)}")
                raise InputError(
                    f"{where} holds no finished corpus",
                    "run `tenfold corpus ingest` (again, if it was interrupted)",
                )
            manifest = Manifest.read(path)
            manifest = manifest.model_copy(update={"uri": root})  # a corpus may be moved or copied whole
        if manifest.kind != "corpus":
            raise InputError(f"{uri} is a {manifest.kind}, not a corpus", "pass a corpus folder or its manifest")
        return cls(manifest.uri, manifest)

    @property
    def tag(self) -> str:
        """Name of this state."""
        return str(self.manifest.facts["tag"])

    @property
    def rows(self) -> int:
        """Number of images."""
        return int(self.manifest.facts["rows"])

    @property
    def digest(self) -> str:
        """Digest of this state's content: ids, labels, votes, flags in order, and classes."""
        return self.manifest.digest

    @cached_property
    def images(self) -> lance.LanceDataset:
        """The Lance table of images at this state's version."""
        return dataset(storage.join(self.uri, "images.lance"), self.manifest.facts["images_version"])

    @cached_property
    def classes(self) -> Classes:
        """The classes at this state's version."""
        uri = storage.join(self.uri, "classes.lance")
        return Classes.from_arrow(dataset(uri, self.manifest.facts["classes_version"]).to_table())

    def quarantine(self) -> pa.Table:
        """What ingest could not take (schema QUARANTINE); may be empty."""
        return dataset(storage.join(self.uri, "quarantine.lance")).to_table()

    def batches(self, columns: list[str], n: int | None = None, rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """The first `n` rows (all by default) in rank order, as record batches of `columns`.

        Args:
            columns: names.
            n: how many rows.
            rows: of a batch, at most; by default 8,192, and 256 with images. The trap: Lance reads several batches
                ahead, so memory is many times that of one.

        Raises InputError where the corpus has fewer than `n` rows.
        """
        self.check_size(n)
        rows = rows or (256 if "image" in columns else 8192)
        with storage.translate(self.uri):
            yield from self.images.scanner(columns=columns, limit=n, batch_size=rows, scan_in_order=True).to_batches()

    def check_size(self, n: int | None) -> int:
        """`n`, or all rows where it is None; raises InputError where there are fewer."""
        if n is not None and not 0 < n <= self.rows:
            raise InputError(
                f"{self.uri} has {self.rows:,} images, so no subset of {n:,}",
                f"choose n from 1 to {self.rows}",
            )
        return self.rows if n is None else n

    def rewrite(
        self,
        tag: str,
        read: list[str],
        change: Callable[[pa.RecordBatch], pa.RecordBatch],
        *,
        classes: Classes | None = None,
        recipe: dict[str, Any] | None = None,
        inputs: list[str] | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Corpus:
        """Write a new state in which some columns are replaced or added; images are not touched.

        Args:
            tag: name of the new state; an existing state of that name is replaced.
            read: columns that `change` gets.
            change: record batch in, record batch of the new columns out (same number of rows, any names but
                `id`, `rank`, `image`). Called in rank order.
            classes: new classes, where they changed.
            recipe, inputs, facts: for the manifest; this state's digest is always among the inputs.
        """
        import lance

        with storage.translate(self.uri):
            # A handle of its own: Lance moves the handle it writes through, and this state has to stay as it is.
            table = dataset(storage.join(self.uri, "images.lance"), self.manifest.facts["images_version"])
            if table.version != table.latest_version:  # an interrupted rewrite, or a step from an older state
                table.restore()
            first = next(table.scanner(columns=read, limit=1).to_batches())
            produced = change(first).schema.names
            replaced = [name for name in produced if name in table.schema.names]
            aside = {name: f"{name}__new" for name in replaced}

            def renamed(batch: pa.RecordBatch) -> pa.RecordBatch:
                new = change(batch)
                return new.rename_columns([aside.get(name, name) for name in new.schema.names])

            left_over = [name for name in aside.values() if name in table.schema.names]
            if left_over:
                table.drop_columns(left_over)
            table.add_columns(lance.batch_udf(output_schema=renamed(first).schema)(renamed), read_columns=read)
            if replaced:
                table.drop_columns(replaced)
                table.alter_columns(*({"path": new, "name": old} for old, new in aside.items()))
        return commit(
            self.uri,
            tag,
            classes=classes if classes is not None else self.classes,
            recipe=recipe or {},
            inputs=[self.digest, *(inputs or [])],
            # `closed`: labels hold their ancestors (hierarchy.close); a step that breaks this passes closed=None.
            facts={**{k: v for k, v in self.manifest.facts.items() if k in ("salt", "closed")}, **(facts or {})},
        )


def dataset(uri: str, version: int | None = None) -> lance.LanceDataset:
    """Open a Lance table with the right storage settings; raises StorageError where it cannot be reached."""
    import lance

    with storage.translate(uri):
        return lance.dataset(uri, version=version, storage_options=storage.lance_options(uri))


def commit(
    uri: str,
    tag: str,
    *,
    classes: Classes,
    recipe: dict[str, Any],
    inputs: list[str],
    facts: dict[str, Any],
) -> Corpus:
    """Tag the newest versions of the tables as state `tag` and write its manifests, the newest-state one last."""
    import lance

    uri = storage.normalise(uri)
    images = dataset(storage.join(uri, "images.lance"))
    where = storage.join(uri, "classes.lance")
    table = classes.to_arrow()
    known = storage.exists(where)
    with storage.translate(uri):
        if not known or dataset(where).to_table() != table:
            mode = "overwrite" if known else "create"
            lance.write_dataset(table, where, schema=CLASSES, mode=mode, storage_options=storage.lance_options(where))
        versions = {"images_version": images.version, "classes_version": dataset(where).version}
        for name, version in ((images, versions["images_version"]), (dataset(where), versions["classes_version"])):
            if tag in name.tags.list():
                name.tags.update(tag, version)
            else:
                name.tags.create(tag, version)
        digest, counted = digest_tables(images, classes)
    manifest = Manifest(
        kind="corpus",
        uri=uri,
        digest=digest,
        inputs=inputs,
        recipe=recipe,
        facts={"tag": tag, **versions, **counted, **facts},
    )
    manifest.write(storage.join(uri, "manifests", f"{tag}.json"))
    manifest.write(storage.join(uri, "manifest.json"))
    return Corpus(uri, manifest)


def digest_tables(images: lance.LanceDataset, classes: Classes) -> tuple[str, dict[str, int]]:
    """Digest of a state's content and the counts met on the way (`rows`, `labels`, `classes`).

    Image bytes enter through `id`, the hash of the source file. Each column is hashed on its own: where batches end
    depends on the fragments of the table, which are no content.
    """
    states = {name: hashlib.sha256() for name in ("id", "width", "height", "flags", "lengths", "labels", "votes")}
    rows = labels = 0
    columns = ["id", "width", "height", "labels", "votes", "flags"]
    for batch in images.scanner(columns=columns, batch_size=8192, scan_in_order=True).to_batches():
        rows += batch.num_rows
        labels += len(batch["labels"].flatten())
        states["id"].update("".join(batch["id"].to_pylist()).encode())
        for name, values, form in (
            ("width", batch["width"], "<i4"),
            ("height", batch["height"], "<i4"),
            ("flags", batch["flags"], "<i4"),
            ("lengths", batch["labels"].value_lengths(), "<i4"),
            ("labels", batch["labels"].flatten(), "<i4"),
            ("votes", batch["votes"].flatten(), "<f4"),
        ):
            states[name].update(values.to_numpy(zero_copy_only=False).astype(form).tobytes())
    whole = hashlib.sha256(b"".join(state.digest() for state in states.values()))
    whole.update(repr((classes.names, classes.parents)).encode())
    return "sha256:" + whole.hexdigest(), {"rows": rows, "labels": labels, "classes": len(classes)}
