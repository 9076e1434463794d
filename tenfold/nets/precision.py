"""Which number format a network computes in: bf16 only where the hardware multiplies it, fp32 elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from tenfold.errors import InputError

Precision = Literal["auto", "fp32", "bf16"]


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware: CUDA of compute capability 8 or more, CPU with AVX512-BF16 or AMX.

    A CPU without either runs bf16 through conversions, several times slower than fp32: the trap that "auto" avoids.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What `precision` means on `device`; raises InputError where bf16 is asked for and the device has none."""
    if precision == "fp32":
        return "fp32"
    if has_bf16(device):
        return "bf16"
    if precision == "bf16":
        raise InputError(
            f"precision: bf16 is not supported by this {device.type} (it needs CUDA 8.0+, AVX512-BF16 or AMX)",
            'set precision to "auto" or "fp32"',
        )
    return "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context in which the trunk computes: bf16 autocast, or nothing for fp32. Weights stay fp32 either way."""
    if resolve(precision, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
