"""Storage against files and a real MinIO server."""

import pytest
from conftest import MinioServer

from tenfold import storage


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path, minio: MinioServer) -> str:
    return str(tmp_path) if request.param == "file" else minio.root


def test_bytes_come_back(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    storage.write_bytes(uri, b"123")
    assert storage.read_bytes(uri) == b"123"
    assert storage.exists(uri)
    assert storage.list_files(root) == ["a/b.bin"]
    storage.remove(root)
    assert storage.list_files(root) == []


def test_data_survive_a_restart_of_the_server(minio: MinioServer) -> None:
    storage.write_bytes(minio.uri("kept"), b"123")
    minio.stop()
    minio.start()
    assert storage.read_bytes(minio.uri("kept")) == b"123"
