"""Bytes go in and come out, the same on files and on a real MinIO; what is written appears whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MinioServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold import storage
from tenfold.errors import InputError, StorageError
from tenfold.storage import s3

MIB = 1 << 20


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, minio: MinioServer) -> str:
    return str(tmp_path / "root") if request.param == "file" else minio.root


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 5 * MIB)  # the least S3 allows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000), name=st.text("aZ9 ä+%&=?#.@~'\"\\漢", min_size=1, max_size=12))
def test_any_bytes_under_any_name_come_back(root: str, data: bytes, name: str) -> None:
    name = f"x{name}y"
    uri = storage.join(root, "a", name)
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert storage.size(uri) == len(data)
    assert storage.digest(uri) == "sha256:" + hashlib.sha256(data).hexdigest()
    assert f"a/{name}" in storage.list_files(root)
    storage.remove(uri)
    assert not storage.exists(uri)


@pytest.mark.parametrize("size", [5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 23 * MIB + 7])
def test_large_files_come_back(root: str, size: int, small_parts: None) -> None:
    data = os.urandom(MIB) * (size // MIB) + os.urandom(size % MIB)
    uri = storage.join(root, "large")
    with storage.open_write(uri) as file:
        view = memoryview(data)
        for start in range(0, size, 3_000_001):  # pieces that fit no part
            file.write(view[start : start + 3_000_001])
        assert file.tell() == size
        assert not storage.exists(uri)
    assert storage.size(uri) == size
    with storage.open_read(uri) as reader:
        assert reader.read(10) == data[:10]
        reader.seek(size - 5)
        assert reader.read() == data[-5:]
        reader.seek(0)
        assert hashlib.sha256(reader.read()).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("size", [10, 12 * MIB])
def test_an_error_leaves_what_was_there(root: str, size: int, small_parts: None) -> None:
    uri = storage.join(root, "kept")
    storage.write_bytes(uri, b"old")

    def write_and_fail() -> None:
        with storage.open_write(uri) as file:
            file.write(b"n" * size)
            raise ZeroDivisionError

    def write_and_forget() -> None:
        storage.open_write(uri).write(b"n" * size)

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    write_and_forget()
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(root) == ["kept"]
    if not storage.is_s3(root):
        assert os.listdir(root) == ["kept"]


def test_a_killed_writer_leaves_nothing_to_see(root: str) -> None:
    storage.write_bytes(storage.join(root, "other"), b"1")
    code = f"""
import os, signal
from tenfold import storage
from tenfold.storage import s3
s3.PART = {5 * MIB}
file = storage.open_write({storage.join(root, "new")!r})
file.write(b"n" * {11 * MIB})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert storage.list_files(root) == ["other"]
    assert not storage.exists(storage.join(root, "new"))
    storage.write_bytes(storage.join(root, "new"), b"2")
    assert storage.list_files(root) == ["new", "other"]


def test_of_two_writers_one_wins_whole(root: str) -> None:
    uri = storage.join(root, "same")
    contents = [bytes([i]) * 300_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: storage.write_bytes(uri, data), contents))
    assert storage.read_bytes(uri) in contents


def test_folders_and_names_that_begin_alike(root: str) -> None:
    for name in ("run/a", "run/b/c", "run-2/a", "run2", "r"):
        storage.write_bytes(storage.join(root, name), name.encode())
    assert storage.exists(storage.join(root, "run"))
    assert not storage.exists(storage.join(root, "ru"))
    assert storage.list_files(storage.join(root, "run")) == ["a", "b/c"]
    assert storage.list_folders(root) == ["run", "run-2"]
    assert storage.list_folders(storage.join(root, "run")) == ["b"]
    storage.remove(storage.join(root, "run"))
    assert storage.list_files(root) == ["r", "run-2/a", "run2"]
    storage.remove(storage.join(root, "run"))
    assert (
        storage.list_files(storage.join(root, "nothing")) == storage.list_folders(storage.join(root, "nothing")) == []
    )


def test_listings_are_never_stale(root: str) -> None:
    fs = storage.filesystem(root)
    for i in range(3):
        storage.write_bytes(storage.join(root, f"{i}"), b"")
        assert len(fs.find(root)) == len(fs.ls(root)) == len(storage.list_files(root)) == i + 1


def test_what_is_not_there_is_said(root: str) -> None:
    uri = storage.join(root, "missing")
    for call in (storage.read_bytes, storage.open_read, storage.size, storage.digest):
        with pytest.raises(StorageError, match=r"missing.* is not there") as caught:
            call(uri)
        assert caught.value.cure


