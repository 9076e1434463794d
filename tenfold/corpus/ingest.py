"""`tenfold corpus ingest`: a pile of images becomes a corpus, in bounded memory, however large it is.

    list     the input is divided into parts (inputs.py)                     CORPUS/.ingest/plan
    read     workers normalise pictures and write them as sorted runs        CORPUS/.ingest/runs, done
    order    buckets, ranges of rank that fit memory, are gathered from      CORPUS/images.lance/data
             all runs and written as fragments of the table
    commit   the table gets its version, its tag and, last, its manifest     CORPUS/manifest.json

Every step leaves what it has finished in the scratch folder, so after a kill the same command goes on from there; the
scratch folder goes when the corpus is complete. The corpus depends on the input and the settings only: not on the
number of workers or buckets, the order of files, or how often it was killed.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from tenfold import storage
from tenfold.corpus.inputs import IngestConfig, Input, Tally, class_list, part_uri, recognise
from tenfold.corpus.ordering import order
from tenfold.corpus.pool import Pool, cores
from tenfold.corpus.sources.spec import Bars, no_bars
from tenfold.corpus.spill import Run
from tenfold.corpus.table import QUARANTINE, commit, dataset
from tenfold.corpus.worker import Settings, done_uri
from tenfold.errors import InputError
from tenfold.manifest import Manifest, digest_json

FORMAT = 1  # of the scratch folder; another one does not go on with it
MEMORY = 1.5 * 2**30  # bytes, of all processes together
# What memory goes to, measured (resident bytes): this process while it reads, the same with Lance, a worker before its
# first picture, and the worst picture of 50 megapixels (a WebP) while it is decoded; there is one such at a time.
_READING, _PARENT, _WORKER, _LARGE = 120 << 20, 350 << 20, 110 << 20, 780 << 20
_COPIES = 3  # of a run in a worker
_RUNS = (8 << 20, 128 << 20)  # least and most bytes of a run


class IngestReport(BaseModel):
    """What an ingest did.

    Attributes:
        uri: the corpus.
        digest: of its content.
        rows: images in it.
        classes: number of classes.
        labels: labels of all images together.
        files: pictures that were taken, under whatever name.
        repeats: names beyond one for each content; their labels were united.
        quarantined: number of files by reason.
        missing: rows of the labels file without an image.
        unlisted: files in the folder without a row in the labels file.
        image_bytes: of the stored images.
        resumed: parts that an earlier run had finished.
        existed: the corpus was complete already, and nothing was done.
        seconds: it took.
    """

    uri: str
    digest: str
    rows: int
    classes: int
    labels: int
    files: int
    repeats: int
    quarantined: dict[str, int]
    missing: int
    unlisted: int
    image_bytes: int
    resumed: int = 0
    existed: bool = False
    seconds: float = 0.0


def ingest(
    config: IngestConfig,
    to: str,
    *,
    workers: int | None = None,
    memory: float = MEMORY,
    overwrite: bool = False,
    bars: Bars = no_bars,
) -> IngestReport:
    """Make a corpus at `to` of what `config` names; goes on where an earlier, interrupted run had come to.

    Args:
        config: input and settings.
        to: the corpus, a folder or `s3://…`.
        workers: processes; by default as many as there are cores and memory allows.
        memory: bytes that all processes together may hold.
        overwrite: replace another corpus at `to`, or an unfinished one of other settings; the old one stays readable
            until the new one is complete.
        bars: shows progress.

    Raises InputError where the input is none, where nothing of it can be taken, or where `to` holds something else.
    """
    begun = time.monotonic()
    to = storage.normalise(to)
    folder = storage.join(to, ".ingest")
    _check_places(config, to)
    with _alone(to):
        found = recognise(config)
        old, plan = _finished(to), _Plan.read(folder)
        fresh = plan is None and (old is None or overwrite)
        if fresh:
            storage.remove(folder)  # of a run that was killed while it listed
        tally, parts = _list(found, folder if fresh else None, bars)
        recipe = {"format": FORMAT, "kind": found.kind, **config.model_dump(exclude={"input", "labels", "classes"})}
        read = [*found.digests, *([tally.digest] if tally.files else [])]
        inputs = [*read, *([found.classes_digest] if found.classes_digest else [])]
        key = digest_json([recipe, read, config.input])
        if old and (old.recipe, old.inputs) == (recipe, inputs) and not fresh:
            storage.remove(folder)
            return _report(to, old, existed=True, seconds=time.monotonic() - begun)
        if old and not overwrite:
            raise InputError(
                f"{to} holds a corpus of {_difference(old, recipe, inputs)}",
                "choose another folder, or replace it (--overwrite)",
            )
        if plan and plan.key != key:
            if not overwrite:
                raise InputError(
                    f"{to} holds an unfinished ingest of other settings, or its input has changed since it began",
                    "run it with the same settings and input to go on, or begin anew (--overwrite)",
                )
            storage.remove(folder)
            tally, parts = _list(found, folder, bars)
            plan = None
        if plan is None:
            plan = _Plan(key=key, parts=parts, items=tally.items if found.sized else None)
            storage.write_bytes(storage.join(folder, "plan.json"), plan.model_dump_json().encode())
        workers, settings = _share(config, folder, workers, memory)
        done = _read(plan, settings, workers, bars)
        classes = class_list(found.kind, done.names, found.classes)
        if not done.runs:
            storage.remove(folder)
            raise InputError(f"none of the files of {config.input} could be taken: {done.some()}", "check the input")
        made = order(to, folder, done.runs, classes, memory=memory - _PARENT, bars=bars)
        _write_quarantine(to, folder, plan.parts)
        faults = done.faults
        missing = faults.pop("missing", 0)
        unlisted = max(0, tally.files - done.images - sum(faults.values())) if found.kind == "labels" else 0
        facts = {
            "salt": config.salt,
            "input": config.input,
            "kind": found.kind,
            "files": made.files,
            "repeats": made.files - made.rows,
            "quarantined": dict(faults.most_common()),
            "missing": missing,
            "unlisted": unlisted,
            "image_bytes": made.image_bytes,
        }
        corpus = commit(to, "ingested", classes=classes, recipe=recipe, inputs=inputs, facts=facts)
        _sweep(to)
        storage.remove(folder)
        return _report(to, corpus.manifest, resumed=done.resumed, seconds=time.monotonic() - begun)


def _check_places(config: IngestConfig, to: str) -> None:
    if to == config.input or to.startswith(config.input.rstrip("/") + "/"):
        raise InputError(f"the corpus {to} would lie inside its own input {config.input}", "choose another folder")
    storage.preflight(config.input, write=False)
    storage.preflight(to)


@contextmanager
def _alone(to: str) -> Iterator[None]:
    """One ingest into a corpus at a time on this machine; the system takes the lock back when its holder dies."""
    name = f"tenfold-{os.getuid()}-{hashlib.sha256(to.encode()).hexdigest()[:16]}.lock"
    with open(os.path.join(tempfile.gettempdir(), name), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip()
            raise InputError(f"another ingest into {to} is running (process {who})", "wait for it, or end it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _finished(to: str) -> Manifest | None:
    """Manifest of the ingested state, where the corpus is complete."""
    if not storage.exists(storage.join(to, "manifest.json")):
        return None
    newest = Manifest.read(storage.join(to, "manifest.json"))
    first = storage.join(to, "manifests", "ingested.json")
    return Manifest.read(first) if storage.exists(first) else newest


def _difference(old: Manifest, recipe: dict[str, Any], inputs: list[str]) -> str:
    """What differs between a corpus that is there and the one that is wanted, for people."""
    other = [name for name in recipe if old.recipe.get(name) != recipe[name]]
    if other:
        return f"other settings ({', '.join(other)})"
    return "another input, or of this input as it was before" if old.inputs != inputs else "the same content"


class _Plan(BaseModel):
    """How an input was divided; written when all parts are.

    Attributes:
        format: of the scratch folder.
        key: of settings and input; a plan of another key is not gone on with.
        parts: their number.
        items: images in them, where that is known before they are read.
    """

    format: int = FORMAT
    key: str
    parts: int
    items: int | None

    @classmethod
    def read(cls, folder: str) -> _Plan | None:
        uri = storage.join(folder, "plan.json")
        plan = cls.model_validate_json(storage.read_bytes(uri)) if storage.exists(uri) else None
        return plan if plan and plan.format == FORMAT else None


def _list(found: Input, folder: str | None, bars: Bars) -> tuple[Tally, int]:
    """List the input, and write its parts into `folder` where one is given; returns what was met and their number."""
    tally = Tally()
    number = 0
    try:
        with bars("listing", None) as advance:
            for part in found.parts(tally):
                if folder is not None:
                    storage.write_bytes(part_uri(folder, number), json.dumps(part).encode())
                number += 1
                advance(len(part.get("items", (1,))), "")
    except InputError:
        if folder is not None:
            storage.remove(folder)
        raise
    return tally, number


def _share(config: IngestConfig, folder: str, workers: int | None, memory: float) -> tuple[int, Settings]:
    """Divide memory between workers; raises InputError where it is not enough for one."""
    room = memory - _READING - _LARGE
    most = int(room / (_WORKER + _COPIES * _RUNS[0]))
    if most < 1:
        raise InputError(
            f"{memory / 2**30:.2f} GiB is too little memory to ingest with",
            f"allow {(memory - room + _WORKER + _COPIES * _RUNS[0]) / 2**30:.2f} GiB or more (--memory)",
        )
    workers = min(workers or cores(), most)
    run_bytes = int(min(_RUNS[1], max(_RUNS[0], (room / workers - _WORKER) / _COPIES)))
    return workers, Settings(
        folder=folder,
        picture=config.picture,
        separator=config.separator,
        salt=config.salt,
        max_bytes=config.max_bytes,
        run_bytes=run_bytes,
    )


@dataclass
class _Done:
    """What the first pass found, summed over parts; what grows with the input stays in the parts' records."""

    runs: list[Run] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    images: int = 0
    resumed: int = 0

    def add(self, record: dict[str, Any]) -> None:
        self.runs += [Run(*run) for run in record["runs"]]
        self.names.update(record["names"])
        self.images += record["images"]
        for file, reason, _ in record["quarantine"]:
            self.faults[reason] += 1
            self.examples[reason] = min(file, self.examples.get(reason, file))

    def some(self) -> str:
        """The reasons of quarantine with numbers and an example each, for people."""
        reasons = (f"{count:,} {reason} ({self.examples[reason]})" for reason, count in self.faults.most_common())
        return "; ".join(reasons) or "there were none"


