"""`fetch` from places to a finished folder: whole or not at all, instant the second time, repaired where damaged."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import official_folders as official
import pytest
from flaky_http import Server

from tenfold.cli import main
from tenfold.corpus import sources
from tenfold.corpus.sources import fetching, imagenet, voc
from tenfold.corpus.sources.places import Archive, Place
from tenfold.corpus.sources.spec import Spec
from tenfold.errors import InputError, StorageError
from tenfold.manifest import Manifest


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory, photographs: list[Path]) -> bytes:
    """A miniature VOCtrainval tar."""
    folder = tmp_path_factory.mktemp("voc")
    official.voc(folder / "VOCdevkit" / "VOC2012", photographs[0])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder / "VOCdevkit", "VOCdevkit")
    return buffer.getvalue()


@pytest.fixture
def server(tar: bytes) -> Iterator[Server]:
    server = Server(tar)
    yield server
    server.close()


def spec(server: Server) -> Spec:
    """VOC 2012 as it is fetched, from our server."""
    place = Place("http", server.url, "voc.tar", sha256=hashlib.sha256(server.content).hexdigest())
    return replace(voc.SPEC, archives=(Archive("trainval", "images and annotations", (place,)),), disk=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_from_the_server_to_records(server: Server, tmp_path: Path) -> None:
    server.cuts = [10_000]
    result = fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache")
    assert result.status == "fetched"
    assert result.splits == {"train": 2, "val": 1}
    assert result.tried == {"trainval": [{"place": server.url, "answer": "ok"}]}
    assert server.asked == [None, "bytes=10000-"]
    assert names(tmp_path / "data") == ["voc2012"]
    assert names(tmp_path / "cache") == ["voc.tar"]
    source = sources.open_source(tmp_path / "data/voc2012")
    assert sum(1 for _ in source.records("train")) == 2
    facts = source.manifest.facts
    assert facts["archives"]["trainval"]["sha256"] == hashlib.sha256(server.content).hexdigest()
    assert source.manifest.inputs == ["sha256:" + facts["archives"]["trainval"]["sha256"]]
    assert source.manifest.digest == result.digest
    card = (tmp_path / "data/voc2012/card.md").read_text()
    for section in ("Origin", "Licence", "How the labels arose", "Splits", "Known faults", "Where this copy came from"):
        assert f"## {section}\n" in card
    assert result.digest in card


def test_second_time_is_instant_and_needs_nothing(server: Server, tmp_path: Path) -> None:
    first = fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache")
    server.close()
    (tmp_path / "cache/voc.tar").unlink()
    again = fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache")
    assert (again.status, again.digest) == ("present", first.digest)


def test_second_checkout_downloads_nothing(server: Server, tmp_path: Path) -> None:
    first = fetching.fetch(spec(server), tmp_path / "one", cache=tmp_path / "cache")
    second = fetching.fetch(spec(server), tmp_path / "two", cache=tmp_path / "cache", offline=True)
    assert second.status == "fetched"
    assert second.digest == first.digest
    assert len(server.asked) == 1


def test_a_source_may_be_moved(server: Server, tmp_path: Path) -> None:
    fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache")
    os.rename(tmp_path / "data", tmp_path / "moved")
    source = sources.open_source(tmp_path / "moved/voc2012")
    assert next(source.records("val")).read()[:3] == b"\xff\xd8\xff"
    assert fetching.fetch(spec(server), tmp_path / "moved", offline=True).status == "present"


@pytest.mark.parametrize("damage", ["missing", "size", "bytes", "format"])
def test_damage_is_found_and_repaired(server: Server, tmp_path: Path, damage: str) -> None:
    first = fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache")
    target = tmp_path / "data/voc2012"
    image = target / "VOCdevkit/VOC2012/JPEGImages/2007_000027.jpg"
    whole = image.read_bytes()
    if damage == "missing":
        image.unlink()
    elif damage == "size":
        image.write_bytes(whole[:-1])
    elif damage == "bytes":
        image.write_bytes(whole[:-1] + b"\0")
    else:
        manifest = Manifest.read(str(target / "source.json"))
        manifest.model_copy(update={"facts": {**manifest.facts, "format": 0}}).write(str(target / "source.json"))
    again = fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache", offline=True)
    assert (again.status, again.digest) == ("fetched", first.digest)
    assert "made anew" in again.notes[0]
    assert image.read_bytes() == whole
    assert names(tmp_path / "data") == ["voc2012"]


def test_wrong_content_leaves_nothing(server: Server, tmp_path: Path) -> None:
    wrong = replace(spec(server), build=lambda parts, into, bars: voc.build(parts, into / "elsewhere", bars))
    (tmp_path / "data").mkdir()
    server.content = server.content[:20_480]  # half of the tar, with a digest that says it is right
    with pytest.raises((StorageError, InputError)):
        fetching.fetch(replace(wrong, archives=spec(server).archives), tmp_path / "data", cache=tmp_path / "cache")
    assert names(tmp_path / "data") == []


SLOW = """
import sys, time
from dataclasses import replace
from pathlib import Path
from tenfold.corpus.sources import fetching, voc
from tenfold.corpus.sources.places import Archive, Place
def build(parts, into, bars):
    (into / "half").write_text("half")
    print("building", flush=True)
    time.sleep(60)
