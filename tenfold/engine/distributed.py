"""The ranks of a training: who they are, what they compute on, and how they agree.

A rank learns its place from the variables that torchrun sets. Without them there is one rank and no process group, so
everything above also runs in a plain Python process.

Bitwise equal runs on CPU need three things that are set here: torch's deterministic kernels, a fixed number of threads
(sums are split by it), and gloo, whose ring adds in the same order every time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist

from tenfold.errors import InputError

Device = Literal["auto", "cpu", "cuda"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The ranks, seen from one of them.

    Attributes:
        rank: of this process, 0 to size - 1.
        size: number of ranks.
        local_rank: of this process on its machine.
        device: what this rank computes on.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        """Whether this is the rank that speaks for all."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """The sum over ranks of each value, in float64, the same on all ranks. About 0.1 ms on one machine."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return cast(list[float], tensor.tolist())

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on all ranks; for small things that happen seldom (it pickles)."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def join(device: Device = "auto", threads: int = 0, timeout_s: float = 1800.0) -> World:
    """Join the process group that torchrun describes (or be the only rank), and fix what results depend on.

    Args:
        device: `auto` takes a GPU for each rank of this machine where there are as many, else the CPU.
        threads: of this rank's CPU kernels; 0 leaves what OMP_NUM_THREADS says.
        timeout_s: how long a rank waits for the others before it gives up.

    Raises InputError where GPUs are asked for and there are fewer than ranks.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus < local_size:
        raise InputError(
            f"device: {local_size} ranks on this machine need as many GPUs, there are {gpus}",
            "start fewer ranks, or use the CPU (--device cpu)",
        )
    on_gpu = device == "cuda" or (device == "auto" and gpus >= local_size)
    if threads:
        torch.set_num_threads(threads)
    if on_gpu:
        torch.cuda.set_device(local_rank)
        torch.backends.cudnn.benchmark = True
    else:
        torch.use_deterministic_algorithms(True)
        # Otherwise every torch.empty is filled with NaN, which costs as much as writing the result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if "RANK" in os.environ and not dist.is_initialized():
        # CPU tensors go through gloo also where training uses nccl: agreement must not wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s))
    return World(rank, size, local_rank, torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"))


def leave() -> None:
    """Leave the process group, where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error of a collective means that another rank is gone: then that rank's end is what matters."""
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
