"""What goes wrong becomes a StorageError with a cure, is tried again where that may help, and leaves no halves.

Real faults throughout: a MinIO with other keys, killed and started again; a network that damages, cuts, delays, and
swallows; a full disk; no permission.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PASSWORD, USER, MinioServer
from faulty_proxy import FaultyProxy
from minio import MinioAdmin
from minio.credentials import AssumeRoleProvider, StaticProvider

from tenfold import storage
from tenfold.errors import InputError, StorageError
from tenfold.storage import failures, s3
from tenfold.storage.failures import classify
from tenfold.storage.uris import split

MIB = 1 << 20
CALLS: list[Callable[[str], object]] = [
    storage.read_bytes,
    storage.open_read,
    storage.exists,
    storage.size,
    storage.list_files,
    storage.list_folders,
    storage.remove,
    storage.preflight,
    lambda uri: storage.write_bytes(uri, b"x"),
    lambda uri: storage.copy(uri, uri + "-2"),
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_STORAGE_PATIENCE", "0.3")


@pytest.fixture
def proxy(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(minio.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seconds: float) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr(failures.time, "sleep", fail)


def refused(call: Callable[[str], object], uri: str, says: str) -> None:
    with pytest.raises(StorageError, match=says) as caught:
        call(uri)
    text = str(caught.value)
    assert uri.rpartition("/")[0] in text or uri in text
    assert os.environ["AWS_ENDPOINT_URL"] in text
    assert caught.value.cure
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "-none-") not in text


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "access key is not known"),
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "secret key does not belong"),
        ("AWS_SESSION_TOKEN", "not-a-token", "session token is wrong"),
    ],
)
def test_wrong_keys(
    minio: MinioServer,
    no_second_try: None,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[str], object],
    variable: str,
    value: str,
    says: str,
) -> None:
    monkeypatch.setenv(variable, value)
    refused(call, minio.uri("a"), says)


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_bucket(minio: MinioServer, no_second_try: None, call: Callable[[str], object]) -> None:
    refused(call, "s3://no-such-bucket/a", "no bucket 'no-such-bucket'")


@pytest.mark.parametrize("call", CALLS)
def test_nobody_listens(
    minio: MinioServer, impatient: None, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], object]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    refused(call, minio.uri("a"), "nobody listens there")


def test_no_keys_at_all(minio: MinioServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(storage.preflight, minio.uri("a"), "no access key was found")


def test_a_key_without_permission_and_one_that_expires(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(minio.uri("a"), b"1")
    where = minio.endpoint.removeprefix("http://")
    admin = MinioAdmin(endpoint=where, credentials=StaticProvider(USER, PASSWORD), secure=False)
    admin.user_add("guest", "guest-secret-key")
    admin.policy_set("readonly", user="guest")
    lent = AssumeRoleProvider(sts_endpoint=minio.endpoint, access_key=USER, secret_key=PASSWORD).retrieve()

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "guest")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guest-secret-key")
    assert storage.read_bytes(minio.uri("a")) == b"1"
    refused(lambda uri: storage.write_bytes(uri, b"2"), minio.uri("a"), "this key may not do that")
    refused(storage.remove, minio.uri("a"), r"AccessDenied|may not do that")
    refused(storage.preflight, minio.uri("a"), "this key may not do that")

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", lent.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", lent.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(lent.session_token))
    storage.write_bytes(minio.uri("a"), b"3")
    storage.preflight(minio.uri("a"))


def test_addresses_of_the_service_that_cannot_be(
    minio: MinioServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL='minio:9000'"):
        storage.read_bytes(minio.uri("a"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    refused(storage.read_bytes, minio.uri("a"), "name of the server is not known")
    monkeypatch.setenv("AWS_ENDPOINT_URL", minio.endpoint.replace("http:", "https:"))
    refused(storage.read_bytes, minio.uri("a"), "no secure connection")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:hidden@127.0.0.1:1")
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(minio.uri("a"))
    assert "hidden" not in str(caught.value)
    monkeypatch.setenv("TENFOLD_STORAGE_PATIENCE", "a while")
    with pytest.raises(InputError, match="TENFOLD_STORAGE_PATIENCE"):
        storage.endpoint()


def test_preflight_ends_where_nobody_answers(
    proxy: FaultyProxy, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.mute = True
    monkeypatch.setattr(storage, "PREFLIGHT_SECONDS", 1.0)
    refused(storage.preflight, minio.uri("a"), "did not answer in time")


def test_preflight_leaves_nothing(minio: MinioServer, tmp_path: Path) -> None:
    storage.preflight(minio.uri("run"))
    storage.preflight(f"s3://{minio.bucket}")
    assert storage.list_files(minio.root) == []
    storage.preflight(str(tmp_path / "not" / "yet"))
    assert os.listdir(tmp_path) == []
    with pytest.raises(StorageError, match="is not there"):
        storage.preflight(str(tmp_path / "not"), write=False)


def test_a_server_that_comes_back_is_waited_for(minio: MinioServer) -> None:
    storage.write_bytes(minio.uri("a"), b"1")
    for call in (lambda: storage.read_bytes(minio.uri("a")), lambda: storage.write_bytes(minio.uri("b"), b"2")):
        minio.stop()
        timer = threading.Timer(0.7, minio.start)
        timer.start()
        call()
        timer.join()
    assert storage.list_files(minio.root) == ["a", "b"]


def write_in_parts(uri: str, meanwhile: Callable[[], None]) -> bytes:
    piece = os.urandom(MIB)
    with storage.open_write(uri) as file:
        for i in range(23):
            file.write(piece)
            if i == 12:
                time.sleep(0.2)  # some parts are there, some under way
                meanwhile()
    return piece * 23


def test_a_server_killed_amid_an_upload_and_back(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 5 * MIB)

    def restart() -> None:
        minio.stop()
        threading.Timer(0.5, minio.start).start()

    data = write_in_parts(minio.uri("large"), restart)
    assert storage.read_bytes(minio.uri("large")) == data


def test_a_server_killed_amid_an_upload_and_gone(
    minio: MinioServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART", 5 * MIB)
    with pytest.raises(StorageError, match=r"nobody listens|connection broke"):
        write_in_parts(minio.uri("large"), minio.stop)
    minio.start()
    assert storage.list_files(minio.root) == []
    data = write_in_parts(minio.uri("large"), lambda: None)
    assert storage.read_bytes(minio.uri("large")) == data


def test_the_answer_to_the_last_request_is_lost(proxy: FaultyProxy, minio: MinioServer) -> None:
    upload = s3._Upload(minio.uri("a"))
    upload.add(b"x" * 5 * MIB)
    parts = [upload._parts[0].result()]
    s3.client().complete_multipart_upload(**upload._where, MultipartUpload={"Parts": parts})  # as if by an earlier try
    upload.complete()
    other = s3._Upload(minio.uri("b"))
    other.add(b"x" * 5 * MIB)
    other._parts[0].result()
    s3.client().abort_multipart_upload(**other._where)
    with pytest.raises(StorageError, match="forgotten the upload"):
        other.complete()


@pytest.mark.parametrize("size", [100_000, 11 * MIB])
@pytest.mark.parametrize("harm", ["flip_at", "cut_at"])
def test_bytes_harmed_on_the_way_are_sent_again(
    proxy: FaultyProxy, minio: MinioServer, monkeypatch: pytest.MonkeyPatch, harm: str, size: int
) -> None:
    monkeypatch.setattr(s3, "PART", 5 * MIB)
    data = os.urandom(size)
    setattr(proxy, harm, proxy.received + size // 2)
    storage.write_bytes(minio.uri("a"), data)
    assert getattr(proxy, harm) is None, "it did happen"
    assert storage.read_bytes(minio.uri("a")) == data


def test_the_receipt_is_read(minio: MinioServer) -> None:
    storage.write_bytes(minio.uri("a"), b"123")
    bucket, key = split(minio.uri("a"))
    there = s3.client().head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    assert there["ChecksumCRC32"] == s3.crc32(b"123")
    with pytest.raises(StorageError, match="stored damaged"):
        s3._compare(minio.uri("a"), there, s3.crc32(b"124"))


def test_a_slow_network(proxy: FaultyProxy, minio: MinioServer) -> None:
    proxy.delay = 0.02
    storage.write_bytes(minio.uri("a"), b"1" * 100_000)
    assert storage.read_bytes(minio.uri("a")) == b"1" * 100_000
    assert storage.list_files(minio.root) == ["a"]
    assert proxy.connections < 5, "connections are kept"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def run_limited(limit: str, *calls: str) -> list[str]:
    """What StorageError each of the calls raises in a process that has done `limit` first."""
    program = f"import os, resource\nfrom tenfold import storage\nfrom tenfold.errors import StorageError\n{limit}\n"
    for call in calls:
        program += f"try: storage.{call}\nexcept StorageError as error: print(repr(str(error)))\nelse: print('fine')\n"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def test_a_full_disk(tmp_path: Path) -> None:
    """The limit on file size stands for the full disk: the same error class from the same system call."""
    storage.write_bytes(str(tmp_path / "a"), b"old")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    [said] = run_limited(limit, f"write_bytes({str(tmp_path / 'a')!r}, b'n' * 100_000)")
    assert "the disk is full" in said
    assert "free space" in said
    assert os.listdir(tmp_path) == ["a"]
    assert storage.read_bytes(str(tmp_path / "a")) == b"old"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_no_permission(tmp_path: Path) -> None:
    where = repr(str(tmp_path / "a"))
    calls = (
        f"write_bytes({where}, b'')",
        *(f"{n}({where})" for n in ("read_bytes", "preflight", "list_files", "exists")),
    )
    limit = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    for call, said in zip(calls, run_limited(limit, *calls), strict=True):
        assert "permission denied" in said, call


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path in ("a/b", "a/b/c"):
        with pytest.raises(StorageError, match="a part of the path is a file"):
            storage.write_bytes(str(tmp_path / path), b"")
        assert not storage.exists(str(tmp_path / path))
        assert storage.list_files(str(tmp_path / path)) == storage.list_folders(str(tmp_path / path)) == []
    with pytest.raises(StorageError, match="is a folder"):
        storage.read_bytes(str(tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# Errors that are only text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            ValueError("LanceError(IO): Generic S3 error: … 403 Forbidden: <Error><Code>InvalidAccessKeyId</Code>"),
            "key",
        ),
        (OSError("LanceError(IO): Generic S3 error: … 404: <Error><Code>NoSuchBucket</Code>"), "bucket"),
        (OSError("LanceError(IO): Generic S3 error: … HTTP error: error sending request"), "unreached"),
        (ValueError("Dataset at path a was not found: Not found: a/_versions, rust/lance/src/dataset.rs"), "missing"),
        (OSError("LanceError(IO): … Generic LocalFileSystem error: No space left on device (os error 28)"), "full"),
        (OSError("LanceError(IO): Commit conflict for version 5"), "changed"),
        (OSError(errno.ENOSPC, "No space left on device"), "full"),
        (socket.gaierror(-2, "Name or service not known"), "dns"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "broken"),
    ],
)
def test_errors_by_their_text(error: Exception, kind: str) -> None:
    found = classify(error)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize("error", [ValueError("connection refused"), KeyError("timeout"), InputError("a", "b")])
def test_errors_of_others_pass(error: Exception) -> None:
    assert classify(error) is None
    with pytest.raises(type(error)), storage.translate("/a"):
        raise error


def test_interrupts_pass(minio: MinioServer) -> None:
    minio.stop()
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        storage.read_bytes(minio.uri("a"))