place = Place("http", {url!r}, "voc.tar", sha256={sha!r})
spec = replace(voc.SPEC, archives=(Archive("trainval", "images", (place,)),), disk=0, build=build)
fetching.fetch(spec, {to!r}, cache=Path({cache!r}))
"""


def test_killed_while_building(server: Server, tmp_path: Path) -> None:
    """kill -9: nothing that looks finished is left, and the next run goes on from the cached archive."""
    (tmp_path / "data").mkdir()
    values = {"url": server.url, "sha": hashlib.sha256(server.content).hexdigest()}
    script = SLOW.format(**values, to=str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path / "data") == [".voc2012.aside"]
    result = fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache", offline=True)
    assert result.status == "fetched"
    assert names(tmp_path / "data") == ["voc2012"]
    assert not list((tmp_path / "data/voc2012").glob("half"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_while_downloading(server: Server, tmp_path: Path, how: signal.Signals) -> None:
    """kill -9 or Ctrl-C on a stalled server: the run ends at once, the next one asks for the rest only."""
    server.pause_after = 20_000
    values = {"url": server.url, "sha": hashlib.sha256(server.content).hexdigest()}
    script = SLOW.format(**values, to=str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    part = tmp_path / "cache/voc.tar.unchecked.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    process.wait(timeout=10)  # the server stays silent for longer
    size = part.stat().st_size
    assert 0 < size <= 20_000
    server.pause_after, server.asked = None, []
    result = fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache")
    assert result.status == "fetched"
    assert server.asked == [f"bytes={size}-"]
    assert names(tmp_path / "cache") == ["voc.tar"]


def test_a_part_that_is_not_needed(server: Server, tmp_path: Path) -> None:
    """A part that is only nice to have does not stop the fetch; what its places answered is still told."""
    extra = Archive("tree", "the tree", (Place("http", "http://host.invalid/x", "x", sha256="0" * 64),), optional=True)
    wanted = spec(server)
    result = fetching.fetch(
        replace(wanted, archives=(*wanted.archives, extra)), tmp_path / "data", cache=tmp_path / "cache"
    )
    assert result.status == "fetched"
    assert result.tried["tree"] == [{"place": "http://host.invalid/x", "answer": "no such host (no network?)"}]
    extra = replace(extra, optional=False)
    with pytest.raises(StorageError, match="the tree could not be had"):
        fetching.fetch(replace(wanted, archives=(*wanted.archives, extra)), tmp_path / "b", cache=tmp_path / "cache")


def test_two_at_a_time(server: Server, tmp_path: Path) -> None:
    script = f"""
