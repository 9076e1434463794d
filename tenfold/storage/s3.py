"""S3 through boto: one client a process, every request tried again while that may help, writes whole or not at all."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tenfold.errors import StorageError
from tenfold.storage.failures import UPLOAD, classify, retry
from tenfold.storage.settings import Settings
from tenfold.storage.uris import split
from tenfold.storage.writer import Writer

PART = 8 << 20  # bytes; S3 wants parts of 5 MiB to 5 GiB, at most 10,000 of them
COPY_LIMIT = 5 << 30  # bytes; S3 copies no larger object in one request
PARALLEL = 8  # parts under way at once: so a writer holds at most (PARALLEL + 1) * PART bytes


@dataclass(frozen=True)
class Entry:
    """An object.

    Attributes:
        key: inside the bucket.
        size: bytes.
        etag: changes whenever the content does.
        modified: when it was written.
    """

    key: str
    size: int
    etag: str
    modified: datetime


def client(settings: Settings | None = None) -> Any:
    """The boto client for the environment as it is now. One for each process: a connection must not cross a fork."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    return _client(settings or Settings.read(), os.getpid(), *(os.environ.get(name) for name in names))


_making = threading.Lock()  # boto's sessions are not thread-safe, its clients are


def _after_fork() -> None:
    global _making
    _making = threading.Lock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


def _client(settings: Settings, *identity: Any) -> Any:
    with _making:
        return _cached_client(settings, *identity)


