"""Meters of the machine. This machine has no GPU, so NVML's presence is played by a stand-in for the `pynvml` module.

What the stand-in cannot show is checked against the real package: that every function called does exist there, and that
without a driver there is no meter.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold import meters
from tenfold.meters import GpuMeter, read_process, visible
from tenfold.telemetry import Telemetry


class Gpu:
    """A stand-in for NVML at the border of the module `pynvml`: one GPU that draws 250 W at 100 % use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, lacks: tuple[str, ...] = (), count: int = 1) -> None:
        self.now, self.opened = 100.0, 0
        monkeypatch.setattr(meters.time, "monotonic", lambda: self.now)
        self.module = ModuleType("pynvml")
        values = {
            "Name": "NVIDIA H100 80GB HBM3",
            "UUID": b"GPU-1234",
            "UtilizationRates": SimpleNamespace(gpu=75, memory=30),
            "MemoryInfo": SimpleNamespace(used=20 << 30, total=80 << 30),
            "PowerUsage": 250_000,
        }

        class NVMLError(Exception):
            pass

        def get(name: str):
            def read(handle: object) -> object:
                assert handle == "handle"
                if not self.opened or name in lacks:
                    raise NVMLError("Not Supported")
                return int(self.now * 250_000) if name == "TotalEnergyConsumption" else values[name]

            return read

        def handle(where: int | str) -> str:
            if where not in [*range(count), "GPU-1234"]:
                raise NVMLError("Invalid Argument")
            return "handle"

        for name in (*values, "TotalEnergyConsumption"):
            setattr(self.module, f"nvmlDeviceGet{name}", get(name))
        self.module.NVMLError = NVMLError  # type: ignore[attr-defined]
        self.module.nvmlDeviceGetHandleByIndex = self.module.nvmlDeviceGetHandleByUUID = handle  # type: ignore[attr-defined]
        self.module.nvmlInit = lambda: setattr(self, "opened", self.opened + 1)  # type: ignore[attr-defined]
        self.module.nvmlShutdown = lambda: setattr(self, "opened", self.opened - 1)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pynvml", self.module)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_without_a_driver_there_is_no_meter() -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a GPU")
    assert GpuMeter.open(0) is None
    with Telemetry(run="r", gpu="auto") as telemetry:
        assert telemetry.gpu is None
        assert not any("gpu" in name for name in telemetry.snapshot())


def test_the_real_package_has_what_is_called() -> None:
    called = set(re.findall(r"nvml\.(nvml\w+|NVML\w+)", Path(meters.__file__).read_text()))
    assert len(called) >= 10
    assert [name for name in called if not hasattr(pynvml, name)] == []


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    meter = GpuMeter.open(0)
    assert meter is not None
    assert (meter.name, meter.uuid) == ("NVIDIA H100 80GB HBM3", "GPU-1234")
    gpu.now += 10
    reading = meter.read()
    assert (reading.utilisation, reading.power_watts, reading.energy_joules) == (0.75, 250.0, 2500.0)
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (20 << 30, 80 << 30)
    meter.close()
    assert gpu.opened == 0
    assert set(vars(meter.read()).values()) == {None}


def test_without_an_energy_counter_power_is_integrated(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, lacks=("TotalEnergyConsumption",))
    meter = GpuMeter.open("1234")
    assert meter is not None
    for _ in range(4):
        gpu.now += 5
        energy = meter.read().energy_joules
    assert energy == 5000.0


def test_what_a_slice_lacks_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, lacks=("UtilizationRates", "PowerUsage", "TotalEnergyConsumption"))
    with Telemetry(run="r", gpu=0) as telemetry:
        found = {name for name in telemetry.snapshot() if "gpu" in name}
    assert found == {"tenfold_train_gpu_memory_used_bytes", "tenfold_train_gpu_memory_total_bytes"}


def test_no_such_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    assert GpuMeter.open(1) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert GpuMeter.open(0) is None
    assert gpu.opened == 0


def test_telemetry_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = Gpu(monkeypatch, count=4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with Telemetry(run="r", rank=3, gpu="auto") as telemetry:
        gpu.now += 2
        seen = telemetry.snapshot()
        families = {family.name: family for family in telemetry.registry.collect()}
    assert seen["tenfold_train_gpu_utilization_ratio"] == 0.75
    assert seen["tenfold_train_gpu_power_watts"] == 250
    assert seen["tenfold_train_gpu_energy_joules_total"] == 500
    labels = families["tenfold_train_gpu_power_watts"].samples[0].labels
    assert (labels["gpu"], labels["model"], labels["rank"]) == ("GPU-1234", "NVIDIA H100 80GB HBM3", "3")
    assert gpu.opened == 0


@pytest.mark.parametrize(
    ("device", "devices", "found"),
    [
        (1, None, 1),
        (1, "2,5", 5),
        (0, "GPU-ab,GPU-cd", "GPU-ab"),
        (1, "MIG-ab, MIG-cd", "MIG-cd"),
        (2, "0,1", None),
        (1, "0,-1,2", None),
        (2, "0,-1,2", None),
        (0, "", None),
        ("ab", None, "GPU-ab"),
        ("MIG-ab", "0", "MIG-ab"),
    ],
)
def test_cuda_visible_devices(device: int | str, devices: str | None, found: int | str | None) -> None:
    assert visible(device, devices) == found


@given(st.integers(0, 9), st.lists(st.integers(0, 15), min_size=1, max_size=8))
def test_visible_counts_as_cuda(device: int, devices: list[int]) -> None:
    expected = devices[device] if device < len(devices) else None
    assert visible(device, ",".join(map(str, devices))) == expected


def test_a_process_and_its_children() -> None:
    before = read_process()
    assert before is not None
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert before.cpu_seconds >= used.ru_utime + used.ru_stime - 0.5
    assert 1 << 20 < before.resident_bytes <= used.ru_maxrss * 1024 * 1.2
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint('burnt', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        alive = read_process()
        child.communicate(b"\n")
    dead = read_process()
    assert alive is not None
    assert dead is not None
    assert alive.cpu_seconds - before.cpu_seconds >= 0.3
    assert dead.cpu_seconds >= alive.cpu_seconds
    assert read_process(1 << 30) is None
