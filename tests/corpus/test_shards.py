"""WebDataset shards, whole and damaged; the shards of the webdataset library as oracle."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tenfold.corpus import shards
from tenfold.corpus.shards import read_shard, split_shard
from tenfold.corpus.sniff import Rejected

PICTURE = b"\x89PNG not looked into here"


def tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def read(uri: str, start: int = 0, end: int | None = None) -> list[tuple[str, object, object, object]]:
    name = uri.rpartition("/")[2]
    size = Path(uri).stat().st_size if end is None else end
    samples = read_shard(uri, name, start, size, ";", 1 << 20)
    return [(f, d.reason if isinstance(d, Rejected) else d, labels, votes) for f, d, labels, votes in samples]


def test_labels_in_every_way(tmp_path: Path) -> None:
    members = [
        ("000.jpg", PICTURE), ("000.cls", b"7\n"),
        ("001.cls", b"cat"), ("001.png", PICTURE),
        ("a/b.c/002.jpeg", PICTURE), ("a/b.c/002.txt", b"cat\nbig dog\n"),
        ("003.jpg", PICTURE), ("003.json", json.dumps({"labels": ["x", "y"], "votes": [1, 3], "width": 4}).encode()),
        ("004.jpg", PICTURE), ("004.json", b'{"label": 9}'),
        ("005.jpg", PICTURE), ("005.seg.png", b"a mask"), ("005.cls", b"0"), ("005.json", b'{"cls": 1}'),
        ("006.jpg", PICTURE),
        ("007.cls", b"1"),
        ("008.jpg", PICTURE), ("008.json", b"{"),
        ("009.jpg", PICTURE), ("009.json", b'{"caption": "a cat"}'),
        ("010.jpg", bytes(2 << 20)), ("010.cls", b"1"),
        ("011.jpg", PICTURE), ("011.txt", b""),
        ("__meta__.json", b"{}"),
    ]  # fmt: skip
    expected = [
        ("s.tar/000.jpg", PICTURE, ["7"], [1.0]),
        ("s.tar/001.png", PICTURE, ["cat"], [1.0]),
        ("s.tar/a/b.c/002.jpeg", PICTURE, ["cat", "big dog"], [1.0, 1.0]),
        ("s.tar/003.jpg", PICTURE, ["x", "y"], [1.0, 3.0]),
        ("s.tar/004.jpg", PICTURE, ["9"], [1.0]),
        ("s.tar/005.jpg", PICTURE, ["0"], [1.0]),
        ("s.tar/006.jpg", PICTURE, None, []),
        ("s.tar/007.cls", "missing", None, []),
        ("s.tar/008.jpg", "unlabelled", None, []),
        ("s.tar/009.jpg", PICTURE, None, []),
        ("s.tar/010.jpg", "oversize", ["1"], [1.0]),
        ("s.tar/011.jpg", PICTURE, [], []),
    ]
    assert read(tar(tmp_path / "s.tar", members)) == expected
    packed = read(tar(tmp_path / "s.tar.gz", members, "w:gz"))
    assert [sample[1:] for sample in packed] == [sample[1:] for sample in expected]


def members_of(count: int) -> list[tuple[str, bytes]]:
    return [
        (f"{i:04d}.{ext}", data) for i in range(count) for ext, data in (("jpg", PICTURE * (i % 50)), ("cls", b"1"))
    ]


def test_pieces_together_are_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = tar(tmp_path / "s.tar", [("long/" * 40 + name, data) for name, data in members_of(60)])
    size = Path(uri).stat().st_size
    monkeypatch.setattr(shards, "SPLIT", 10_000)
    pieces = list(split_shard(uri, size, few=True))
    assert len(pieces) > 5
    assert [start for start, _ in pieces] == [0, *[end for _, end in pieces[:-1]]]
    assert pieces[-1][1] == size
    assert [sample for piece in pieces for sample in read(uri, *piece)] == read(uri)
    assert list(split_shard(uri, size, few=False)) == [(0, size)]


def test_a_cut_shard_gives_what_is_whole(tmp_path: Path) -> None:
    whole = Path(tar(tmp_path / "s.tar", members_of(30))).read_bytes()
    everything = read(str(tmp_path / "s.tar"))
    for size in (len(whole) // 2, len(whole) // 3 + 700, 30_000):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        found = read(str(tmp_path / "cut.tar"))
        good = [sample[1:] for sample in found if isinstance(sample[1], bytes) and sample[2] is not None]
        assert good == [sample[1:] for sample in everything][: len(good)]
        assert len(good) > 3
        assert found[-1][1] in ("truncated", "corrupt")


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    """Python's tarfile takes a damaged header for the end of the archive, and says nothing."""
    data = bytearray(Path(tar(tmp_path / "s.tar", members_of(30))).read_bytes())
    at = data.index(b"0015.jpg")
    data[at : at + 100] = b"\xff" * 100
    (tmp_path / "s.tar").write_bytes(data)
    found = read(str(tmp_path / "s.tar"))
    assert len(found) == 16
    assert found[-1][:2] == ("s.tar", "corrupt")


def test_no_tar_at_all(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"<html>not found</html>" * 100)
    assert [sample[:2] for sample in read(str(tmp_path / "s.tar"))] in (
        [("s.tar", "truncated")],
        [("s.tar", "corrupt")],
    )


@pytest.mark.slow  # loads torch
def test_equals_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    uri = str(tmp_path / "w.tar")
    with webdataset.TarWriter(uri) as writer:
        for i in range(20):
            writer.write({"__key__": f"dir/{i:03d}", "jpg": PICTURE * i, "cls": i % 3})
    theirs = webdataset.WebDataset(f"file:{uri}", shardshuffle=False)
    expected = [(f"w.tar/{s['__key__']}.jpg", s["jpg"], [s["cls"].decode()], [1.0]) for s in theirs]
    assert read(uri) == expected
