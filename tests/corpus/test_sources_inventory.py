"""A damaged copy of a source is told from a whole one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.corpus.sources import inventory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train/a.bin", "train/b.bin", "test/a.bin", "classes.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "source.json").write_text("written later")
    return tmp_path


def test_small_sources_are_hashed(folder: Path) -> None:
    held = inventory.take(folder)
    assert held["count"] == len(held["files"]) == 4
    assert inventory.damages(folder, held) == []
    (folder / "train/a.bin").write_text("train/A.bin")
    (folder / "train/b.bin").write_text("short")
    (folder / "test/a.bin").unlink()
    found = inventory.damages(folder, held)
    assert found[0] == "test/a.bin is missing"
    assert found[1].startswith("train/a.bin is damaged: expected sha256 ")
    assert found[2] == "train/b.bin has 5 bytes, expected 11"


def test_large_sources_are_counted_and_on_demand_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "HASHED_FILES", 1)
    held = inventory.take(folder, ("train", "test"))
    assert held["folders"] == {"test": 1, "train": 2}
    assert inventory.damages(folder, held, thorough=True) == []
    (folder / "train/a.bin").write_text("another size")
    assert inventory.damages(folder, held) == []
    assert "have changed" in inventory.damages(folder, held, thorough=True)[0]
    (folder / "train/a.bin").unlink()
    assert inventory.damages(folder, held) == ["train has 1 files, expected 2"]
    (folder / "elsewhere").mkdir()  # what else lies there is not the source's business
    (folder / "elsewhere/x").write_text("x")
    (folder / "train/a.bin").write_text("train/a.bin")
    assert inventory.damages(folder, held, thorough=True) == []
