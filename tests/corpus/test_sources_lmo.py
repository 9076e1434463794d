"""The real LineMOD-Occluded: counts, and that no arrangement of the objects is in two splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tenfold.corpus import sources
from tenfold.corpus.sources import lmo

BOARD = 12  # the holepuncher has a pose in every frame; the others are placed relative to it


def arrangements(folder: Path) -> dict[int, dict[int, np.ndarray]]:
    """By frame: where each object lies as seen from the holepuncher, mm."""
    truth = json.loads((folder / lmo.SCENE / "scene_gt.json").read_bytes())
    found = {}
    for frame, objects in truth.items():
        poses = {}
        for thing in objects:
            pose = np.eye(4)
            pose[:3, :3] = np.reshape(thing["cam_R_m2c"], (3, 3))
            pose[:3, 3] = thing["cam_t_m2c"]
            poses[thing["obj_id"]] = pose
        inverse = np.linalg.inv(poses[BOARD])
        found[int(frame)] = {i: (inverse @ pose)[:3, 3] for i, pose in poses.items() if i != BOARD}
    return found


def difference(a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> float:
    """Median over the common objects of how far apart they lie, mm."""
    return float(np.median([np.linalg.norm(a[i] - b[i]) for i in a.keys() & b.keys()]))


@pytest.mark.slow
def test_the_real_one(tmp_path: Path) -> None:
    result = sources.fetch("lmo", tmp_path)
    assert result.splits == {"train": 112, "val": 25, "test": 63}
    assert result.digest == "sha256:94fb7a85e28cbe5259709f7dc3fcf0bc42b8b86c6a67182b09233a4601c33df4"
    source = sources.open_source(tmp_path / "lmo")
    assert source.manifest.facts["instances"] == 1517
    assert sum(len(r.labels) for split in source.splits for r in source.records(split)) == 1517
    found = arrangements(tmp_path / "lmo")
    frames = {split: [f for f in found if lmo.split_of(f) == split] for split in source.splits}
    nearest = {
        (a, b): min(difference(found[x], found[y]) for x in frames[a] for y in frames[b])
        for a, b in (("train", "test"), ("train", "val"), ("test", "val"))
    }
    assert nearest["train", "test"] > 180
    assert min(nearest.values()) > 25
    mixed = np.random.default_rng(0).permutation(sorted(found))
    random_split = [min(difference(found[x], found[y]) for y in mixed[60:]) for x in mixed[:60]]
    assert np.median(random_split) < 10