def test_copies_between_any_two_places(tmp_path: Path, minio: MinioServer) -> None:
    data = os.urandom(100_000)
    places = [str(tmp_path / "a"), minio.uri("a"), minio.uri("deep", "b"), str(tmp_path / "deep" / "b"), minio.uri("c")]
    storage.write_bytes(places[0], data)
    for source, target in itertools.pairwise(places):
        storage.copy(source, target)
        assert storage.read_bytes(target) == data
    for target in (minio.uri("d"), str(tmp_path / "d")):
        with pytest.raises(StorageError, match="nothing"):
            storage.copy(minio.uri("nothing"), target)
        assert not storage.exists(target)


def test_a_bucket_is_not_removed(minio: MinioServer) -> None:
    with pytest.raises(InputError, match="whole bucket"):
        storage.remove(f"s3://{minio.bucket}")


@pytest.mark.slow
def test_thousands_of_objects(minio: MinioServer) -> None:
    names = [f"{i:05d}" for i in range(2100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(minio.uri("many", name), b""), names))
    assert storage.list_files(minio.uri("many")) == names
    storage.remove(minio.uri("many"))
    assert not storage.exists(minio.uri("many"))


def test_fsspec_opens_s3_by_these_settings(minio: MinioServer) -> None:
    table = pa.table({"a": list(range(1000))})
    with fsspec.open(minio.uri("t", "a.parquet"), "wb") as file:
        pq.write_table(table, file)
    fs, path = fsspec.url_to_fs(minio.uri("t"))
    assert pq.read_table(f"{path}/a.parquet", filesystem=fs) == table
    assert pq.read_table(path, filesystem=fs) == table
    fs.mv(f"{path}/a.parquet", f"{path}/b.parquet")
    assert [Path(name).name for name in fs.ls(path, detail=False)] == ["b.parquet"]
    assert fs.isdir(path)
    assert fs.isfile(f"{path}/b.parquet")
    assert fs.cat_file(f"{path}/b.parquet", -4, None) == b"PAR1"
    assert fs.glob(f"{path}/*.parquet") == fs.find(path)
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{path}/none")
    with pytest.raises(ValueError, match="'rb' or 'wb'"):
        fs.open(f"{path}/b.parquet", "ab")
    fs.rm(path, recursive=True)
    assert not fs.exists(path)


@pytest.mark.slow
def test_torch_checkpoints_by_fsspec(minio: MinioServer) -> None:
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader, FsspecWriter

    state = {"w": torch.arange(300_000, dtype=torch.float32), "step": torch.tensor(7)}
    dcp.save(state, storage_writer=FsspecWriter(minio.uri("ckpt")), no_dist=True)
    loaded = {"w": torch.zeros(300_000), "step": torch.tensor(0)}
    dcp.load(loaded, storage_reader=FsspecReader(minio.uri("ckpt")), no_dist=True)
    assert torch.equal(loaded["w"], state["w"])
    assert int(loaded["step"]) == 7


def test_daft_reads_and_writes(root: str) -> None:
    import daft

    config = storage.daft_io_config(root)
    daft.from_pydict({"a": [1, 2, 3]}).write_parquet(storage.join(root, "t"), io_config=config)
    read = daft.read_parquet(storage.join(root, "t", "*.parquet"), io_config=config)
    assert read.to_pydict() == {"a": [1, 2, 3]}


def test_a_forked_process_has_a_connection_of_its_own(minio: MinioServer) -> None:
    storage.write_bytes(minio.uri("a"), b"parent")
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            assert storage.read_bytes(minio.uri("a")) == b"parent"

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        for i in range(3):
            if (child := os.fork()) == 0:
                os._exit(0 if storage.read_bytes(minio.uri("a")) == b"parent" else 1)
            assert os.waitpid(child, 0)[1] == 0, i
    finally:
        stop.set()
        thread.join()


def test_a_file_that_is_replaced_while_it_is_read(minio: MinioServer) -> None:
    storage.write_bytes(minio.uri("a"), os.urandom(10 * MIB))
    with storage.open_read(minio.uri("a")) as file, storage.translate(minio.uri("a")):
        file.read(100)
        storage.write_bytes(minio.uri("a"), os.urandom(10 * MIB))
        with pytest.raises(StorageError, match="changed by somebody else"):
            file.read()
