"""Downloads against a real HTTP server that cuts connections, and honours or ignores ranges."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_http import CONTENT, Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.corpus.sources import download as module
from tenfold.corpus.sources.download import download, within
from tenfold.corpus.sources.places import UnavailableError
from tenfold.errors import StorageError


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_whole(server: Server, tmp_path: Path) -> None:
    got: list[int] = []
    download(server.url, tmp_path / "file", got.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sum(got) == len(CONTENT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(1, 290_000), max_size=4),
    ranges=st.booleans(),
    etag=st.sampled_from(['"one"', 'W/"one"', ""]),
)
def test_cuts_anywhere(server: Server, tmp_path: Path, cuts: list[int], ranges: bool, etag: str) -> None:
    """Whatever is cut, the file is right and the progress ends at its size."""
    server.cuts, server.ranges, server.etag, server.asked = list(cuts), ranges, etag, []
    got: list[int] = []
    download(server.url, tmp_path / "file", got.append, pause=0)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sum(got) == len(CONTENT)
    if ranges and len(server.asked) > 1:
        assert server.asked[1] == f"bytes={cuts[0]}-"


def test_goes_on_in_a_later_run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 1)
    server.cuts = [100_000, 0]
    with pytest.raises(UnavailableError, match="100,000 bytes are kept"):
        download(server.url, tmp_path / "file", pause=0)
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.part").stat().st_size == 100_000
    server.asked = []
    download(server.url, tmp_path / "file")
    assert server.asked == ["bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_changed_file_is_begun_anew(server: Server, tmp_path: Path) -> None:
    """If-Range: a part of an older file is not sewn to the rest of a newer one."""
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    (tmp_path / "file.part.json").write_text(f'{{"url": "{server.url}", "validator": "\\"old\\""}}')
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_part_of_another_address_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"something else")
    (tmp_path / "file.part.json").write_text('{"url": "http://127.0.0.1/other", "validator": null}')
    download(server.url, tmp_path / "file")
    assert server.asked == [None]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_part_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    (tmp_path / "file.part.json").write_text(f'{{"url": "{server.url}", "validator": "\\"one\\""}}')
    download(server.url, tmp_path / "file", pause=0)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    download(server.url, tmp_path / "file", pause=0)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_refusal_is_final(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(UnavailableError, match=f"answered {status}"):
        download(server.url, tmp_path / "file")
    assert len(server.asked) == 1


def test_web_page_is_not_the_file(server: Server, tmp_path: Path) -> None:
    server.kind = "text/html"
    with pytest.raises(UnavailableError, match="web page"):
        download(server.url, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UnavailableError, match="connection refused"):
        download(f"http://127.0.0.1:{port}/file", tmp_path / "file")
    with pytest.raises(UnavailableError, match="no such host"):
        download("http://host.invalid/file", tmp_path / "file")


def test_silent_server(tmp_path: Path) -> None:
    """A server that accepts and says nothing is given up after the read limit, not asked again and again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(UnavailableError, match="no answer in time"):
            download(url, tmp_path / "file", pause=0, read_seconds=0.1)


def test_disk_too_small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="GB more"):
        download(server.url, tmp_path / "file")


def test_within() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(1))
