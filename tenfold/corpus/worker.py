"""The first pass of ingest in one worker: read a part, normalise its pictures, write them as sorted runs.

A part is done when its record is there, `done/NUMBER.json`, written last. A part that was begun and not finished is
done again from its start, under the same names.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tenfold import storage
from tenfold.corpus.pictures import PictureConfig, normalise
from tenfold.corpus.shards import read_shard
from tenfold.corpus.sniff import Rejected, identify
from tenfold.corpus.spill import Row, Run, write_run
from tenfold.errors import StorageError
from tenfold.storage import s3

HEAVY = 64 << 20  # bytes of decoding above which only one worker at a time may go on
_AHEAD = 16  # files of an object store requested at once
_FIRST = 4 << 20  # bytes of each; the rest of a larger file is read when its turn comes
_ROW = 500  # bytes of a row in memory beside its image, roughly


class Settings(NamedTuple):
    """What a worker has to know.

    Attributes:
        folder: the scratch folder.
        picture: how pictures are stored.
        separator: between labels in text.
        salt: of the rank.
        max_bytes: larger files are not read.
        run_bytes: images held before a run is written.
    """

    folder: str
    picture: PictureConfig
    separator: str
    salt: str
    max_bytes: int
    run_bytes: int


class Record(NamedTuple):
    """One image of a part: its bytes or why there are none; labels None where nothing says what is in it."""

    file: str
    data: bytes | Rejected
    labels: list[str] | None
    votes: list[float]


def done_uri(folder: str, number: int) -> str:
    """Where the record of a finished part lies."""
    return storage.join(folder, "done", f"{number:07d}.json")


def work(
    settings: Settings, number: int, skip: frozenset[int], report: Callable[[int, int, int], None]
) -> dict[str, Any]:
    """Do part `number`; returns its record.

    Args:
        settings: see Settings.
        number: of the part.
        skip: items that killed a worker twice.
        report: called for each item with its number, how many are done with it, and how many of them are quarantined.
    """
    _set_up(settings)
    part = json.loads(storage.read_bytes(storage.join(settings.folder, "plan", f"{number:07d}.json")))
    runs: list[Run] = []
    quarantine: list[tuple[str, str, str]] = []
    names: set[str] = set()
    rows: list[Row] = []
    held = images = 0

    def flush() -> None:
        nonlocal held
        if rows:
            file = f"runs/{number:07d}-{len(runs):03d}"
            runs.append(write_run(settings.folder, file, rows, settings.salt))
            rows.clear()
            held = 0

    guard = _one_at_a_time(settings.folder)
    for item, record in enumerate(read_part(part, settings)):
        report(item, 0, 0)
        file = record.file.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        try:
            if item in skip:
                raise Rejected("crashed", "Two worker processes died while they decoded it.")
            row = _row(record, file, settings, guard)
        except Rejected as verdict:
            quarantine.append((file, verdict.reason, verdict.detail))
            report(item, 1, 1)
            continue
        names.update(row.labels)
        rows.append(row)
        images += 1
        held += len(row.image) + _ROW
        if held >= settings.run_bytes:
            flush()
        report(item, 1, 0)
    flush()
    done = {"runs": runs, "quarantine": quarantine, "names": sorted(names), "images": images}
    storage.write_bytes(done_uri(settings.folder, number), json.dumps(done).encode())
    return done


def _set_up(settings: Settings) -> None:
    """Settings of this process: it is a worker and nothing else."""
    if not any(isinstance(finder, _NoPandas) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NoPandas())
    pa.set_cpu_count(1)  # there are as many workers as cores
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = settings.picture.max_pixels  # where Pillow meets sizes after the header (GIF frames)


class _NoPandas(MetaPathFinder):
    """Hides pandas: where it is installed, Arrow loads it only to know its types, for a second and 60 MB a worker."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is of no use in a worker", name="pandas")


