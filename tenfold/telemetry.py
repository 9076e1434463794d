"""What a training rank says about itself: `/metrics` for Prometheus, JSON lines for a file, one line for people.

Metrics and JSON lines are read from one registry, so they agree. Names follow the conventions of Prometheus (units in
the name, `_total` for counters); the keys of a JSON line are the names of the samples. Nothing here can end a training
or hold it up: a busy port, a full disk or a storage that is away is a warning, and uploads go on beside it.

A run that was resumed writes the steps after its checkpoint again; of two lines of a step the later counts.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TextIO
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from tenfold import storage
from tenfold.errors import TenfoldError
from tenfold.manifest import code_version
from tenfold.meters import GpuMeter, read_process
from tenfold.progress import ProgressLine

logger = logging.getLogger(__name__)

# Seconds. From a small trunk on a laptop (milliseconds) to a step that waits for storage to come back.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Telemetry:
    """The telemetry of one training rank.

    Args:
        run: name of the run.
        stage: `pretrain`, `finetune`, …
        rank: of this process among `world`.
        world: number of ranks; the progress line multiplies images/s by it.
        team: whose run it is; a label for the operator's bill.
        total_steps: where training ends; 0 for not known.
        first_step: steps that were done before (a resumed run).
        port: of `/metrics`, 0 for none. Give each rank of a machine its own (base + local rank). A port that is taken
            is a warning.
        log: file of JSON lines (appended to), or an `s3://` address: then the lines are kept in a temporary file and
            uploaded at each checkpoint and at the end. Lines that are there already are kept.
        every: a JSON line each so many steps (and at the last).
        gpu: the device as CUDA counts or its UUID, `auto` for that of `LOCAL_RANK`, None for no GPU metrics.
        progress: whether to write the progress line; by default rank 0 does.
        stream: where to, standard error by default.

    Attributes:
        registry: of these metrics alone, so that several can live in one process.
        port: of `/metrics`, 0 where there is none.
        gpu: the meter, None without a GPU.
        steps: done so far, over all restarts.
    """

    def __init__(
        self,
        *,
        run: str,
        stage: str = "pretrain",
        rank: int = 0,
        world: int = 1,
        team: str = "",
        total_steps: int = 0,
        first_step: int = 0,
        port: int = 0,
        log: str | Path | None = None,
        every: int = 10,
        gpu: int | str | Literal["auto"] | None = "auto",
        progress: bool | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.labels = {"run": run, "stage": stage, "rank": str(rank), "team": team}
        self.steps = first_step
        self.every = max(1, every)
        self._start = self._checkpoint_time = time.time()
        self._lock = threading.RLock()
        self._closed = False

        self._images = self._counter("images", "Images trained on by this rank")
        self._steps = self._counter("steps", "Steps done by this rank since it started")
        self._step = self._gauge("step", "Steps done since the run began, over all its restarts")
        self._total = self._gauge("target_steps", "Steps after which the run ends")
        self._step_seconds = self._histogram("step_seconds", "Wall time of a step, data wait included")
        self._wait_seconds = self._histogram("data_wait_seconds", "Part of a step spent waiting for the loader")
        self._loss = self._gauge("loss", "Loss of the last step")
        self._rate = self._gauge("learning_rate", "Learning rate of the last step")
        self._checkpoints = self._counter("checkpoints", "Checkpoints completed since this rank started")
        self._checkpoint_step = self._gauge("checkpoint_step", "Step of the newest complete checkpoint")
        self._age = self._gauge("checkpoint_age_seconds", "Time since the newest checkpoint, or since the start")
        self._bad = self._counter("bad_rows", "Rows that could not be read and were replaced", "reason")
        self._step.set(first_step)
        self._total.set(total_steps)
        self._loss.set(math.nan)
        self._rate.set(math.nan)
        self._checkpoint_step.set(first_step)
        self._age.set_function(lambda: max(0.0, time.time() - self._checkpoint_time))

        if gpu == "auto":
            gpu = int(os.environ.get("LOCAL_RANK", "0"))
        self.gpu = None if gpu is None else GpuMeter.open(gpu)
        self.registry.register(_Machine(self.labels, self.gpu))
        shown = rank == 0 if progress is None else progress
        self._line = ProgressLine(stream or sys.stderr, total_steps, world) if shown else None
        self.port = self._serve(port)
        self._log = _Log(log) if log else None
        self._write("start", total_steps=total_steps, world=world, code=code_version())

    def step(
        self,
        *,
        images: int,
        seconds: float,
        wait_seconds: float = 0.0,
        loss: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Count one step.

        Args:
            images: images this rank trained on in it.
            seconds: wall time of the whole step, the wait for data included.
            wait_seconds: the part of it spent waiting for the loader.
            loss: None where it was not read back from the device in this step (reading it makes the device wait).
            learning_rate: of this step.
        """
        self.steps += 1
        self._images.inc(images)
        self._steps.inc()
        self._step.set(self.steps)
        self._step_seconds.observe(seconds)
        self._wait_seconds.observe(wait_seconds)
        if loss is not None:
            self._loss.set(loss)
        if learning_rate is not None:
            self._rate.set(learning_rate)
        if self._line:
            self._line.step(self.steps, images, seconds, wait_seconds, loss, learning_rate)
        if self.steps % self.every == 0:
            self._write("step")

    def checkpoint_saved(self, step: int) -> None:
        """A checkpoint of `step` is complete (its manifest is written)."""
        self._checkpoint_time = time.time()
        self._checkpoints.inc()
        self._checkpoint_step.set(step)
        self._write("checkpoint", checkpoint=step)
        if self._log:
            self._log.upload()

    def bad_row(self, row: int, reason: str, detail: str = "") -> None:
        """A row could not be read and was replaced. `reason` is one word, `detail` a sentence."""
        self._bad.labels(**self.labels, reason=reason).inc()
        self._write("bad_row", row=row, reason=reason, detail=detail)

    def snapshot(self) -> dict[str, float]:
        """All samples by name, as `/metrics` gives them now: no buckets, and labels beyond this rank's summed up."""
        values: dict[str, float] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if not sample.name.endswith(("_bucket", "_created", "_info")):
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    def upload(self, uri: str) -> None:
        """Copy the JSON lines so far to `uri`; raises StorageError."""
        if self._log:
            storage.write_bytes(uri, storage.read_bytes(str(self._log.path)))

    def close(self) -> None:
        """Write the last line, upload it where the log is on S3, and let port and GPU go. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._write("end")
        if self._line:
            self._line.close()
        if self._log:
            self._log.close()
        if self._server:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
        if self.gpu:
            self.gpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, port: int) -> int:
        self._server = None
        if port:
            try:
                self._server = start_http_server(port, registry=self.registry)
            except (OSError, OverflowError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                logger.warning("no /metrics: port %d: %s (choose another metrics port)", port, why)
                return 0
            _listening.add(self._server[0])
        return port

    def _write(self, event: str, **more: Any) -> None:
        if not self._log:
            return
        head = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **self.labels}
        values = {name: value if math.isfinite(value) else None for name, value in self.snapshot().items()}
        with self._lock:
            self._log.write({**head, "step": self.steps, **more, **values})

    def _counter(self, name: str, text: str, *labels: str) -> Any:
        return self._own(Counter(f"tenfold_train_{name}", text, [*self.labels, *labels], registry=self.registry))

    def _gauge(self, name: str, text: str) -> Any:
        return self._own(Gauge(f"tenfold_train_{name}", text, [*self.labels], registry=self.registry))

    def _histogram(self, name: str, text: str) -> Any:
        return self._own(
            Histogram(f"tenfold_train_{name}", text, [*self.labels], buckets=BUCKETS, registry=self.registry)
        )

    def _own(self, metric: Any) -> Any:
        """The metric with this rank's labels filled in; where it has more of them, as it is."""
        return metric.labels(**self.labels) if len(metric._labelnames) == len(self.labels) else metric


