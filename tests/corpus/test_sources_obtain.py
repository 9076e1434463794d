"""Places in order, the cache, and what the user is told when nothing works."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_http import CONTENT, Server

from tenfold.corpus.sources import obtain as module
from tenfold.corpus.sources.obtain import NotHadError, cache_folder, check, digest_members, obtain
from tenfold.corpus.sources.places import Archive, Place, UnavailableError
from tenfold.errors import StorageError

SHA = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


def archive(*places: Place) -> Archive:
    return Archive("part", "the part", places)


def npm(sha256: str | None = SHA) -> Place:
    return Place("npm", "thing@1.0.0", "thing-1.0.0.tgz", sha256=sha256)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but what the test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("tenfold.corpus.sources.clients.own_pip", lambda: False)
    return folder


def put_client(folder: Path, name: str, script: str) -> None:
    """An executable of that name that does what the script says; stands for a client whose network is as we like it."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def packs(tmp_path: Path) -> str:
    (tmp_path / "content").write_bytes(CONTENT)
    return f"open('thing-1.0.0.tgz', 'wb').write(open({str(tmp_path / 'content')!r}, 'rb').read())"


def test_official_address_first(server: Server, tmp_path: Path, clients: Path) -> None:
    put_client(clients, "npm", "sys.exit('npm must not be called')")
    got = obtain(archive(Place("http", server.url, "file", sha256=SHA), npm()), cache=tmp_path / "cache")
    assert got.place.kind == "http"
    assert got.path.read_bytes() == CONTENT
    assert [a.answer for a in got.attempts] == ["ok"]


def test_falls_through_to_the_package(server: Server, tmp_path: Path, clients: Path) -> None:
    server.statuses = [404]
    put_client(clients, "npm", packs(tmp_path))
    got = obtain(archive(Place("http", server.url, "file", sha256=SHA), npm()), cache=tmp_path / "cache")
    assert (got.place.kind, got.path.name, got.sha256) == ("npm", "thing-1.0.0.tgz", SHA)
    assert [a.answer for a in got.attempts] == ["answered 404 Not Found", "ok"]
    assert not list((tmp_path / "cache").glob("*.aside"))


def test_second_time_nothing_is_asked(server: Server, tmp_path: Path) -> None:
    part = archive(Place("http", server.url, "file", sha256=SHA))
    obtain(part, cache=tmp_path)
    server.close()
    got = obtain(part, cache=tmp_path)
    assert got.attempts[-1].answer == "cached"
    assert obtain(part, cache=tmp_path, offline=True).path == got.path


def test_cached_package_goes_before_the_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "thing-1.0.0.tgz").write_bytes(CONTENT)
    got = obtain(archive(Place("http", server.url, "file", sha256=SHA), npm()), cache=tmp_path)
    assert got.place.kind == "npm"
    assert server.asked == []


def test_files_of_the_user_are_taken_and_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "thing-1.0.0.tgz").write_bytes(CONTENT)
    got = obtain(archive(npm()), cache=tmp_path / "cache", also=own, offline=True)
    assert got.path == own / "thing-1.0.0.tgz"
    assert [p.name for p in own.iterdir()] == ["thing-1.0.0.tgz"]


def test_damaged_cache_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:-1])
    got = obtain(archive(Place("http", server.url, "file", sha256=SHA)), cache=tmp_path)
    assert got.path.read_bytes() == CONTENT
    assert f"expected sha256 {SHA}" in got.attempts[0].answer