def _read(plan: _Plan, settings: Settings, workers: int, bars: Bars) -> _Done:
    """The first pass; parts that an earlier run has finished are only counted."""
    done = _Done()
    with bars("reading", plan.items) as advance:
        bad, begun, count = 0, time.monotonic(), 0

        def progress(items: int, faulty: int) -> None:
            nonlocal bad, count
            bad, count = bad + faulty, count + items
            advance(items, f"{count / (time.monotonic() - begun):,.0f}/s, {bad:,} quarantined")

        there = set()
        for name in storage.list_files(storage.join(settings.folder, "done")):
            record = _record(settings.folder, int(name.partition(".")[0]))
            there.add(int(name.partition(".")[0]))
            done.add(record)
            bad += len(record["quarantine"])
            advance(record["images"] + len(record["quarantine"]), f"{bad:,} quarantined")
        done.resumed = len(there)
        begun = time.monotonic()
        left = [number for number in range(plan.parts) if number not in there]
        if left:
            with Pool(min(workers, len(left)), "tenfold.corpus.worker:work", settings) as pool:
                for _, record in pool.map(((number, number) for number in left), progress):
                    done.add(record)
    done.runs.sort()
    return done


def _record(folder: str, number: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(storage.read_bytes(done_uri(folder, number)))
    return record


def _write_quarantine(to: str, folder: str, parts: int) -> None:
    """Write the quarantine table, in order of parts."""
    import lance

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(parts):
            if files := _record(folder, number)["quarantine"]:
                columns = [pa.array(column, pa.string()) for column in zip(*files, strict=True)]
                yield pa.RecordBatch.from_arrays(columns, schema=QUARANTINE)

    uri = storage.join(to, "quarantine.lance")
    storage.remove(uri)
    reader = pa.RecordBatchReader.from_batches(QUARANTINE, batches())
    with storage.translate(uri):
        lance.write_dataset(reader, uri, schema=QUARANTINE, storage_options=storage.lance_options(uri))


def _sweep(to: str) -> None:
    """Remove what the new state has replaced: states made from the old one, old versions, files of killed writers."""
    keep = {"ingested.json"}
    for name in storage.list_files(storage.join(to, "manifests")):
        if name not in keep:
            storage.remove(storage.join(to, "manifests", name))
    for name in ("images.lance", "classes.lance"):
        table = dataset(storage.join(to, name))
        with storage.translate(table.uri):
            for tag in table.tags.list():
                if tag != "ingested":
                    table.tags.delete(tag)
            table.cleanup_old_versions(older_than=datetime.timedelta(0), delete_unverified=True)


def _report(to: str, manifest: Manifest, **more: Any) -> IngestReport:
    facts = {name: manifest.facts[name] for name in IngestReport.model_fields if name in manifest.facts}
    return IngestReport(uri=to, digest=manifest.digest, **facts, **more)
