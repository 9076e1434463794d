"""Writing a data set: errors on the way, killed runs, memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tenfold.errors import InputError, TenfoldError
from tenfold.transfer.data.coco import CocoReader
from tenfold.transfer.data.faults import Faults
from tenfold.transfer.data.imagenet import FolderReader
from tenfold.transfer.data.reader import Item
from tenfold.transfer.data.table import Annotations, Dataset
from tenfold.transfer.data.write import write_dataset


def folder_of(root: Path, n: int) -> Path:
    for i in range(n):
        path = root / "train" / f"class{i % 3}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(path)
    return root


class Broken(FolderReader):
    def annotations(self, split: str, item: Item, size: tuple[int, int], faults: Faults) -> Annotations:
        if item.image_id == 100:
            raise TenfoldError("the hundredth", "nothing helps")
        return super().annotations(split, item, size, faults)


def test_an_error_on_the_way_comes_through_as_it_was(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", 150)
    with pytest.raises(TenfoldError, match="the hundredth"):
        write_dataset(str(tmp_path / "set"), Broken(folder))
    with pytest.raises(InputError, match="no finished data set"):
        Dataset.open(str(tmp_path / "set"))
    assert write_dataset(str(tmp_path / "set"), FolderReader(folder)).splits == {"train": 150}


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", 1500)
    whole = write_dataset(str(tmp_path / "whole"), FolderReader(folder))
    where = str(tmp_path / "set")
    start = "from tenfold.cli import main; main()"
    command = [sys.executable, "-c", start, "dataset", "convert", "--folder", str(folder), "--to", where]
    rng = np.random.default_rng(0)
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(0.5, 4)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (tmp_path / "set" / "manifest.json").exists():
            break
    done = write_dataset(where, FolderReader(folder), overwrite=True)
    assert done.digest == whole.digest
    assert done.table("train").to_table() == whole.table("train").to_table()


def test_index_of_many_annotations_is_small(tmp_path: Path) -> None:
    """30,000 annotations with polygons, 15 MB of JSON; the index takes four numbers of each."""
    polygon = [float(i) + 0.25 for i in range(60)]
    with (tmp_path / "big.json").open("w") as file:
        file.write(
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "a"}], "annotations": ['
        )
        for i in range(30_000):
            note: dict[str, Any] = {"id": i, "image_id": 1 + i % 7, "category_id": 1, "segmentation": [polygon]}
            file.write(("," if i else "") + json.dumps(note))
        file.write("]}")
    code = (
        "import resource, sys; from pathlib import Path; from tenfold.transfer.data.coco import _read;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "index = _read(Path(sys.argv[1]), Path('.'));"
        "print(len(index.of(1)), len(index.faults), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.json")], capture_output=True, text=True, check=True
    )
    of_first, faults, kilobytes = map(int, done.stdout.split())
    assert of_first == len(range(0, 30_000, 7))
    assert faults == 30_000 - of_first  # annotations of images 2 to 7, which are not listed
    assert kilobytes < 40_000, kilobytes


def test_the_reader_is_given_back_its_scratch_file(tmp_path: Path) -> None:
    document = {"images": [{"id": 1, "file_name": "x"}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(document))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        CocoReader("mine", {"train": (tmp_path / "a.json", tmp_path)})
    assert len(os.listdir("/proc/self/fd")) <= before + 1
