"""Lance by our settings, on files and on a real MinIO: versions commit, a killed server leaves no half table."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from conftest import PASSWORD, USER, MinioServer
from faulty_proxy import FaultyProxy
from minio.credentials import AssumeRoleProvider

from tenfold import storage
from tenfold.errors import StorageError


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, minio: MinioServer) -> str:
    return str(tmp_path) if request.param == "file" else minio.root


def rows(count: int, start: int = 0) -> pa.Table:
    return pa.table({"id": range(start, start + count)})


def write(uri: str, table: pa.Table | pa.RecordBatchReader, mode: str = "create") -> lance.LanceDataset:
    with storage.translate(uri):
        return lance.write_dataset(table, uri, mode=mode, storage_options=storage.lance_options(uri))


def read(uri: str, version: int | str | None = None) -> lance.LanceDataset:
    with storage.translate(uri):
        return lance.dataset(uri, version=version, storage_options=storage.lance_options(uri))


def test_versions_columns_and_tags(root: str) -> None:
    uri = storage.join(root, "t.lance")
    write(uri, rows(100))
    table = write(uri, rows(100, 100), "append")
    table.tags.create("before", table.version)
    table.add_columns({"double": "id * 2"})
    table.drop_columns(["id"])
    assert read(uri).to_table().to_pydict() == {"double": list(range(0, 400, 2))}
    assert read(uri, "before").to_table() == rows(200)
    with pytest.raises(StorageError, match="is there already"):
        write(uri, rows(1))
    with pytest.raises(StorageError, match="is not there"):
        read(storage.join(root, "other.lance"))


def test_of_writers_at_once_none_is_lost(root: str) -> None:
    """Commits are put-if-absent; MinIO heeds that. A loser of the race rebases, and nothing is overwritten."""
    uri = storage.join(root, "t.lance")
    write(uri, rows(1))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: write(uri, rows(1, i), "append"), range(1, 9)))
    assert sorted(read(uri).to_table()["id"].to_pylist()) == list(range(9))
    assert read(uri).version == 9


def test_wrong_key_and_missing_bucket(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no bucket 'no-such-bucket'"):
        write("s3://no-such-bucket/t.lance", rows(1))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StorageError, match="access key is not known"):
        read(minio.uri("t.lance"))


@pytest.mark.slow  # Lance's layers of retries have a least time
def test_nobody_listens(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_STORAGE_PATIENCE", "0")
    minio.stop()
    with pytest.raises(StorageError, match="nobody listens there"):
        read(minio.uri("t.lance"))


def test_keys_that_expire(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = AssumeRoleProvider(sts_endpoint=minio.endpoint, access_key=USER, secret_key=PASSWORD).retrieve()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", lent.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", lent.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(lent.session_token))
    write(minio.uri("t.lance"), rows(10))
    assert read(minio.uri("t.lance")).count_rows() == 10


def slow_batches(reached: threading.Event, go_on: threading.Event) -> pa.RecordBatchReader:
    """24 MB in batches; half-way it says so, and waits."""
    schema = pa.schema([("image", pa.binary())])

    def batches():
        for i in range(24):
            if i == 12:
                reached.set()
                go_on.wait(30)
            yield pa.record_batch([[os.urandom(1 << 18) for _ in range(4)]], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_killed_amid_a_table(minio: MinioServer, monkeypatch: pytest.MonkeyPatch, comes_back: bool) -> None:
    monkeypatch.setenv("TENFOLD_STORAGE_PATIENCE", "20" if comes_back else "0")
    uri = minio.uri("t.lance")
    reached, go_on = threading.Event(), threading.Event()

    def kill() -> None:
        reached.wait(30)
        minio.stop()
        if comes_back:
            threading.Timer(1.0, minio.start).start()
        go_on.set()

    killer = threading.Thread(target=kill)
    killer.start()
    if comes_back:
        write(uri, slow_batches(reached, go_on))
        killer.join()
    else:
        with pytest.raises(StorageError, match=r"nobody listens|connection broke"):
            write(uri, slow_batches(reached, go_on))
        killer.join()
        minio.start()
        with pytest.raises(StorageError, match="is not there"):
            read(uri)
        write(uri, pa.table({"image": [b"1"] * 96}))
    assert read(uri).count_rows() == 96


def test_a_slow_network(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(minio.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.delay = 0.01
        write(minio.uri("t.lance"), rows(1000))
        assert read(minio.uri("t.lance")).to_table() == rows(1000)
        assert proxy.received > 0
