"""HTTP downloads that go on where they stopped.

A download is written to `FILE.part` beside `FILE.part.json` (address and validator). After a cut, in this run or a
later one, it asks for the rest with `Range` and `If-Range`, so a file that changed on the server is begun anew instead
of being sewn together from two. The caller checks the digest.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tenfold import __version__
from tenfold.corpus.sources.places import UnavailableError
from tenfold.errors import StorageError

T = TypeVar("T")
CONNECT_SECONDS = 4.0  # an official address that does not answer must not hold up the package behind it
READ_SECONDS = 20.0
TRIES = 5  # in a row without a single new byte; a server that accepts and stays silent from the start gets one
PIECE = 1 << 18


def download(
    url: str,
    to: Path,
    advance: Callable[[int], None] = lambda _: None,
    *,
    pause: float = 0.5,
    read_seconds: float = READ_SECONDS,
) -> None:
    """Download `url` to the file `to`, resuming what an earlier run left in `to.part`.

    Args:
        url: `http://` or `https://`.
        to: final path; written whole or not at all.
        advance: called with the number of bytes as they arrive (those of an earlier run included).
        pause: seconds before the second try; doubles with each try that brought nothing.
        read_seconds: how long a silent connection is believed in.

    Raises UnavailableError with what the server answered, StorageError where the disk is too small.
    """
    _reach(url)
    part, tag = to.with_name(to.name + ".part"), to.with_name(to.name + ".part.json")
    fruitless, counted, heard = 0, 0, False
    while True:
        before = _resumable(url, part, tag)
        if before > counted:
            advance(before - counted)
        try:
            complete = _attempt(url, to, before, advance, read_seconds)
            answer = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the part is longer than the file: it is not the same file any more
                part.unlink(missing_ok=True)
            elif error.code not in (408, 429) and error.code < 500:
                raise UnavailableError(f"answered {error.code} {error.reason}") from None
            complete, answer = False, f"answered {error.code} {error.reason}"
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            complete, answer = False, explain(error)
            if isinstance(error, TimeoutError) and not heard and _size(part) == before:
                raise UnavailableError(answer) from None
        if complete:
            os.replace(part, to)
            tag.unlink(missing_ok=True)
            return
        counted = _size(part)
        heard = heard or counted > before
        fruitless = 0 if counted > before else fruitless + 1
        if fruitless >= TRIES:
            raise UnavailableError(f"{answer} ({TRIES} tries; {counted:,} bytes are kept for the next run)")
        time.sleep(min(pause * 2**fruitless, 8.0))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _resumable(url: str, part: Path, tag: Path) -> int:
    """Bytes in `part` that belong to `url`; a part of something else is dropped."""
    try:
        if json.loads(tag.read_bytes())["url"] == url:
            return part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        pass
    part.unlink(missing_ok=True)
    return 0


def _attempt(url: str, to: Path, have: int, advance: Callable[[int], None], read_seconds: float) -> bool:
    """One request; appends to `part`. Returns whether the file is whole."""
    part, tag = to.with_name(to.name + ".part"), to.with_name(to.name + ".part.json")
    headers = {"User-Agent": f"tenfold/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator := json.loads(tag.read_bytes()).get("validator"):
            headers["If-Range"] = validator
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=read_seconds) as answer:
        if answer.headers.get_content_type() == "text/html":  # a captive portal, a "moved" page
            raise UnavailableError("answered with a web page, not with the file")
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", "")) if answer.status == 206 else None
        resumed = start is not None and int(start[1]) == have
        if answer.status == 206 and not resumed:
            part.unlink(missing_ok=True)  # a range that was not asked for: begin anew without one
            return False
        if have and not resumed:
            advance(-have)
        length = answer.headers.get("Content-Length")
        check_space(to.parent, int(length) if length else 0, to.name)
        etag = answer.headers.get("ETag")
        weak = etag is None or etag.startswith("W/")
        tag.write_text(json.dumps({"url": url, "validator": answer.headers.get("Last-Modified") if weak else etag}))
        got = 0
        with open(part, "ab" if resumed else "wb", buffering=0) as file:  # what has come is kept, also by kill -9
            while piece := answer.read1(PIECE):
                file.write(piece)
                got += len(piece)
                advance(len(piece))
            file.flush()
            os.fsync(file.fileno())
        # Python's reader ends silently where the connection does: only the length tells a cut from the end.
        return length is None or got == int(length)


def check_space(folder: Path, needed: int, what: str, cure: str = "set TENFOLD_CACHE to a larger disk") -> None:
    """Raise StorageError where `folder`'s disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder} has {free / 1e9:.1f} GB free, {what} needs {needed / 1e9:.1f} GB more",
            f"free some space, or {cure}",
        )


def _reach(url: str) -> None:
    """Open and close a connection to the server (or to the proxy in front of it); raises UnavailableError fast."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)

    def connect() -> None:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()

    try:
        within(CONNECT_SECONDS, connect)
    except OSError as error:
        raise UnavailableError(explain(error)) from None


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, or TimeoutError after `seconds`; name look-ups have no time limit of their own."""
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not answer:
        raise TimeoutError
    return answer[0]


def explain(error: BaseException) -> str:
    """A network error in a few plain words."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return explain(error.reason)
    if isinstance(error, socket.gaierror):
        return "no such host (no network?)"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection was cut"
    return f"{type(error).__name__}: {error}"
