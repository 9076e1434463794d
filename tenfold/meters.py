"""Meters of the machine: CPU time and memory of a process and its workers, use and energy of one NVIDIA GPU (by NVML).

A meter that the machine lacks reads as None, never as zero: no GPU, no driver, a MIG slice without a power meter.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessReading:
    """CPU and memory of a process.

    Attributes:
        cpu_seconds: user and system time of the process, its living descendants (loader workers), and the dead ones
            that were waited for.
        resident_bytes: resident memory of the process itself. Workers are left out: forked ones share its pages, and
            a sum would count those twice.
    """

    cpu_seconds: float
    resident_bytes: int


def read_process(pid: int | None = None) -> ProcessReading | None:
    """Read /proc for `pid` (this process by default); None where there is no /proc or no such process."""
    root = Path("/proc", str(pid or os.getpid()))
    try:
        own = _stat(root)
        pages = int((root / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return ProcessReading(own + _descendants(root), pages * os.sysconf("SC_PAGE_SIZE"))


def _stat(process: Path) -> float:
    """CPU seconds of a process and of its children that were waited for: fields 14 to 17 of /proc/PID/stat."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()  # the name may hold spaces and brackets
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _descendants(process: Path) -> float:
    total = 0.0
    for children in process.glob("task/*/children"):
        try:
            for child in children.read_text().split():
                total += _stat(Path("/proc", child)) + _descendants(Path("/proc", child))
        except (OSError, ValueError, IndexError):
            continue  # it ended while we looked
    return total


@dataclass(frozen=True)
class GpuReading:
    """One reading of a GPU; None is a meter this GPU lacks.

    Attributes:
        utilisation: share of the last sampling period in which a kernel ran, 0 to 1.
        memory_used_bytes, memory_total_bytes: of the device, whoever uses it.
        power_watts: now.
        energy_joules: since the meter was opened.
    """

    utilisation: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_watts: float | None
    energy_joules: float | None


class GpuMeter:
    """Reads one GPU through NVML.

    Energy comes from the GPU's own counter (Volta and later); where there is none, power is integrated over the times
    of reading, which is right only as far as it is read often.

    Attributes:
        name: product name.
        uuid: `GPU-…` or `MIG-…`.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.name = self._text(nvml.nvmlDeviceGetName)
        self.uuid = self._text(nvml.nvmlDeviceGetUUID)
        self._start = self._try(nvml.nvmlDeviceGetTotalEnergyConsumption)
        self._integral, self._last = 0.0, (time.monotonic(), self._watts())

    @classmethod
    def open(cls, device: int | str) -> GpuMeter | None:
        """The meter of a device, None where there is no such GPU, no driver, or no NVML.

        Args:
            device: position as CUDA counts (after `CUDA_VISIBLE_DEVICES`), or a UUID. The UUID is surer: CUDA may order
                unlike GPUs by speed, NVML always by PCI address.
        """
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
        except Exception:  # no package, no driver, a driver that does not answer: all mean no meter
            return None
        try:
            where = visible(device, os.environ.get("CUDA_VISIBLE_DEVICES"))
            if where is None:
                raise LookupError(device)
            by = nvml.nvmlDeviceGetHandleByIndex if isinstance(where, int) else nvml.nvmlDeviceGetHandleByUUID
            return cls(nvml, by(where))
        except (nvml.NVMLError, LookupError):
            nvml.nvmlShutdown()
            return None

    def read(self) -> GpuReading:
        """One reading, under a millisecond."""
        nvml = self._nvml
        use, memory = self._try(nvml.nvmlDeviceGetUtilizationRates), self._try(nvml.nvmlDeviceGetMemoryInfo)
        now, watts = time.monotonic(), self._watts()
        energy: float | None = None
        if self._start is not None:
            total = self._try(nvml.nvmlDeviceGetTotalEnergyConsumption)
            energy = None if total is None else (total - self._start) / 1000  # millijoules
        elif watts is not None:
            before, watts_before = self._last
            self._integral += (now - before) * (watts + (watts if watts_before is None else watts_before)) / 2
            energy = self._integral
        self._last = (now, watts)
        return GpuReading(
            utilisation=None if use is None else use.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_watts=watts,
            energy_joules=energy,
        )

    def close(self) -> None:
        """Let NVML go. Reading afterwards gives None everywhere."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _watts(self) -> float | None:
        milliwatts = self._try(self._nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else milliwatts / 1000

    def _text(self, read: Callable[[Any], Any]) -> str:
        value = self._try(read)
        return value.decode() if isinstance(value, bytes) else str(value or "")  # older bindings give bytes

    def _try(self, read: Callable[[Any], Any]) -> Any:
        try:
            return read(self._handle)
        except self._nvml.NVMLError:  # not supported here, or the GPU fell off the bus
            return None


def visible(device: int | str, devices: str | None) -> int | str | None:
    """What NVML should look up for `device`, given `CUDA_VISIBLE_DEVICES`: an index, a UUID, or None for none.

    CUDA counts only the devices listed there, and stops at the first entry that is no device.
    """
    if isinstance(device, str):
        return device if device.startswith(("GPU-", "MIG-")) else f"GPU-{device}"  # torch leaves the prefix off
    if devices is None:
        return device
    entries = [entry.strip() for entry in devices.split(",")]
    if device >= len(entries) or any(not entry or entry.startswith("-") for entry in entries[: device + 1]):
        return None
    entry = entries[device]
    return int(entry) if entry.isdigit() else entry
