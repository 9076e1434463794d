"""Checkpoints: whole or not there, verified, re-sharding, asynchronous, on files and on MinIO."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_processes import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from tenfold import storage
from tenfold.engine import checkpoint as checkpoints
from tenfold.engine.checkpoint import Checkpoint, Checkpointer, latest, list_checkpoints, load_trunk, load_weights
from tenfold.engine.dcp_storage import shard
from tenfold.engine.distributed import join, leave
from tenfold.errors import InputError, StorageError, TrainingError
from tenfold.manifest import Manifest

CLASSES = 7  # over 2 and 3 ranks in uneven shards


def whole(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "trunk.conv.weight": torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "trunk.bn.num_batches_tracked": torch.tensor(seed),
        "head.weight": torch.randn(CLASSES, 5, generator=generator),
        "head.bias": torch.randn(CLASSES, generator=generator),
        "optimizer.head.weight.momentum": torch.randn(CLASSES, 5, generator=generator),
    }


def share(state: dict[str, torch.Tensor], rank: int, world: int) -> dict[str, torch.Tensor]:
    """What a rank holds: everything but its rows of the head."""
    size, larger = divmod(CLASSES, world)
    lo = rank * size + min(rank, larger)
    hi = lo + size + (rank < larger)
    return {
        name: shard(tensor[lo:hi].clone(), lo, CLASSES) if "head" in name else tensor.clone()
        for name, tensor in state.items()
    }


def checkpointer(uri: str | Path, **more: object) -> Checkpointer:
    return Checkpointer(str(uri), recipe={"name": "test"}, inputs=["sha256:" + "0" * 64], **more)  # type: ignore[arg-type]


def write(uri: str | Path, *steps: int, **more: object) -> None:
    writer = checkpointer(uri, **more)
    for step in steps:
        writer.save(step, whole(step), {"loss": 0.5, "images": step * 32})
    writer.wait()
    writer.close()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    state = whole(1)
    writer = checkpointer(tmp_path)
    writer.save(100, state, {"loss": 0.25, "images": 3200})
    for tensor in state.values():
        tensor.zero_()  # training goes on while the thread writes: it must have a copy
    writer.wait()

    into = whole(2)
    found = checkpointer(tmp_path).resume(into)
    assert found is not None
    assert found.step == 100
    assert same(into, whole(1))
    manifest = Manifest.read(storage.join(found.uri, "manifest.json"))
    assert manifest.kind == "checkpoint"
    assert manifest.inputs == ["sha256:" + "0" * 64]
    assert manifest.recipe == {"name": "test"}
    assert manifest.facts["loss"] == 0.25
    assert manifest.facts["world"] == 1
    assert set(manifest.facts["files"]) == {".metadata", "__0_0.distcp"}


def test_the_same_state_gives_the_same_digest(tmp_path: Path) -> None:
    write(tmp_path / "a", 5)
    write(tmp_path / "b", 5)
    a, b = latest(str(tmp_path / "a")), latest(str(tmp_path / "b"))
    assert a is not None
    assert b is not None
    assert a.digest == b.digest


def _save_at(uri: str, step: int) -> None:
    world = join(threads=1)
    writer = checkpointer(uri)
    writer.save(step, share(whole(step), world.rank, world.size), {"loss": 0.5})
    writer.wait()
    leave()


def _load_at(uri: str, step: int) -> None:
    world = join(threads=1)
    into = share(whole(99), world.rank, world.size)
    found = checkpointer(uri).resume(into)
    assert found is not None
    assert found.step == step
    assert same(into, share(whole(step), world.rank, world.size))
    leave()


def test_uneven_shards_load_at_any_other_world_size(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    run_ranks(3, tmp_path, _save_at, uri, 1)
    run_ranks(2, tmp_path, _load_at, uri, 1)
    run_ranks(2, tmp_path, _save_at, uri, 2)
    run_ranks(3, tmp_path, _load_at, uri, 2)
    alone = whole(99)
    assert checkpointer(uri).resume(alone) is not None
    assert same(alone, whole(2))
    assert same(load_weights(uri), whole(2))
    found = latest(uri)
    assert found is not None
    assert set(found.manifest.facts["files"]) == {".metadata", "__0_0.distcp", "__1_0.distcp"}


def _dtensor_head(uri: str) -> None:
    world = join(threads=1)
    mesh = init_device_mesh("cpu", (world.size,))
    weight = whole(3)["head.weight"]

    def head(full: torch.Tensor) -> DTensor:
        piece = full.tensor_split([4], dim=0)[world.rank].clone()  # DTensor cuts 7 rows as 4 and 3
        return DTensor.from_local(piece, mesh, [Shard(0)], shape=full.shape, stride=full.stride())

    writer = checkpointer(uri)
    writer.save(1, {"head.weight": head(weight)}, {})
    writer.wait()
    into = head(torch.zeros_like(weight))
    assert writer.resume({"head.weight": into}) is not None
    assert torch.equal(into.to_local(), head(weight).to_local())
    leave()


def test_heads_may_be_dtensors(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, _dtensor_head, str(tmp_path / "run"))
    assert torch.equal(load_weights(str(tmp_path / "run"), "head.")["weight"], whole(3)["head.weight"])


def test_the_trunk_loads_alone(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 7)
    trunk = load_trunk(str(tmp_path))  # a run folder will do
    assert {name: list(tensor.shape) for name, tensor in trunk.items()} == {
        "conv.weight": [4, 3, 3, 3],
        "bn.num_batches_tracked": [],
    }
    assert torch.equal(trunk["conv.weight"], whole(7)["trunk.conv.weight"])
    assert not dist.is_initialized()
    with pytest.raises(InputError, match="holds no tensor named detector"):
        load_weights(str(tmp_path), "detector.")


def test_half_written_checkpoints_are_ignored_and_removed(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    for broken in (30, 40):
        shutil.copytree(tmp_path / "step-000000020", tmp_path / f"step-{broken:09d}")
        (tmp_path / f"step-{broken:09d}" / "manifest.json").unlink()
    (tmp_path / "step-000000040" / ".metadata").unlink()
    newest = latest(str(tmp_path))
    assert newest is not None
    assert newest.step == 20
    found = checkpointer(tmp_path).resume(whole(0))
    assert found is not None
    assert found.step == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000010", "step-000000020"]


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 10, 20)
    path = tmp_path / "step-000000020" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=rf"{file} is damaged"):
        checkpoints.load(Checkpoint.open(str(tmp_path / "step-000000020")), whole(0))
    into = whole(0)
    found = checkpointer(tmp_path).resume(into)
    assert found is not None
    assert found.step == 10
    assert same(into, whole(10))
    assert f"{file} is damaged" in caplog.text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (tmp_path / "step-000000010" / "__0_0.distcp").unlink()
    with pytest.raises(StorageError, match=r"__0_0\.distcp"):
        checkpointer(tmp_path).resume(whole(0))


def test_the_newest_are_kept_and_chosen_steps_for_good(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30, 40, 50, keep_last=2, keep_every=20)
    assert [c.step for c in list_checkpoints(str(tmp_path))] == [20, 30, 40, 50]


def test_another_model_is_refused_by_name_and_shape(tmp_path: Path) -> None:
    write(tmp_path, 10)
    other = whole(0) | {"head.bias": torch.zeros(CLASSES + 1)}
    with pytest.raises(InputError, match=r"\[7\] for head.bias, this model needs \[8\]"):
        checkpointer(tmp_path).resume(other)
    with pytest.raises(InputError, match=r"nothing for trunk\.new"):
        checkpointer(tmp_path).resume({**whole(0), "trunk.new": torch.zeros(1)})


def test_weights_that_are_not_numbers_are_not_kept(tmp_path: Path) -> None:
    writer = checkpointer(tmp_path)
    writer.save(1, whole(1), {})
    state = whole(2)
    state["head.weight"][3, 2] = torch.nan
    writer.save(2, state, {})
    with pytest.raises(TrainingError, match=r"after step 2, head.weight holds .* checkpoint of step 1 is good"):
        writer.wait()
    newest = latest(str(tmp_path))
    assert newest is not None
    assert newest.step == 1


def test_large_finite_weights_are_kept(tmp_path: Path) -> None:
    writer = checkpointer(tmp_path)
    writer.save(1, {"trunk.w": torch.full((4,), 3e38)}, {})  # their float32 sum is infinite
    writer.wait()
    assert latest(str(tmp_path)) is not None


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


def test_code_in_metadata_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    folder = tmp_path / "step-000000001"
    (folder / ".metadata").write_bytes(pickle.dumps(_Evil()))
    manifest = Manifest.read(str(folder / "manifest.json"))
    files = {**manifest.facts["files"], ".metadata": storage.digest(str(folder / ".metadata"))}
    manifest.model_copy(update={"facts": {**manifest.facts, "files": files}}).write(str(folder / "manifest.json"))
    with pytest.raises(StorageError, match=r"names builtins\.eval, which no checkpoint needs"):
        load_trunk(str(folder))


def test_failed_saves_are_tolerated_for_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = checkpointer(tmp_path / "run", tolerate=1)
    (tmp_path / "run").write_text("a file where the folder should be")
    writer.save(1, whole(1), {})
    writer.save(2, whole(2), {})  # the first has failed: tolerated
    assert "checkpoint not written (1 in a row)" in caplog.text
    with pytest.raises(StorageError):
        writer.save(3, whole(3), {})
    (tmp_path / "run").unlink()
    writer.save(4, whole(4), {})
    writer.wait()
    newest = latest(str(tmp_path / "run"))
    assert newest is not None
    assert newest.step == 4


def test_nothing_there_is_an_error_with_a_cure(tmp_path: Path) -> None:
    assert latest(str(tmp_path)) is None
    assert checkpointer(tmp_path).resume(whole(0)) is None
    with pytest.raises(InputError, match="holds no finished checkpoint"):
        Checkpoint.open(str(tmp_path))


def test_from_and_to_minio(minio, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    uri = minio.uri("run")
    run_ranks(2, tmp_path, _save_at, uri, 1)
    run_ranks(3, tmp_path, _load_at, uri, 1)
    assert torch.equal(load_trunk(uri)["conv.weight"], whole(1)["trunk.conv.weight"])


def test_minio_gone_and_back(minio, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("TENFOLD_STORAGE_PATIENCE", "0.5")
    uri = minio.uri("run")
    write(uri, 1)
    minio.stop()
    writer = checkpointer(uri, tolerate=1)
    writer.save(2, whole(2), {})
    with pytest.raises(StorageError):
        writer.wait()
    minio.start()
    into = whole(0)
    found = checkpointer(uri).resume(into)
    assert found is not None
    assert found.step == 1
    writer.save(3, whole(3), {})
    writer.wait()
    assert [c.step for c in list_checkpoints(uri)] == [1, 3]
