"""The second pass of ingest: buckets are gathered from all runs and become fragments of the table, in order of rank.

A bucket's share of a run is a stretch of (bucket size / number of runs) bytes. Above some hundred GB that is so little
that more is read in vain than of use: then groups of runs are merged first, which is one more pass over the data.

A bucket is done when its record is there; records are kept under a name made of all runs and classes, so that those of
other runs are never taken. The fragments become a version of the table at once, when all buckets are done.
"""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tenfold import storage
from tenfold.corpus.pool import cores
from tenfold.corpus.sources.spec import Advance, Bars
from tenfold.corpus.spill import BLOCK, WHOLE, OpenRun, Run, finish, gather, merge_runs
from tenfold.corpus.table import IMAGES, Classes
from tenfold.manifest import digest_json

THREADS = 4  # buckets ordered at once; more would only make them smaller
COPIES = 4  # of a bucket in memory: read, joined, and on its way through Lance
LEAST, MOST = 16 << 20, 512 << 20  # bytes of a bucket
SHORT = BLOCK  # bytes of a stretch below which runs are merged: as much again would be read in vain
LONG = 1 << 20  # bytes of a stretch after merging
MERGED_BLOCK = 256 << 10  # bytes of a block of a merged run
INDEX = 16  # bytes of a block in the index, which is kept in memory


@dataclass(frozen=True)
class Ordered:
    """What was written.

    Attributes:
        rows: images.
        files: file names that they stand for.
        image_bytes: of the stored images.
    """

    rows: int
    files: int
    image_bytes: int


def order(to: str, folder: str, runs: list[Run], classes: Classes, memory: float, bars: Bars) -> Ordered:
    """Write the rows of all runs as a new version of the table of images, in order of rank.

    Args:
        to: the corpus.
        folder: the scratch folder, which holds the runs.
        runs: of the first pass.
        classes: all classes.
        memory: bytes that may be used.
        bars: shows progress.
    """
    import lance
    from lance.fragment import FragmentMetadata

    threads = min(THREADS, cores())
    total = sum(run.size for run in runs)
    memory -= INDEX * total / MERGED_BLOCK
    size = int(min(MOST, max(LEAST, memory / threads / COPIES)))
    runs = _merge(folder, runs, size, threads, bars)
    opened = [OpenRun.load(folder, run) for run in runs]
    number = max(1, -(-total // size), min(threads, total // LEAST))
    bounds = [WHOLE * i // number for i in range(number + 1)]
    uri = storage.join(to, "images.lance")
    key = digest_json([bounds, runs, classes.names])
    records = storage.join(folder, "buckets", key.removeprefix("sha256:")[:16])
    there = set(storage.list_files(records))
    if not there and not storage.exists(storage.join(uri, "_versions")):
        storage.remove(uri)  # fragments that nothing knows of
    mode = "overwrite" if storage.exists(storage.join(uri, "_versions")) else "create"
    index = {name: i for i, name in enumerate(classes.names)}
    done: list[dict[str, Any]] = [{} for _ in range(number)]
    with bars("ordering, buckets", number) as advance, ThreadPoolExecutor(threads) as pool:
        bucket = partial(_bucket, folder, opened, index, uri, mode)
        jobs = {}
        for i in range(number):
            where = storage.join(records, f"{i:07d}.json")
            if f"{i:07d}.json" in there:
                done[i] = json.loads(storage.read_bytes(where))
                advance(1, "")
            else:
                jobs[pool.submit(bucket, bounds[i], bounds[i + 1], where)] = i
        try:
            for job in as_completed(jobs):
                done[jobs[job]] = job.result()
                advance(1, "")
        finally:
            pool.shutdown(cancel_futures=True)
    fragments = [FragmentMetadata.from_json(json.dumps(f)) for record in done for f in record["fragments"]]
    with storage.translate(uri):
        operation = lance.LanceOperation.Overwrite(IMAGES, fragments)
        lance.LanceDataset.commit(uri, operation, storage_options=storage.lance_options(uri))
    return Ordered(*(sum(record[name] for record in done) for name in ("rows", "files", "image_bytes")))


def _merge(folder: str, runs: list[Run], size: int, threads: int, bars: Bars) -> list[Run]:
    """Merge runs until a bucket of `size` bytes takes a good stretch of each.

    A merged run is done when its index is there; its parts are removed then, so that space is not needed twice. What
    was begun is gone on with in the same groups, also where there is more memory now.
    """
    for level in itertools.count():
        begun = storage.join(folder, "merged", f"{level}.json")
        if storage.exists(begun):
            width = int(json.loads(storage.read_bytes(begun)))
        elif len(runs) > max(1, size // SHORT):
            width = max(2, -(-len(runs) // max(1, size // LONG)))
            storage.write_bytes(begun, json.dumps(width).encode())
        else:
            break
        groups = [runs[at : at + width] for at in range(0, len(runs), width)]
        with bars(f"merging, {len(runs):,} runs", len(groups)) as advance, ThreadPoolExecutor(threads) as pool:

            def merged(number: int, group: list[Run], level: int = level, advance: Advance = advance) -> Run:
                key = digest_json(group).removeprefix("sha256:")[:16]
                run = merge_runs(folder, f"merged/{level}-{number:05d}-{key}", group, size, MERGED_BLOCK)
                for part in group:
                    storage.remove(storage.join(folder, part.file))
                advance(1, "")
                return run

            try:
                runs = list(pool.map(merged, range(len(groups)), groups))
            finally:
                pool.shutdown(cancel_futures=True)
    return runs


def _bucket(
    folder: str, runs: list[OpenRun], index: dict[str, int], uri: str, mode: str, low: int, high: int, where: str
) -> dict[str, Any]:
    """Order one bucket and write its fragments; its record goes to `where`."""
    from lance.fragment import write_fragments

    table = gather(folder, runs, low, high)
    record: dict[str, Any] = {
        "fragments": [],
        "rows": len(table),
        "files": pc.sum(table["names"]).as_py() or 0,
        "image_bytes": pc.sum(pc.binary_length(table["image"])).as_py() or 0,
    }
    if len(table):
        reader = pa.RecordBatchReader.from_batches(IMAGES, finish(table, index))
        del table  # the generator holds it, and lets go of what it has copied
        with storage.translate(uri):
            written = write_fragments(reader, uri, schema=IMAGES, mode=mode, storage_options=storage.lance_options(uri))
        record["fragments"] = [fragment.to_json() for fragment in written]
    storage.write_bytes(where, json.dumps(record).encode())
    pa.default_memory_pool().release_unused()
    return record