@functools.lru_cache(maxsize=8)
def _cached_client(settings: Settings, *identity: Any) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        retries={"total_max_attempts": 1, "mode": "standard"},  # `failures.retry` tries again, by one rule for all
        max_pool_connections=32,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if settings.endpoint else "auto"},
    )
    session = boto3.session.Session()
    return session.client("s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config)


def head(uri: str) -> Entry | None:
    """The object at `uri`, None where there is none; raises StorageError, also where there is no bucket.

    The trap: answers to HEAD have no body, so a wrong key and a missing bucket look like 403 and 404. A listing tells.
    """
    bucket, key = split(uri)
    if not key:
        return None
    try:
        found = retry(uri, lambda: client().head_object(Bucket=bucket, Key=key))
    except FileNotFoundError:
        return None
    except StorageError:
        next(entries(uri, limit=1), None)  # raises the better error, where there is one
        raise
    return Entry(key, found["ContentLength"], found["ETag"].strip('"'), found["LastModified"])


def entries(uri: str, limit: int = 0) -> Iterator[Entry]:
    """All objects below the folder `uri`, in order of key; `limit` stops early."""
    for page in _pages(uri, limit, delimiter=""):
        for item in page.get("Contents", ()):
            yield Entry(item["Key"], item["Size"], item["ETag"].strip('"'), item["LastModified"])


def level(uri: str) -> tuple[list[Entry], list[str]]:
    """The objects and the keys of the folders (without slash) directly in the folder `uri`."""
    files: list[Entry] = []
    folders: list[str] = []
    for page in _pages(uri, 0, delimiter="/"):
        for item in page.get("Contents", ()):
            files.append(Entry(item["Key"], item["Size"], item["ETag"].strip('"'), item["LastModified"]))
        folders += [item["Prefix"].rstrip("/") for item in page.get("CommonPrefixes", ())]
    return files, folders


def _pages(uri: str, limit: int, delimiter: str) -> Iterator[Any]:
    bucket, key = split(uri)
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": delimiter}
    if limit:
        request["MaxKeys"] = limit
    while True:
        page = retry(uri, lambda: client().list_objects_v2(**request))
        yield page
        if limit or not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def get(uri: str, start: int | None = None, end: int | None = None, etag: str = "") -> bytes:
    """The bytes [start, end) of an object, all by default.

    Raises FileNotFoundError where there is none, and StorageError where it has changed from `etag`.
    """
    bucket, key = split(uri)
    request: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if start is not None and end is not None:
        if end <= start:
            return b""
        request["Range"] = f"bytes={start}-{end - 1}"
    if etag:
        request["IfMatch"] = etag

    def action() -> bytes:
        return client().get_object(**request)["Body"].read()  # checks length, and checksum where there is one

    return retry(uri, action)


def put(uri: str, data: bytes | bytearray | memoryview) -> None:
    """Write an object in one request: it is there whole, or not at all, and checked by its checksum."""
    bucket, key = split(uri)
    body = data if isinstance(data, bytes | bytearray) else bytes(data)
    checksum = crc32(body)

    def action() -> None:
        answer = client().put_object(Bucket=bucket, Key=key, Body=body, ChecksumCRC32=checksum)
        _compare(uri, answer, checksum)

    retry(uri, action)


def crc32(data: bytes | bytearray) -> str:
    """S3's form of the checksum: base64 of CRC-32 in big-endian bytes."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _compare(uri: str, answer: Any, checksum: str) -> None:
    """Whether the server stored what was sent: it refuses a body unlike its checksum, and this is the receipt."""
    if answer.get("ChecksumCRC32", checksum) != checksum:
        raise StorageError(f"{uri} was stored damaged: its checksum is {answer['ChecksumCRC32']}", "write it again")


def delete(uri: str, keys: Iterable[str]) -> None:
    """Delete objects of the bucket of `uri`, a thousand a request."""
    bucket, _ = split(uri)
    keys = iter(keys)
    while batch := [{"Key": key} for _, key in zip(range(1000), keys, strict=False)]:
        answer = retry(uri, lambda: client().delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True}))
        if errors := answer.get("Errors"):
            raise StorageError(
                f"{uri}: {len(errors)} of {len(batch)} objects were not deleted ({errors[0].get('Code')})",
                "give the key's policy delete on the bucket, or remove the object lock",
            )


def copy(source: str, target: str) -> None:
    """Copy an object on the server, in parts where it is large; FileNotFoundError where there is none."""
    if not (there := head(source)):
        next(entries(source, limit=1), None)  # says so where even the bucket is missing
        raise FileNotFoundError(source)
    bucket, key = split(target)
    origin = dict(zip(("Bucket", "Key"), split(source), strict=True))
    if there.size < COPY_LIMIT:
        retry(target, lambda: client().copy_object(CopySource=origin, Bucket=bucket, Key=key))
    else:
        retry(target, lambda: client().copy(origin, bucket, key))


class S3Writer(Writer):
    """Streams an object: one PUT up to `PART` bytes, above that an upload in parts that is completed at the end.

    Until `close` the object is not there (or is the old one).
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._buffer = bytearray()
        self._upload: _Upload | None = None

    def _append(self, data: memoryview) -> None:
        while data:
            size = PART << (len(self._upload) // 9000 if self._upload else 0)  # beyond 75 GB, to stay under 10,000
            room = size - len(self._buffer)
            self._buffer += data[:room]
            data = data[room:]
            if len(self._buffer) == size:
                self._send()

    def _send(self) -> None:
        self._upload = self._upload or _Upload(self.uri)
        self._upload.add(bytes(self._buffer))
        self._buffer.clear()

    def _commit(self) -> None:
        if not self._upload:
            put(self.uri, self._buffer)
            return
        if self._buffer:
            self._send()
        self._upload.complete()
        there = head(self.uri)
        if there is None or there.size != self.bytes_written:
            raise StorageError(
                f"{self.uri} holds {there.size if there else 0} bytes where {self.bytes_written} were written",
                "make sure of one writer, and run the step again",
            )

    def _discard(self) -> None:
        self._buffer.clear()
        if self._upload:
            self._upload.abort()


class _Upload:
    """An upload in parts, which go out from threads. It knows nothing of its writer, which can so be forgotten."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        where = dict(zip(("Bucket", "Key"), split(uri), strict=True))
        made = retry(uri, lambda: client().create_multipart_upload(**where, ChecksumAlgorithm="CRC32"))
        self._where = {**where, "UploadId": made["UploadId"]}
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="tenfold-upload")
        self._slots = threading.Semaphore(PARALLEL)  # bounds what is held in memory
        self._parts: list[Future[dict[str, Any]]] = []  # as S3 wants them listed at the end
        self._stop = threading.Event()

    def __len__(self) -> int:
        """Parts so far."""
        return len(self._parts)

    def add(self, part: bytes) -> None:
        """Send a part when there is room; raises StorageError where an earlier one failed for good."""
        self._slots.acquire()
        for future in self._parts[-2 * PARALLEL :]:
            if future.done():
                future.result()
        self._parts.append(self._pool.submit(self._send, len(self._parts) + 1, part))

    def _send(self, number: int, part: bytes) -> dict[str, Any]:
        def action() -> dict[str, Any]:
            if self._stop.is_set():
                raise StorageError(f"{self._uri} was given up")
            answer = client().upload_part(**self._where, PartNumber=number, Body=part, ChecksumCRC32=checksum)
            _compare(self._uri, answer, checksum)
            return {"PartNumber": number, "ETag": answer["ETag"].strip('"'), "ChecksumCRC32": checksum}

        try:
            checksum = crc32(part)
            return retry(self._uri, action)
        finally:
            self._slots.release()

    def complete(self) -> None:
        """Wait for all parts, and make the object of them."""
        parts = [future.result() for future in self._parts]
        self._pool.shutdown()

        def action() -> None:
            try:
                client().complete_multipart_upload(**self._where, MultipartUpload={"Parts": parts})
            except Exception as error:
                # The answer to an earlier try may have been lost after the server had completed.
                if classify(error) is not UPLOAD or not self._is_there([part["ETag"] for part in parts]):
                    raise

        retry(self._uri, action)

    def _is_there(self, etags: list[str]) -> bool:
        """Whether the object is the one of these parts: its ETag is the MD5 of theirs."""
        there = head(self._uri)
        if there is None or not all(re.fullmatch("[0-9a-f]{32}", etag) for etag in etags):
            return False
        joined = hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False).hexdigest()
        return there.etag == f"{joined}-{len(etags)}"

    def abort(self) -> None:
        """Give up. Where the server is away, its clean-up of unfinished uploads has to do it; nobody can see them."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)  # a part that arrives later would stay on the server
        with contextlib.suppress(Exception):
            retry(self._uri, lambda: client().abort_multipart_upload(**self._where), patience=1.0)