from dataclasses import replace
from pathlib import Path
from tenfold.corpus.sources import fetching, voc
from tenfold.corpus.sources.places import Archive, Place
place = Place("http", {server.url!r}, "voc.tar", sha256={hashlib.sha256(server.content).hexdigest()!r})
spec = replace(voc.SPEC, archives=(Archive("trainval", "images", (place,)),), disk=0)
print(fetching.fetch(spec, {str(tmp_path / "data")!r}, cache=Path({str(tmp_path / "cache")!r})).status)
"""
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(p.communicate(timeout=60)[0].strip() for p in running) == ["fetched", "present"]


def test_folder_in_the_way(server: Server, tmp_path: Path) -> None:
    """A folder that Tenfold did not write is never overwritten."""
    own = tmp_path / "data/voc2012"
    own.mkdir(parents=True)
    (own / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="no finished source") as caught:
        fetching.fetch(spec(server), tmp_path / "data", cache=tmp_path / "cache")
    assert f"--from {own}" in caught.value.cure
    assert (own / "precious.txt").read_text() == "mine"


def test_adopted_in_place(server: Server, tmp_path: Path, photographs: list[Path]) -> None:
    official.voc(tmp_path / "data/voc2012", photographs[0])
    before = sorted(p for p in (tmp_path / "data/voc2012").rglob("*") if p.is_file())
    result = fetching.fetch(spec(server), tmp_path / "data", from_dir=tmp_path / "data/voc2012")
    assert result.status == "adopted"
    assert all(path.exists() for path in before)
    assert fetching.fetch(spec(server), tmp_path / "data", offline=True).status == "present"
    assert server.asked == []


def test_archives_in_a_folder_of_the_user(server: Server, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/voc.tar").write_bytes(server.content)
    result = fetching.fetch(spec(server), tmp_path / "data", from_dir=tmp_path / "downloads", cache=tmp_path / "cache")
    assert result.status == "fetched"
    assert server.asked == []


def test_imagenet_says_what_to_do_and_then_does_it(tmp_path: Path, photographs: list[Path]) -> None:
    with pytest.raises(StorageError) as caught:
        sources.fetch("imagenet", tmp_path / "data", cache=tmp_path / "cache")
    assert "needs an account of your own" in caught.value.message
    cure = caught.value.cure
    for needed in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        assert needed in cure
    assert str(tmp_path / "cache") in cure
    assert "--from FOLDER" in cure

    official.imagenet(tmp_path / "official", photographs[0])
    tars = imagenet_archives(tmp_path / "official", tmp_path / "tars")
    archives = tuple(
        replace(archive, places=(replace(archive.places[0], size=None, md5=tars[archive.places[0].file]),))
        for archive in imagenet.ARCHIVES
    )
    miniature = replace(imagenet.SPEC, archives=archives, disk=0)
    result = fetching.fetch(miniature, tmp_path / "data", from_dir=tmp_path / "tars", cache=tmp_path / "cache")
    assert (result.status, result.splits, result.classes) == ("fetched", {"train": 6, "val": 4}, 5)
    adopted = fetching.fetch(miniature, tmp_path / "more", from_dir=tmp_path / "official")
    assert adopted.digest == result.digest

    (tmp_path / "tars/ILSVRC2012_img_val.tar").write_bytes(b"cut off")
    with pytest.raises(StorageError, match=r"ILSVRC2012_img_val\.tar is damaged: expected md5"):
        fetching.fetch(miniature, tmp_path / "third", from_dir=tmp_path / "tars", cache=tmp_path / "cache")


def imagenet_archives(folder: Path, to: Path) -> dict[str, str]:
    """The three official archives of a folder in the official layout; md5 by name."""
    to.mkdir()
    with tarfile.open(to / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in sorted((folder / "train").iterdir()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for image in sorted(synset.iterdir()):
                    tar.add(image, image.name)
            member = tarfile.TarInfo(f"{synset.name}.tar")
            member.size = inner.tell()
            inner.seek(0)
            outer.addfile(member, inner)
    with tarfile.open(to / "ILSVRC2012_img_val.tar", "w") as tar:
        for image in sorted((folder / "val").iterdir()):
            tar.add(image, image.name)
    with tarfile.open(to / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(folder / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in to.iterdir()}


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="no source is named 'cifar'") as caught:
        sources.fetch("cifar")
    assert caught.value.cure == "did you mean cifar10n? There are: cifar10n, lmo, coco2017, voc2012, imagenet"


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="local folder"):
        sources.fetch("lmo", "s3://bucket/data")
    with pytest.raises(InputError, match="is not a folder"):
        sources.fetch("lmo", tmp_path, from_dir=tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        sources.fetch("lmo", tmp_path / "file", cache=tmp_path / "cache", offline=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds none of the archives of cifar10n"):
        sources.fetch("cifar10n", tmp_path / "data", from_dir=tmp_path / "empty")


def test_open_source_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished source"):
        sources.open_source(tmp_path)
    manifest = Manifest(kind="corpus", uri="x", digest="sha256:" + "0" * 64)
    manifest.write(str(tmp_path / "source.json"))
    with pytest.raises(InputError, match="no source that this version"):
        sources.open_source(tmp_path)


def test_command_line(
    tmp_path: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tenfold(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tenfold", "fetch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    official.voc(tmp_path / "voc", photographs[0])
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    to = str(tmp_path / "data")
    code, out, err = tenfold("voc2012", "--to", to, "--from", str(tmp_path / "voc"), "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["status"], result["splits"]) == ("adopted", {"train": 2, "val": 1})
    code, out, _ = tenfold("voc2012", "--to", to)
    assert "voc2012 is there and whole" in out
    assert "train 2, val 1; 23 classes" in out
    code, _, err = tenfold("coco2017", "--to", to, "--offline")
    assert code == 3
    for word in ("train2017.zip", "val2017.zip", "annotations_trainval2017.zip", "cure:", str(tmp_path / "cache")):
        assert word in err
    assert [row["name"] for row in json.loads(tenfold("--list", "--json")[1])] == list(sources.NAMES)
    code, _, err = tenfold()
    assert code == 2
    assert "name one of: cifar10n" in err
