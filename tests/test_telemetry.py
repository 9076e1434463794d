"""Telemetry: a real scrape over HTTP, JSON lines that equal it, uploads to a real MinIO, the progress line."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from conftest import MinioServer
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tenfold import storage
from tenfold.errors import StorageError
from tenfold.progress import ProgressLine, duration
from tenfold.telemetry import Telemetry


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def families(port: int) -> list:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def scrape(port: int) -> dict[str, float]:
    """Samples by name as Prometheus reads them, without buckets; labels summed up."""
    values: dict[str, float] = {}
    for family in families(port):
        for sample in family.samples:
            assert sample.labels["run"] == "r1"
            assert sample.labels["rank"] == "0"
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def parse(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.splitlines()]


def lines(path: Path) -> list[dict]:
    return parse(path.read_bytes())


def test_scrape_and_lines_agree(tmp_path: Path) -> None:
    log = tmp_path / "run" / "telemetry.jsonl"
    stream = io.StringIO()
    with Telemetry(run="r1", total_steps=4, port=free_port(), log=log, every=2, gpu=None, stream=stream) as telemetry:
        for i in range(4):
            telemetry.step(images=32, seconds=0.5, wait_seconds=0.1, loss=1.0 / (i + 1), learning_rate=0.1)
        telemetry.bad_row(17, "truncated", "the JPEG ends early")
        telemetry.checkpoint_saved(4)
        seen = scrape(telemetry.port)
    assert seen["tenfold_train_images_total"] == 128
    assert seen["tenfold_train_steps_total"] == 4
    assert seen["tenfold_train_step_seconds_sum"] == 2.0
    assert seen["tenfold_train_data_wait_seconds_count"] == 4
    assert seen["tenfold_train_loss"] == 0.25
    assert seen["tenfold_train_learning_rate"] == 0.1
    assert seen["tenfold_train_bad_rows_total"] == 1
    assert seen["tenfold_train_checkpoint_step"] == 4
    assert 0 <= seen["tenfold_train_checkpoint_age_seconds"] < 60
    assert seen["tenfold_train_process_cpu_seconds_total"] > 0
    written = lines(log)
    assert [line["event"] for line in written] == ["start", "step", "step", "bad_row", "checkpoint", "end"]
    assert written[3]["row"] == 17
    moving = ("age_seconds", "cpu_seconds_total", "memory_bytes")
    compared = 0
    for name, value in written[-1].items():
        if name.startswith("tenfold_") and not name.endswith(moving):
            assert seen[name] == value, name
            compared += 1
    assert compared > 12
    assert "step 4/4 (100%)" in stream.getvalue()


def test_names_follow_the_conventions_of_prometheus() -> None:
    with Telemetry(run="r1", team="vision", port=free_port(), gpu=None) as telemetry:
        telemetry.bad_row(1, "empty")
        found = families(telemetry.port)
    assert len(found) > 12
    for family in found:
        assert re.fullmatch(r"tenfold_[a-z_]+", family.name)
        assert family.documentation
        for sample in family.samples:
            assert sample.labels["stage"] == "pretrain"
            assert sample.labels["team"] == "vision"
            if family.type == "counter" and not sample.name.endswith("_created"):
                assert sample.name.endswith("_total")
    assert not any(f.name.endswith(("_ms", "_percent", "_mb")) for f in found)


def test_two_in_one_process_do_not_mix() -> None:
    with Telemetry(run="a", gpu=None) as one, Telemetry(run="b", rank=1, gpu=None) as two:
        one.step(images=3, seconds=0.1)
        assert one.snapshot()["tenfold_train_images_total"] == 3
        assert two.snapshot()["tenfold_train_images_total"] == 0


def test_a_busy_port_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with Telemetry(run="r1", port=free_port(), gpu=None) as first:
        for port in (first.port, 99_999):
            with Telemetry(run="r2", port=port, gpu=None) as second:
                assert second.port == 0
                second.step(images=1, seconds=0.1)
            assert f"port {port}" in caplog.text
        assert scrape(first.port)


def test_the_port_is_free_again_after_close_even_with_a_forked_worker() -> None:
    port = free_port()
    with Telemetry(run="r1", port=port, gpu=None):
        if (child := os.fork()) == 0:
            signal.pause()
    try:
        with Telemetry(run="r1", port=port, gpu=None) as again:
            assert again.port == port
            assert scrape(port)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_loss_that_is_no_number_stays_valid_json(tmp_path: Path) -> None:
    with Telemetry(run="r1", log=tmp_path / "t.jsonl", every=1, gpu=None, port=free_port()) as telemetry:
        for loss in (math.nan, math.inf):
            telemetry.step(images=1, seconds=0.1, loss=loss)
        assert math.isinf(scrape(telemetry.port)["tenfold_train_loss"])
    assert [line["tenfold_train_loss"] for line in lines(tmp_path / "t.jsonl")] == [None] * 4


@pytest.mark.parametrize("torn", [b"", b'{"event": "st', b'{"event": "step"}\n{"ev'])
def test_a_killed_run_goes_on_in_the_same_file(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"event": "start"}\n' + torn)
    with Telemetry(run="r1", log=path, first_step=7, gpu=None) as telemetry:
        telemetry.step(images=1, seconds=0.1)
    assert [line["event"] for line in lines(path) if line["event"] != "step"] == ["start", "start", "end"]
    assert lines(path)[-1]["step"] == 8
    assert lines(path)[-1]["tenfold_train_step"] == 8
    assert lines(path)[-1]["tenfold_train_steps_total"] == 1


def test_lines_from_many_threads_stay_whole(tmp_path: Path) -> None:
    with Telemetry(run="r1", log=tmp_path / "t.jsonl", gpu=None) as telemetry:
        threads = [
            threading.Thread(target=lambda k=k: [telemetry.bad_row(k * 100 + i, "empty") for i in range(50)])
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert telemetry.snapshot()["tenfold_train_bad_rows_total"] == 200
    rows = {line["row"] for line in lines(tmp_path / "t.jsonl") if line["event"] == "bad_row"}
    assert len(rows) == 200


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with Telemetry(run="r1", log=tmp_path / "file" / "t.jsonl", gpu=None) as telemetry:
        telemetry.step(images=1, seconds=0.1)
        with pytest.raises(StorageError):
            telemetry.upload(str(tmp_path / "copy"))
    assert "telemetry is not written" in caplog.text


# ---------------------------------------------------------------------------------------------------------------------
# On S3


def test_lines_go_to_s3_at_checkpoints_and_go_on(minio: MinioServer) -> None:
    uri = minio.uri("telemetry.jsonl")
    with Telemetry(run="r1", log=uri, every=1, gpu=None) as telemetry:
        telemetry.step(images=1, seconds=0.1)
        assert not storage.exists(uri)
        telemetry.checkpoint_saved(1)
        telemetry._log._uploading.join()
        assert [line["event"] for line in parse(storage.read_bytes(uri))] == ["start", "step", "checkpoint"]
        telemetry.upload(minio.uri("copy"))
        assert storage.read_bytes(minio.uri("copy")) == storage.read_bytes(uri)
    with Telemetry(run="r1", log=uri, first_step=1, every=1, gpu=None) as telemetry:
        telemetry.step(images=1, seconds=0.1)
    events = [line["event"] for line in parse(storage.read_bytes(uri))]
    assert events == ["start", "step", "checkpoint", "end", "start", "step", "end"]


def test_training_goes_on_without_storage(
    minio: MinioServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TENFOLD_STORAGE_PATIENCE", "0.1")
    uri = minio.uri("telemetry.jsonl")
    with Telemetry(run="r1", log=uri, gpu=None) as telemetry:
        minio.stop()
        telemetry.checkpoint_saved(1)
        telemetry._log._uploading.join()
        assert "telemetry is not written" in caplog.text
        minio.start()
    assert [line["event"] for line in parse(storage.read_bytes(uri))] == ["start", "checkpoint", "end"]


# ---------------------------------------------------------------------------------------------------------------------
# The progress line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_says_what_matters() -> None:
    line = ProgressLine(io.StringIO(), total=40_000, world=8)
    line.step(1200, images=256, seconds=0.5, wait=0.01, loss=0.02314, rate=0.008)
    assert line.text() == (
        "step 1,200/40,000 (3%)  loss 0.02314  4,096 images/s  data wait 2%  lr 0.008  ETA 5 h 23 min"
    )
    line.step(40_000, images=256, seconds=0.5, wait=0.01)
    assert "ETA" not in line.text()


def test_a_terminal_has_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.progress.ON_TERMINAL", 0.0)
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    line = ProgressLine(stream, total=3)
    for i in range(3):
        line.step(i + 1, images=1, seconds=0.1, wait=0.0, loss=1.0, rate=0.1)
    line.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert all(len(part.removeprefix("\x1b[2K").rstrip("\n")) < 40 for part in text.split("\r"))


def test_elsewhere_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tenfold.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    line = ProgressLine(stream, total=100)
    for i in range(100):
        now[0] += 0.125
        line.step(i + 1, images=1, seconds=0.125, wait=0.0)
    line.close()
    written = stream.getvalue().splitlines()
    assert [text.split(" (")[0] for text in written] == ["step 8/100", "step 48/100", "step 88/100", "step 100/100"]
    assert "\r" not in stream.getvalue()


def test_a_stream_that_is_gone_does_not_matter() -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    stream.close()
    line.step(1, images=1, seconds=0.1, wait=0.0)
    line.close()


@given(st.lists(st.tuples(st.integers(0, 512), st.floats(1e-4, 100), st.floats(0, 1)), min_size=1, max_size=50))
def test_the_window_is_the_recent_steps(steps: list[tuple[int, float, float]]) -> None:
    line = ProgressLine(io.StringIO(), total=100)
    for i, (images, seconds, share) in enumerate(steps):
        line.step(i, images, seconds, share * seconds)
    kept = len(line._recent)
    images, seconds, waits = (sum(column) for column in zip(*list(line._recent), strict=True))
    assert line._sums == pytest.approx([images, seconds, waits], rel=1e-6, abs=1e-6)
    assert kept == 1 or seconds <= 30 + 1e-6
    assert 0 <= float(re.search(r"data wait (\d+)%", line.text())[1]) <= 100  # type: ignore[index]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (725, "12 min 05 s"), (3600, "1 h 00 min"), (2e5, "2 d 07 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rank_0_alone_shows_progress(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    for rank in (0, 1):
        with Telemetry(run="r1", rank=rank, total_steps=1, gpu=None, stream=sys.stderr) as telemetry:
            telemetry.step(images=1, seconds=0.1)
        telemetry.close()
        assert ("step 1/1" in capsys.readouterr().err) == (rank == 0)