def _row(record: Record, file: str, settings: Settings, guard: Callable[[int], Any]) -> Row:
    if isinstance(record.data, Rejected):
        raise record.data
    if record.labels is None:
        identify(record.data)  # a README beside the class folders is foreign, not unlabelled
        raise Rejected("unlabelled", "Nothing says what is in it.")
    picture = normalise(record.data, settings.picture, guard)
    return Row(
        hashlib.sha256(record.data).hexdigest(),
        picture.image,
        picture.width,
        picture.height,
        record.labels,
        record.votes,
        file,
        int(picture.flags),
    )


def _one_at_a_time(folder: str) -> Callable[[int], Any]:
    """A guard for `normalise`: large pictures are decoded by one worker at a time, so that memory stays bounded.

    A file lock, which the system releases when its holder dies.
    """
    name = f"tenfold-{os.getuid()}-{hashlib.sha256(folder.encode()).hexdigest()[:16]}.heavy"
    path = os.path.join(tempfile.gettempdir(), name)

    @contextmanager
    def guard(size: int) -> Iterator[None]:
        if size <= HEAVY:
            yield
            return
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return guard


def read_part(part: dict[str, Any], settings: Settings) -> Iterator[Record]:
    """The images of a part, always in the same order."""
    if part["read"] == "files":
        yield from _files(part["items"], settings.max_bytes)
    elif part["read"] == "parquet":
        yield from _parquet(part["uri"], part["groups"])
    else:
        shard = part["uri"], part["name"], part["start"], part["end"]
        for sample in read_shard(*shard, settings.separator, settings.max_bytes):
            yield Record(*sample)


def _files(items: list[list[Any]], limit: int) -> Iterator[Record]:
    """Files on disk one by one; those of an object store some ahead, for each request takes a while."""
    if not items or not storage.is_s3(items[0][1]):
        for file, uri, _, labels, votes in items:
            yield Record(file, _read_local(uri, limit), labels, votes)
        return
    with ThreadPoolExecutor(_AHEAD) as threads:
        ahead: deque[tuple[list[Any], Future[bytes | Rejected]]] = deque()
        following = iter(items)
        while True:
            while len(ahead) < _AHEAD and (item := next(following, None)) is not None:
                ahead.append((item, threads.submit(_read_s3, item[1], 0, min(_FIRST, limit + 1))))
            if not ahead:
                return
            (file, uri, _, labels, votes), future = ahead.popleft()
            data = future.result()
            if isinstance(data, bytes) and len(data) == _FIRST:
                rest = _read_s3(uri, _FIRST, limit + 1)
                data = data + rest if isinstance(rest, bytes) else rest
            if isinstance(data, bytes) and len(data) > limit:
                data = _oversize(limit)
            yield Record(file, data, labels, votes)


_OURS_TO_READ = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}


def _read_local(path: str, limit: int) -> bytes | Rejected:
    try:
        with storage.translate(path), open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return Rejected("unreadable", "It is no regular file.")
            return _oversize(limit, found.st_size) if found.st_size > limit else file.read()
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            return Rejected("missing", "There is no such file.")
        if isinstance(cause, OSError) and cause.errno in _OURS_TO_READ:
            return Rejected("unreadable", f"It cannot be opened: {cause.strerror}.")
        raise  # the disk, or what is mounted there, has failed: that is no fault of this one file


def _read_s3(uri: str, start: int, end: int) -> bytes | Rejected:
    try:
        return s3.get(uri, start, end)
    except FileNotFoundError:
        return Rejected("missing", "There is no such object.")
    except StorageError:
        found = s3.head(uri)  # a range of an empty object, or behind the end of one, is an error of its own
        if found and found.size <= start:
            return b""
        raise


def _oversize(limit: int, size: int | None = None) -> Rejected:
    has = f"{size:,} bytes, more than" if size else "more bytes than"
    return Rejected("oversize", f"It has {has} the limit of {limit:,}.")


def _parquet(uri: str, groups: list[int]) -> Iterator[Record]:
    with storage.open_read(uri) as file:
        table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        columns = ["file", "image", "labels", "votes"]
        for batch in table.iter_batches(batch_size=128, row_groups=groups, columns=columns, use_threads=False):
            for row in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                yield Record(*row)