_listening: weakref.WeakSet[WSGIServer] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked worker must not keep its parent's port: it may outlive it, and then the next run finds it taken."""
    for server in _listening:
        server.socket.close()


os.register_at_fork(after_in_child=_after_fork)


class _Machine(Collector):
    """What is read when somebody asks: CPU, memory, GPU, the code's version."""

    def __init__(self, labels: dict[str, str], gpu: GpuMeter | None) -> None:
        self._labels, self._gpu = labels, gpu

    def collect(self) -> Iterator[Metric]:
        build = InfoMetricFamily("tenfold_build", "The code that runs", labels=[*self._labels])
        build.add_metric([*self._labels.values()], {"version": code_version()})
        yield build
        if process := read_process():
            yield self._family(
                CounterMetricFamily, "process_cpu_seconds", "CPU time of this rank and its workers", process.cpu_seconds
            )
            yield self._family(
                GaugeMetricFamily, "process_resident_memory_bytes", "Resident memory", process.resident_bytes
            )
        if self._gpu:
            now = self._gpu.read()
            extra = {"gpu": self._gpu.uuid, "model": self._gpu.name}
            for kind, name, text, value in (
                (GaugeMetricFamily, "gpu_utilization_ratio", "Share of time in which a kernel ran", now.utilisation),
                (GaugeMetricFamily, "gpu_memory_used_bytes", "Memory in use", now.memory_used_bytes),
                (GaugeMetricFamily, "gpu_memory_total_bytes", "Memory there is", now.memory_total_bytes),
                (GaugeMetricFamily, "gpu_power_watts", "Power drawn", now.power_watts),
                (CounterMetricFamily, "gpu_energy_joules", "Energy used since the rank started", now.energy_joules),
            ):
                if value is not None:
                    yield self._family(kind, name, text, value, extra)

    def _family(self, kind: Any, name: str, text: str, value: float, extra: dict[str, str] | None = None) -> Metric:
        labels = {**self._labels, **(extra or {})}
        family = kind(f"tenfold_train_{name}", text, labels=[*labels])
        family.add_metric([*labels.values()], value)
        return family


