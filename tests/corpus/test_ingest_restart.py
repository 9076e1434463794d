"""An ingest that is killed (SIGKILL) goes on where it was, and ends with the same corpus."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tenfold import storage
from tenfold.corpus.ingest import ingest
from tenfold.corpus.inputs import IngestConfig
from tenfold.corpus.table import Corpus
from tenfold.errors import InputError

if TYPE_CHECKING:
    from tests.conftest import MinioServer

# Runs an ingest of small parts and buckets, and kills itself as a function is called for the nth time.
KILLED = """
import importlib, os, signal, sys
from tenfold.corpus import inputs, ordering
from tenfold.corpus.ingest import ingest

inputs.FIRST, inputs.PART = 10, 40
ordering.LEAST, ordering.MOST = 20000, 40000
ordering.SHORT, ordering.LONG = 10000, 20000  # runs are merged, two levels of them
source, to, where, count, workers = sys.argv[1:]
if where:
    module, _, name = where.rpartition(".")
    module = importlib.import_module(module)
    original, left = getattr(module, name), [int(count)]

    def deadly(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(module, name, deadly)
print(ingest(inputs.IngestConfig(input=source), to, workers=int(workers)).model_dump_json())
"""


def pictures(root: Path, count: int) -> Path:
    for i in range(count):
        grid = np.random.default_rng(i % (count - 3)).integers(0, 256, (8, 8, 3), dtype=np.uint8)  # repeats
        stored = io.BytesIO()
        Image.fromarray(grid).save(stored, "PNG")
        (root / f"c{i % 7}").mkdir(parents=True, exist_ok=True)
        (root / f"c{i % 7}" / f"{i}.png").write_bytes(stored.getvalue() if i % 50 else b"")
    return root


def run(source: str, to: str, where: str = "", count: int = 1, seconds: float | None = None, workers: int = 1) -> bool:
    """Start an ingest; whether it came to its end before it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, source, to, where, str(count), str(workers)], stdout=subprocess.PIPE
    )
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode == 0


def same_corpus(one: str, other: str) -> None:
    one, other = Corpus.open(one), Corpus.open(other)
    assert one.digest == other.digest
    columns = ["id", "rank", "image", "labels", "source"]
    assert one.images.to_table(columns) == other.images.to_table(columns)
    assert len({r["id"] for r in one.images.to_table(["id"]).to_pylist()}) == one.rows == other.rows
    assert sorted(map(str, one.quarantine().to_pylist())) == sorted(map(str, other.quarantine().to_pylist()))


def test_killed_in_every_stage(tmp_path: Path) -> None:
    source, to = str(pictures(tmp_path / "in", 300)), str(tmp_path / "c")
    assert not run(source, to, "tenfold.corpus.ingest.class_list")  # all is read, nothing ordered
    read = storage.list_files(f"{to}/.ingest/done")
    written = {name: os.stat(f"{to}/.ingest/{name}").st_mtime_ns for name in storage.list_files(f"{to}/.ingest")}
    assert len(read) > 5
    (Path(to) / ".ingest" / "done" / read[2]).unlink()  # as if it had been killed as it did this part
    assert not run(source, to, "tenfold.corpus.ordering.merge_runs", count=2)
    again = {
        name
        for name, at in written.items()
        if (Path(to) / ".ingest" / name).exists() and os.stat(f"{to}/.ingest/{name}").st_mtime_ns != at
    }
    name = f"runs/{read[2].removesuffix('.json')}-000"
    assert {f"done/{read[2]}"} <= again <= {f"done/{read[2]}", name, f"{name}.index"}
    assert not run(source, to, "tenfold.corpus.ordering._bucket", count=3)
    assert len(storage.list_files(f"{to}/.ingest/merged")) > 3
    with pytest.raises(InputError, match="holds no finished corpus"):
        Corpus.open(to)
    assert not run(source, to, "tenfold.corpus.ingest._sweep")  # complete, but for the scratch folder
    report = ingest(IngestConfig(input=source), to)
    assert report.existed
    assert (report.rows, report.files, report.repeats, report.quarantined) == (292, 294, 2, {"empty": 6})
    assert not (tmp_path / "c" / ".ingest").exists()
    ingest(IngestConfig(input=source), str(tmp_path / "whole"), workers=1)
    same_corpus(to, str(tmp_path / "whole"))


def test_unfinished_work_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    source, to = pictures(tmp_path / "in", 60), str(tmp_path / "c")
    assert not run(str(source), to, "tenfold.corpus.ingest.class_list")
    with pytest.raises(InputError, match="unfinished ingest of other settings"):
        ingest(IngestConfig(input=str(source), salt="x"), to)
    (source / "c1" / "new.png").write_bytes((source / "c1" / "1.png").read_bytes())
    with pytest.raises(InputError, match="its input has changed"):
        ingest(IngestConfig(input=str(source)), to)
    assert ingest(IngestConfig(input=str(source)), to, workers=1, overwrite=True).repeats == 3


def killed_at_random(source: str, to: str, seed: int) -> int:
    """Kill again and again, later and later, until it comes to its end; returns how often."""
    rng = random.Random(seed)
    kills = 0
    while not run(source, to, seconds=rng.uniform(0.5, 3.0 + kills), workers=2):
        kills += 1
    return kills


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    source = str(pictures(tmp_path / "in", 700))
    ingest(IngestConfig(input=source), str(tmp_path / "whole"))
    kills = 0
    for seed in range(2):
        kills += killed_at_random(source, str(tmp_path / f"c{seed}"), seed)
        same_corpus(str(tmp_path / f"c{seed}"), str(tmp_path / "whole"))
    assert kills > 1


@pytest.mark.slow
def test_killed_at_random_moments_on_minio(tmp_path: Path, minio: MinioServer) -> None:
    source = pictures(tmp_path / "in", 300)
    for name in storage.list_files(str(source)):
        storage.copy(str(source / name), minio.uri("in", name))
    kills = killed_at_random(minio.uri("in"), minio.uri("c"), 0)
    ingest(IngestConfig(input=str(source)), str(tmp_path / "whole"))
    same_corpus(minio.uri("c"), str(tmp_path / "whole"))
    assert kills > 0


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_nothing(tmp_path: Path) -> None:
    source, to = str(pictures(tmp_path / "in", 3000)), str(tmp_path / "c")
    process = subprocess.Popen([sys.executable, "-c", KILLED, source, to, "", "1", "2"], stdout=subprocess.PIPE)
    killed = 0
    while process.poll() is None:
        done = len(storage.list_files(f"{to}/.ingest/done"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = children.read_text().split() if children.exists() else []
        if workers and killed < 5 and done > 4 * killed:
            os.kill(int(workers[killed % len(workers)]), signal.SIGKILL)
            killed += 1
        time.sleep(0.01)
    process.communicate()
    assert (process.returncode, killed > 1) == (0, True)
    ingest(IngestConfig(input=source), str(tmp_path / "whole"))
    same_corpus(to, str(tmp_path / "whole"))
