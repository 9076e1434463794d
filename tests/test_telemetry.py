"""Telemetry: a real scrape over HTTP, the JSON lines, the progress line, and the GPU meter."""

import io
import json
import math
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tenfold.telemetry import Telemetry


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Samples by name as Prometheus reads them, without buckets; labels summed up."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["run"] == "r1"
            assert sample.labels["rank"] == "0"
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    assert seen["tenfold_train_bad_rows_total"] == 1
    assert 0 <= seen["tenfold_train_checkpoint_age_seconds"] < 60
    assert seen["tenfold_train_process_cpu_seconds_total"] > 0
    written = lines(log)
    assert [line["event"] for line in written] == ["start", "step", "step", "bad_row", "checkpoint", "end"]
    moving = ("age_seconds", "cpu_seconds_total", "memory_bytes")
    for name, value in written[-1].items():
        if name.startswith("tenfold_") and not name.endswith(moving):
            assert seen[name] == value, name
    assert "step 4/4 (100%)" in stream.getvalue()


def test_a_busy_port_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with Telemetry(run="r1", port=free_port(), gpu=None) as first, Telemetry(run="r2", port=first.port) as second:
        assert second.port == 0
        second.step(images=1, seconds=0.1)
    assert f"port {first.port}" in caplog.text


def test_a_loss_that_is_no_number_stays_valid_json(tmp_path: Path) -> None:
    with Telemetry(run="r1", log=tmp_path / "t.jsonl", every=1, gpu=None) as telemetry:
        telemetry.step(images=1, seconds=0.1, loss=math.nan)
    assert lines(tmp_path / "t.jsonl")[1]["tenfold_train_loss"] is None


def test_a_killed_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"event": "start"}\n{"event": "st')
    with Telemetry(run="r1", log=path, first_step=7, gpu=None) as telemetry:
        telemetry.step(images=1, seconds=0.1)
    assert [line["event"] for line in lines(path)] == ["start", "start", "end"]
    assert lines(path)[-1]["step"] == 8
