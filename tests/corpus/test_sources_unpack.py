"""Archives to folders: what is wanted, where it belongs, and nothing outside."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tenfold.corpus.sources.unpack import unpack
from tenfold.errors import StorageError


def write(path: Path, files: dict[str, str]) -> None:
    if path.suffix in (".zip", ".whl"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return
    with tarfile.open(path, f"w:{'gz' if path.suffix in ('.gz', '.tgz') else ''}") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.whl", "a.tar", "a.tar.gz", "a.tgz"])
def test_files_and_routes(tmp_path: Path, name: str) -> None:
    files = {"top/a.txt": "1", "top/b/c.txt": "22", "top/b/d.bin": "333"}
    write(tmp_path / name, files)
    done: list[int] = []
    assert unpack(tmp_path / name, tmp_path / "all", advance=done.append) == 3
    assert tree(tmp_path / "all") == files
    assert 0 < sum(done) <= (tmp_path / name).stat().st_size
    texts = lambda member: Path(member).name if member.endswith(".txt") else None  # noqa: E731
    assert unpack(tmp_path / name, tmp_path / "texts", texts) == 2
    assert tree(tmp_path / "texts") == {"a.txt": "1", "c.txt": "22"}


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("evil", ["../out.txt", "a/../../out.txt", "/tmp/tenfold-out.txt", "..\\out.txt"])
def test_names_that_lead_out(tmp_path: Path, suffix: str, evil: str) -> None:
    write(tmp_path / f"a.{suffix}", {evil: "x"})
    with pytest.raises(StorageError, match="leads out of the folder"):
        unpack(tmp_path / f"a.{suffix}", tmp_path / "in")
    assert not (tmp_path / "out.txt").exists()
    assert not Path("/tmp/tenfold-out.txt").exists()


def test_links_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert unpack(tmp_path / "a.tar", tmp_path / "in") == 0
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_damaged(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, {"a.txt": "abc" * 5000, "b.txt": "def" * 5000})
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 5])
    with pytest.raises(StorageError, match="cannot be read"):
        unpack(tmp_path / name, tmp_path / "in")
