"""Storage against files and a real MinIO server."""

from conftest import PASSWORD, USER, MinioServer
from minio import Minio


def test_minio_restarts_with_its_data(minio: MinioServer) -> None:
    client = Minio(minio.endpoint.removeprefix("http://"), USER, PASSWORD, secure=False)
    assert client.bucket_exists(minio.bucket)
    minio.stop()
    minio.start()
    assert client.bucket_exists(minio.bucket)
