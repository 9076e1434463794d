"""Fixtures shared by all tests: a real MinIO server, real photographs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUCKET = "tenfold-test"
USER, PASSWORD = "tenfold", "tenfold-secret-key"


class MinioServer:
    """A MinIO server of our own on a free port; it can be stopped and started again on the same port and data.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
        bucket: a bucket that exists.
        root: `s3://BUCKET/PREFIX`, fresh for each test.
        log: the server's output.
    """

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary = binary
        self.folder = folder
        self.log = folder / "minio.log"
        self.bucket = BUCKET
        self.root = f"s3://{BUCKET}"
        self.process: subprocess.Popen[bytes] | None = None
        # The server is to die with this process, even by SIGKILL. The kernel ties that to the thread that started it,
        # so all starts come from one thread that stays.
        self._starter = ThreadPoolExecutor(1)
        self._tie = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def uri(self, *parts: str) -> str:
        """Address below this test's own prefix."""
        return "/".join((self.root, *parts))

    def start(self) -> None:
        """Start, and wait until it answers; nothing happens where it runs already."""
        if self.process and self.process.poll() is None:
            return
        self._starter.submit(self._spawn).result()
        self._wait()

    def _spawn(self) -> None:
        env = {**os.environ, "MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD, "MINIO_BROWSER": "off"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._tie,
                    self.binary,
                    "server",
                    "--quiet",
                    "--address",
                    f"127.0.0.1:{self.port}",
                    self.folder / "data",
                ],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait(self) -> None:
        """Until the server serves.

        The trap: `/minio/health/ready` says yes before users are loaded, and a client that comes that early gets 503
        with `Retry-After: 60`, which some obey. A nameless request is refused (403) only when all is up.
        """
        assert self.process
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                opener.open(f"{self.endpoint}/{self.bucket}", timeout=2).close()
            except urllib.error.HTTPError as error:
                if error.code == 403:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        pytest.fail(f"MinIO did not start on port {self.port}:\n{self.log.read_text()[-2000:]}")

    def stop(self, *, hard: bool = True) -> None:
        """Kill the server (`hard`, SIGKILL) or end it (SIGTERM), and wait until it is gone."""
        if self.process:
            self.process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._starter.shutdown()


def minio_binary() -> str:
    """Path of the MinIO binary; the test fails with the cure where there is none."""
    found = shutil.which("minio", path=f"{ROOT / '.cache/bin'}:{os.environ.get('PATH', '')}")
    if not found:
        pytest.fail("no MinIO server to test against\n  cure: run `make tools` (it finds or builds .cache/bin/minio)")
    return found


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """One MinIO server a test process (each xdist worker has its own), with the bucket made."""
    server = MinioServer(minio_binary(), tmp_path_factory.mktemp("minio"))
    (server.folder / "data" / BUCKET).mkdir(parents=True)  # on a single drive a bucket is a folder
    server.start()
    yield server
    server.close()
    shutil.rmtree(server.folder / "data", ignore_errors=True)


@pytest.fixture
def minio(
    minio_server: MinioServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MinioServer]:
    """A running MinIO with the usual AWS variables set for it; `minio.root` is this test's own empty prefix."""
    minio_server.start()  # an earlier test may have stopped it
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", minio_server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, f"{os.environ.get(name, '')},127.0.0.1,localhost".lstrip(","))
    name = re.sub(r"\W+", "-", request.node.name)[:40].strip("-")
    minio_server.root = f"s3://{BUCKET}/{name}-{uuid.uuid4().hex[:8]}"
    yield minio_server
    minio_server.start()


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Two real JPEG photographs (640 x 427 px) that come with scikit-learn: china.jpg and flower.jpg."""
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that takes a second
    if spec is None or spec.origin is None:
        pytest.fail("scikit-learn's sample photographs are missing\n  cure: run `make setup`")
    folder = Path(spec.origin).parent / "datasets" / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]
