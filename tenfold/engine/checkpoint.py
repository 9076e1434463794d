"""Checkpoints: torch.distributed.checkpoint, asynchronous, re-sharding, complete only with their manifest.

    RUN/checkpoints/step-000000500/__0_0.distcp   what rank 0 wrote: its head shard, its part of the trunk
                                   .metadata      which file holds which piece of which tensor
                                   manifest.json  written last: without it the rest is nothing

What is in one: the tensors that `Learner.state()` names, and nothing else. There is no loader position and no random
state, because the batch of a step and the seed of a step are pure functions of the step (`engine.streams`,
`engine.loop`). The step itself stands in the manifest's facts. So a checkpoint restores at any world size.

A save copies the state into host memory (the only pause), and a thread writes it while training goes on. One save is
under way at a time: the next one waits for it. Collectives of the thread run in a process group of their own, for two
threads must not share one.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from tenfold import storage
from tenfold.engine.checkpoint_folder import (
    MANIFEST,
    Checkpoint,
    clean,
    folder_of,
    latest,
    list_checkpoints,
    remove,
)
from tenfold.engine.dcp_storage import Reader, State, Writer, local_tensors, mark_like
from tenfold.engine.distributed import is_peer_lost
from tenfold.errors import InputError, StorageError, TenfoldError, TrainingError
from tenfold.manifest import Manifest, digest_json

__all__ = ["Checkpoint", "Checkpointer", "latest", "list_checkpoints", "load", "load_trunk", "load_weights"]

TRUNK = "trunk."  # names of the trunk's weights and statistics begin so, in every learner's state
log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # loading without a process group is meant

# ---------------------------------------------------------------------------------------------------------------------
# Load


def load(checkpoint: Checkpoint, state: State, group: dist.ProcessGroup | None = None) -> None:
    """Copy a checkpoint into the live tensors of `state`, in place and at any world size; all ranks call it together.

    Raises StorageError where a file is missing or damaged, InputError where a tensor is missing or has another shape.
    """
    reader = Reader(checkpoint.uri, checkpoint.manifest.facts["files"])
    tensors = local_tensors(state)
    problem: Exception | None = None
    with _plain_errors(f"cannot load {checkpoint.uri}"):
        try:
            _check_shapes(checkpoint, reader.read_metadata(), tensors)
        except (TenfoldError, OSError) as error:
            problem = error
        _agree(problem, group)  # dcp.load is collective: a rank that cannot even begin must not leave the others in it
        dcp.load(dict(tensors), storage_reader=reader, process_group=group, no_dist=not dist.is_initialized())


def load_weights(uri: str, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a checkpoint whose names begin with `prefix`, whole, on the CPU, without the prefix.

    Needs no process group and no learner: this is how a trunk passes to another task. Raises InputError where no
    name begins so.
    """
    checkpoint = Checkpoint.open(uri)
    reader = Reader(checkpoint.uri, checkpoint.manifest.facts["files"])
    with _plain_errors(f"cannot load {checkpoint.uri}"):
        described = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(known.size, dtype=known.properties.dtype)
            for name, known in described.items()
            if name.startswith(prefix) and isinstance(known, TensorStorageMetadata)
        }
        if not tensors:
            raise InputError(
                f"{checkpoint.uri} holds no tensor named {prefix}…", f"it holds: {', '.join(sorted(described)[:5])}, …"
            )
        dcp.load(cast(Any, tensors), storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def load_trunk(uri: str) -> dict[str, Tensor]:
    """The trunk's state dict from a checkpoint, a run folder or a manifest, for `Trunk.load_state_dict`."""
    return load_weights(uri, TRUNK)


def _check_shapes(checkpoint: Checkpoint, metadata: Metadata, tensors: State) -> None:
    for name, tensor in tensors.items():
        known = metadata.state_dict_metadata.get(name)
        wanted = tuple(getattr(tensor, "global_shape", tensor.shape))
        if not isinstance(known, TensorStorageMetadata) or tuple(known.size) != wanted:
            there = list(known.size) if isinstance(known, TensorStorageMetadata) else "nothing"
            raise InputError(
                f"{checkpoint.uri} has {there} for {name}, this model needs {list(wanted)}",
                "use the recipe that the checkpoint was made with, or load only the trunk with --init",
            )


def _agree(problem: Exception | None, group: dist.ProcessGroup | None) -> None:
    """Raise on all ranks what any of them met."""
    problems = [problem]
    if dist.is_initialized():
        problems = cast(Any, [None] * dist.get_world_size(group))
        dist.all_gather_object(problems, problem, group=group)
    for found in problems:
        if found is not None:
            raise found


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Turn torch's CheckpointException, which hides the cause of each rank in a dictionary, into that cause."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, TenfoldError) or is_peer_lost(cause):
            raise cause from None
        raise StorageError(f"{what}: rank {rank}: {cause!r}", "check the storage, then run again") from cause
    except OSError as error:
        raise StorageError(f"{what}: {error!r}", "check the storage, then run again") from error


# ---------------------------------------------------------------------------------------------------------------------
# Save


@dataclass
class Times:
    """Seconds spent on checkpoints by this rank.

    Attributes:
        saves: number of saves started.
        staging: copying the state to host memory; training stands still.
        waiting: for the save before; training stands still.
        writing: in the thread, beside training.
    """

    saves: int = 0
    staging: float = 0.0
    waiting: float = 0.0
    writing: float = 0.0


class Checkpointer:
    """Writes the checkpoints of one run, and finds the one to go on from. All ranks make one and call it alike.

    Args:
        uri: folder of the run's checkpoints.
        recipe: settings for the manifests.
        inputs: digests of what the run is made from (corpus, initial checkpoint).
        keep_last: finished checkpoints to keep; older ones are removed.
        keep_every: steps whose multiples are kept for good (X-05 compares stages of one run); 0 for none.
        tolerate: saves in a row that may fail before training stops; storage that is away for a while costs nothing
            but those checkpoints.
    """

    def __init__(
        self,
        uri: str,
        *,
        recipe: dict[str, Any],
        inputs: list[str],
        keep_last: int = 3,
        keep_every: int = 0,
        tolerate: int = 2,
    ) -> None:
        self.uri = storage.normalise(uri)
        self.recipe = recipe
        self.inputs = inputs
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.tolerate = tolerate
        self.times = Times()
        self.newest: Checkpoint | None = None
        self._distributed = dist.is_available() and dist.is_initialized()
        self._rank = dist.get_rank() if self._distributed else 0
        self._world = dist.get_world_size() if self._distributed else 1
        group = dist.new_group(backend="gloo") if self._distributed else None
        self._group = cast(dist.ProcessGroup | None, group)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._staged: dict[str, Tensor] = {}
        self._failed = 0

    def resume(self, state: State) -> Checkpoint | None:
        """Load the newest finished checkpoint into `state` and return it; None where there is none.

        Half-written ones are removed. A damaged one is named in the log and passed over: the one before leads to the
        same weights, only later.
        """
        if self._rank == 0:
            for name in clean(self.uri):
                log.warning("removed %s: it was never finished", storage.join(self.uri, name))
        found: list[Any] = [list_checkpoints(self.uri)[::-1] if self._rank == 0 else None]
        if self._distributed:
            dist.broadcast_object_list(found, src=0, group=self._group)
        checkpoints = cast(list[Checkpoint], found[0])
        for i, checkpoint in enumerate(checkpoints):
            try:
                load(checkpoint, state, self._group)
            except StorageError as error:
                if i + 1 == len(checkpoints):
                    raise
                log.warning("%s; going on from step %d instead", error.message, checkpoints[i + 1].step)
            else:
                self.newest = checkpoint
                return checkpoint
        return None

    def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
        """Begin to save; returns when the state is copied, while the thread writes on.

        Raises StorageError when the saves before failed more often in a row than `tolerate` allows.
        """
        self._collect(self.tolerate)
        start = time.perf_counter()
        staged = self._stage(state)
        self.times.staging += time.perf_counter() - start
        self.times.saves += 1
        self._pending = self._thread.submit(self._write, step, staged, {"step": step, **facts})

    def wait(self) -> None:
        """Wait until the last save is finished; raises StorageError where it failed."""
        self._collect(0)

    def close(self) -> None:
        """End the thread; a save under way is finished first."""
        self._thread.shutdown(wait=True)

    def _collect(self, tolerate: int) -> None:
        """Wait for the save under way. All ranks learn of a failure alike, so all count alike."""
        if self._pending is None:
            return
        start = time.perf_counter()
        pending, self._pending = self._pending, None
        try:
            pending.result()
            self._failed = 0
        except StorageError as error:
            self._failed += 1
            if self._failed > tolerate:
                raise
            log.warning("checkpoint not written (%d in a row): %s", self._failed, error.message)
        finally:
            self.times.waiting += time.perf_counter() - start

    def _stage(self, state: State) -> dict[str, Tensor]:
        """Copy into host memory that is allocated once, page-locked where the state lies on a GPU."""
        tensors = local_tensors(state)
        for name, tensor in tensors.items():
            host = self._staged.get(name)
            if host is None or host.shape != tensor.shape or host.dtype != tensor.dtype:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._staged[name] = mark_like(host, tensor)
            host.copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {name: self._staged[name] for name in tensors}

    def _write(self, step: int, staged: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """In the thread: files of all ranks, then the manifest, then the removal of old checkpoints."""
        start = time.perf_counter()
        uri = storage.join(self.uri, folder_of(step))
        _agree(self._not_finite(step, staged), self._group)
        writer = Writer(uri)
        with _plain_errors(f"cannot write {uri}"):
            dcp.save(cast(Any, staged), storage_writer=writer, process_group=self._group, no_dist=not self._distributed)
        files: list[Any] = [writer.files.written]
        if self._distributed:
            gathered: list[Any] | None = [None] * self._world if self._rank == 0 else None
            dist.gather_object(files[0], gathered, dst=0, group=self._group)
            files = gathered or []
        outcome: list[Any] = [None, None]
        if self._rank == 0:
            try:
                outcome[0] = self._finish(uri, {k: v for part in files for k, v in sorted(part.items())}, facts)
            except Exception as error:  # whatever it is, the other ranks wait to hear of it
                outcome[1] = str(error)
        if self._distributed:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1]:
            raise StorageError(f"cannot finish {uri}: {outcome[1]}", "check the storage, then run again")
        self.newest = outcome[0]
        self.times.writing += time.perf_counter() - start

    def _not_finite(self, step: int, staged: dict[str, Tensor]) -> TrainingError | None:
        """The error to raise where weights or optimizer state are not numbers: such a checkpoint is not kept."""
        for name, tensor in staged.items():
            # The sum is finite only where all values are (and otherwise looks again, for it may have overflowed).
            if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
                good = (
                    f"the checkpoint of step {self.newest.step} is good" if self.newest else "there is none before it"
                )
                return TrainingError(
                    f"after step {step}, {name} holds values that are not finite; {good}",
                    "start a new run from it (--init) with a lower learning rate",
                )
        return None

    def _finish(self, uri: str, files: dict[str, str], facts: dict[str, Any]) -> Checkpoint:
        manifest = Manifest(
            kind="checkpoint",
            uri=uri,
            digest=digest_json(files),
            inputs=self.inputs,
            recipe=self.recipe,
            facts={**facts, "world": self._world, "files": files},
        )
        manifest.write(storage.join(uri, MANIFEST))
        kept = [c for c in list_checkpoints(self.uri) if not (self.keep_every and c.step % self.keep_every == 0)]
        for old in kept[: -self.keep_last]:
            remove(old)
        return Checkpoint(uri, manifest)