def test_wrong_digest_names_file_expected_and_got(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        obtain(archive(Place("http", server.url, "file.zip", sha256="0" * 64)), cache=tmp_path)
    assert f"file.zip is damaged: expected sha256 {'0' * 64}, got {SHA}" in caught.value.message
    assert not (tmp_path / "file.zip").exists()  # a file under its name is always a checked one
    assert not list(tmp_path.glob("*.unchecked"))


def test_resumed_file_with_wrong_digest_is_fetched_once_more(server: Server, tmp_path: Path) -> None:
    """A part that was damaged on disk (power cut) must not condemn the place."""
    part = tmp_path / "file.unchecked.part"
    part.write_bytes(b"\0" * 1000)
    part.with_name(part.name + ".json").write_text(f'{{"url": "{server.url}", "validator": "\\"one\\""}}')
    got = obtain(archive(Place("http", server.url, "file", sha256=SHA)), cache=tmp_path)
    assert got.path.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_every_place_and_its_answer(tmp_path: Path, clients: Path) -> None:
    put_client(clients, "pip", "print('ERROR: No matching distribution found for thing==1'); sys.exit(1)")
    places = (
        Place("http", "http://host.invalid/file.zip", "file.zip", sha256=SHA),
        npm(),
        Place("pip", "thing==1", "thing-1-py3-none-any.whl", sha256=SHA),
        Place("apt", "thing", "thing.deb"),
    )
    with pytest.raises(NotHadError) as caught:
        obtain(archive(*places), cache=tmp_path / "cache")
    lines = caught.value.message.splitlines()
    assert lines[0].startswith("the part could not be had")
    assert lines[1].strip() == "http://host.invalid/file.zip: no such host (no network?)"
    assert lines[2].strip() == "npm package thing@1.0.0: npm is not installed here"
    assert "pip package thing==1: pip failed: ERROR: No matching distribution" in lines[3]
    assert "apt package thing: apt is not installed here" in lines[4]
    assert "file.zip or thing-1.0.0.tgz" in caught.value.cure
    assert str(tmp_path / "cache") in caught.value.cure
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


def test_offline_asks_nobody(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not asked"):
        obtain(archive(Place("http", server.url, "file", sha256=SHA)), cache=tmp_path, offline=True)
    assert server.asked == []


def test_md5_where_the_authors_publish_no_better(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert check(Place("login", "page", "file", md5=MD5), path) == SHA
    with pytest.raises(UnavailableError, match=f"expected md5 {'0' * 32}, got {MD5}"):
        check(Place("login", "page", "file", md5="0" * 32), path)
    with pytest.raises(UnavailableError, match="expected 7 bytes, got 300,000"):
        check(Place("login", "page", "file", md5=MD5, size=7), path)


def test_archives_known_by_their_members(tmp_path: Path) -> None:
    for name, folder, text in (("a.zip", "x", "one"), ("b.zip", "y/z", "one"), ("c.zip", "x", "two")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"{folder}/m.ply", text)
            archive.writestr(f"{folder}/readme", name)
    same = digest_members(tmp_path / "a.zip", ".ply")
    assert digest_members(tmp_path / "b.zip", ".ply") == same
    check(Place("http", "", "b.zip", members=(".ply", same)), tmp_path / "b.zip")
    with pytest.raises(UnavailableError, match="holds other"):
        check(Place("http", "", "c.zip", members=(".ply", same)), tmp_path / "c.zip")
    (tmp_path / "d.zip").write_text("no zip")
    with pytest.raises(UnavailableError, match="no archive"):
        check(Place("http", "", "d.zip", members=(".ply", same)), tmp_path / "d.zip")


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRUSTED_ABOVE", 1000)
    path, place = tmp_path / "file", Place("http", "", "file", sha256=SHA)
    path.write_bytes(CONTENT)
    assert check(place, path) == SHA
    times = path.stat()
    path.write_bytes(b"x" + CONTENT[1:])  # only with the old time put back does nobody look
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert check(place, path) == SHA
    os.utime(path)
    with pytest.raises(UnavailableError, match="expected sha256"):
        check(place, path)


def test_client_that_fails_in_silence_or_leaves_nothing(tmp_path: Path, clients: Path) -> None:
    for script, answer in (("sys.exit(7)", "npm failed: exit code 7"), ("pass", "left 0 files")):
        put_client(clients, "npm", script)
        with pytest.raises(StorageError, match=answer):
            obtain(archive(npm()), cache=tmp_path / "cache")


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    """The second waits for the first and finds the file there."""
    script = f"""
from pathlib import Path
from tenfold.corpus.sources.obtain import obtain
from tenfold.corpus.sources.places import Archive, Place
print(obtain(Archive("part", "the part", (Place("http", {server.url!r}, "file", sha256={SHA!r}),)),
             cache=Path({str(tmp_path)!r})).attempts[-1].answer)
"""
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in running)
    assert answers[-1] == "ok"
    assert answers[0] in ("ok", "cached")
    assert server.asked == [None]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TENFOLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/tenfold")