class _Log:
    """JSON lines in a file, or in a temporary one that is uploaded to S3."""

    def __init__(self, where: str | Path) -> None:
        self.uri = storage.normalise(where)
        self._folder = tempfile.mkdtemp(prefix="tenfold-") if storage.is_s3(self.uri) else None
        self.path = Path(self._folder, "telemetry.jsonl") if self._folder else Path(self.uri)
        self._failed = False
        self._file: BinaryIO | None = None
        self._uploading: threading.Thread | None = None
        try:
            if self._folder and storage.exists(self.uri):
                self.path.write_bytes(storage.read_bytes(self.uri))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            _drop_torn_line(self.path)
        except (OSError, TenfoldError) as error:
            self._warn(error)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line and flush it: one write, so that a reader never sees half of it."""
        if self._file:
            try:
                self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                self._warn(error)

    def upload(self) -> None:
        """Begin to copy to S3 where that is the destination; nothing where the last copy is still under way."""
        if self._folder and self._file and not (self._uploading and self._uploading.is_alive()):
            self._uploading = threading.Thread(target=self._copy, name="tenfold-telemetry", daemon=True)
            self._uploading.start()

    def _copy(self) -> None:
        try:
            storage.write_bytes(self.uri, self.path.read_bytes())
        except (OSError, TenfoldError) as error:
            self._warn(error)

    def close(self) -> None:
        """Upload what is left, and end."""
        if self._uploading:
            self._uploading.join()
        if self._folder and self._file:
            self._copy()
        if self._file:
            self._file.close()
            self._file = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            logger.warning("telemetry is not written to %s: %s", self.uri, error)
        self._failed = True


def _drop_torn_line(path: Path) -> None:
    """Cut off what follows the last newline: a process that was killed may have left half a line."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
