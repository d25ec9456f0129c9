"""Telemetry with a recorded NVML: the values of an epoch and of a run, and that its errors never stop training."""

import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, write_tiny

from fastcifar import trainer
from fastcifar.cli import train as cli
from fastcifar.errors import InterruptedRunError
from fastcifar.run import telemetry
from fastcifar.run.folder import RunFolder
from fastcifar.run.telemetry import Telemetry
from fastcifar.ui.display import Display

CUDA = torch.device("cuda", 0)
UUID = "1b2c3d4e-0000-1111-2222-333344445555"
MIB = 2**20


class NvmlError(Exception):
    pass


class NotSupported(NvmlError):
    pass


class NotFound(NvmlError):
    pass


class FakeNvml(types.ModuleType):
    """A pynvml with one GPU, whose readings a test sets. With `broken` every reading fails, with `lacks` some do."""

    NVMLError = NvmlError
    NVMLError_NotSupported = NVMLError_FunctionNotFound = NVMLError_NoPermission = NotSupported
    NVMLError_NotFound = NotFound
    NVML_CLOCK_SM = 1

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules, self.milliwatts, self.utilization, self.mhz = 5_000_000, 400_000, 90, 1980
        self.used, self.throttle, self.millijoules_a_reading = 3 * 1024 * MIB, 0, 0
        self.broken, self.lacks, self.open, self.known = "", (), 0, f"GPU-{UUID}"

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.known:
            raise NotFound(uuid)
        return "the handle"

    def _read(self, name: str, handle: str, value: Any) -> Any:
        assert handle == "the handle"
        if self.broken:
            raise NvmlError(self.broken)
        if name in self.lacks:
            raise NotSupported
        return value

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> Any:
        self.millijoules += self.millijoules_a_reading
        return self._read("energy", handle, self.millijoules)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:
        return self._read("power", handle, self.milliwatts)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return self._read("utilization", handle, types.SimpleNamespace(gpu=self.utilization))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return self._read("memory", handle, types.SimpleNamespace(used=self.used))

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> Any:
        assert kind == self.NVML_CLOCK_SM
        return self._read("clock", handle, self.mhz)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> Any:
        return self._read("throttle", handle, self.throttle)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid=UUID))
    monkeypatch.setattr(telemetry, "SECONDS_BETWEEN_SAMPLES", 0.005)
    return fake


@pytest.fixture
def notes() -> list[str]:
    return []


def wait_for_samples(watched: Telemetry, count: int = 2) -> None:
    """Waits until the thread has taken `count` more samples."""
    wanted = len(watched._samples) + count
    for _ in range(1000):
        if len(watched._samples) >= wanted:
            return
        time.sleep(0.005)
    raise AssertionError("the thread takes no samples")


def test_an_epoch_gets_means_and_the_joules_of_training_alone(nvml: FakeNvml, notes: list[str]) -> None:
    with Telemetry(CUDA, notes.append) as watched:
        with watched.training():
            wait_for_samples(watched)
            nvml.millijoules += 2_000
        nvml.millijoules += 50_000_000  # a validation
        first = watched.epoch()
        with watched.training():
            nvml.throttle, nvml.milliwatts, nvml.mhz = 0x4 | 0x40 | 0x1, 700_000, 1200
            wait_for_samples(watched)
            nvml.millijoules += 3_500
        second = watched.epoch()
        with watched.training():
            pass  # shorter than the time between two samples
        third = watched.epoch()
    assert first == {
        "gpu_utilization": 0.9,
        "gpu_memory_gib": 3.0,
        "gpu_power_watts": 400.0,
        "gpu_sm_mhz": 1980.0,
        "gpu_throttle": "none",
        "energy_joules": 2.0,
    }
    assert second["energy_joules"] == 5.5
    assert second["gpu_throttle"] == "power cap, thermal, by hardware"  # an idle moment is no throttling
    assert second["gpu_power_watts"] == pytest.approx(700, rel=0.35)
    assert third == {**dict.fromkeys(first), "energy_joules": 5.5}
    summary = watched.summary()
    assert summary["energy_joules"] == 5.5 and summary["energy_source"] == "counter"
    assert 400 < summary["gpu_power_watts"] < 700 and summary["gpu_throttle"] == second["gpu_throttle"]
    assert notes == [] and nvml.open == 0


def test_nothing_is_sampled_outside_training(nvml: FakeNvml, notes: list[str]) -> None:
    with Telemetry(CUDA, notes.append) as watched:
        with watched.training():
            wait_for_samples(watched)
        watched.epoch()
        time.sleep(0.05)
        assert watched.epoch()["gpu_utilization"] is None
    thread = watched._thread
    assert thread is not None and thread.daemon and not thread.is_alive()


def test_a_resumed_run_continues_its_joules(nvml: FakeNvml, notes: list[str]) -> None:
    with Telemetry(CUDA, notes.append) as watched:
        with watched.training():
            nvml.millijoules += 7_000
        state = watched.state()
    nvml.millijoules = 100  # another boot
    with Telemetry(CUDA, notes.append) as resumed:
        resumed.restore(state)
        with resumed.training():
            nvml.millijoules += 1_000
        assert resumed.epoch()["energy_joules"] == 8.0
    assert resumed.seconds > state["seconds"] > 0
    resumed.restore({})  # of a run that began without telemetry
    assert resumed.joules == 0


def test_without_a_counter_power_is_integrated(nvml: FakeNvml, notes: list[str]) -> None:
    nvml.lacks, nvml.milliwatts = ("energy",), 250_000
    with Telemetry(CUDA, notes.append) as watched:
        for _ in range(2):
            with watched.training():
                time.sleep(0.03)
        assert watched.epoch()["energy_joules"] == pytest.approx(250 * watched.seconds)
    assert watched.seconds >= 0.06
    assert watched.summary()["energy_source"] == "power samples"
    assert notes == ["the energy counter is missing: joules are integrated from samples of the GPU's power"]


def test_the_integral_of_power_is_the_trapezoids() -> None:
    assert telemetry._integral([(0, 100), (1, 200), (3, 200)], 3) == pytest.approx(550)
    assert telemetry._integral([(0, 100), (1, 100)], 4) == pytest.approx(400)
    assert telemetry._integral([(2, 100)], 0.5) == 50


def test_a_window_in_which_the_counter_was_set_back_is_not_counted(
    nvml: FakeNvml, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "SECONDS_BETWEEN_SAMPLES", 60)
    with Telemetry(CUDA, notes.append) as watched:
        with watched.training():
            nvml.millijoules = 12
        assert watched.summary()["energy_joules"] is None
        with watched.training():
            nvml.millijoules += 1_000
    assert watched.summary()["energy_joules"] == 1.0 and watched.seconds < 1


def test_an_error_in_mid_run_ends_the_readings_with_one_note(nvml: FakeNvml, notes: list[str]) -> None:
    with Telemetry(CUDA, notes.append) as watched:
        with watched.training():
            nvml.millijoules += 4_000
        watched.epoch()
        with watched.training():
            wait_for_samples(watched)
            nvml.broken = "GPU is lost"
            time.sleep(0.05)
        with watched.training():
            pass
        assert set(watched.epoch()) == {
            "gpu_utilization", "gpu_memory_gib", "gpu_power_watts", "gpu_sm_mhz", "gpu_throttle", "energy_joules",
        }  # fmt: skip
        with watched.training():
            pass
        assert set(watched.epoch().values()) == {None}
    assert notes == ["GPU telemetry ends here: NvmlError: GPU is lost"]
    assert watched.summary()["energy_joules"] == 4.0  # of the seconds that were measured


def test_what_a_gpu_does_not_tell_is_none(nvml: FakeNvml, notes: list[str]) -> None:
    nvml.lacks = ("energy", "power", "clock", "throttle")
    with Telemetry(CUDA, notes.append) as watched:
        with watched.training():
            wait_for_samples(watched)
        record = watched.epoch()
    assert record["gpu_utilization"] == 0.9 and record["gpu_throttle"] is None and record["energy_joules"] is None
    assert watched.summary()["energy_joules"] is None and notes == []


def test_a_slice_of_a_gpu_is_found(nvml: FakeNvml, notes: list[str]) -> None:
    nvml.known = f"MIG-{UUID}"
    with Telemetry(CUDA, notes.append) as watched:
        assert watched.epoch() and notes == []


def test_no_nvml_is_one_note(nvml: FakeNvml, notes: list[str]) -> None:
    nvml.known = "GPU-another"
    with Telemetry(CUDA, notes.append) as watched:
        with watched.training():
            pass
        assert watched.epoch() == watched.summary() == {}
    assert len(notes) == 1 and notes[0].startswith("no GPU telemetry: NotFound: MIG-1b2c")


def test_a_cpu_has_none_and_needs_no_nvml(monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Telemetry(torch.device("cpu"), notes.append) as watched:
        with watched.training():
            pass
        assert watched.epoch() == watched.summary() == {} and watched._thread is None
    assert notes == []
    with Telemetry(CUDA, notes.append) as watched:
        assert watched.epoch() == {}
    assert notes[0].startswith("no GPU telemetry: ModuleNotFoundError")


def test_a_run_has_it_in_metrics_checkpoint_and_summary(
    nvml: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run computes on the CPU, which is presented as the GPU of the recorded NVML."""
    nvml.millijoules_a_reading = 1_000  # 1 J from one end of training to the other
    monkeypatch.setattr(trainer, "Telemetry", lambda device, note: Telemetry(CUDA, note))
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"))
    images, steps = Display.images, 0

    def stop_in_the_second_epoch(self: Display, count: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        images(self, count)

    monkeypatch.setattr(Display, "images", stop_in_the_second_epoch)
    with pytest.raises(InterruptedRunError):
        trainer.train(config, tmp_path / "run", [])
    trainer.resume(tmp_path / "run", {}, [])
    run = RunFolder.open(tmp_path / "run")
    assert [record["energy_joules"] for record in run.records] == [1.0, 3.0, 4.0]  # the second epoch in two parts
    assert "gpu_throttle,energy_joules" in (run.path / "metrics.csv").read_text()
    summary = run.summary() or {}
    assert summary["energy_joules"] == 4.0
    assert summary["train_seconds"] <= summary["energy_seconds"] < summary["train_seconds"] + 5
    capsys.readouterr()
    cli._print_result(run.path, as_json=False)
    assert "\nenergy          0.0 kJ in training, " in capsys.readouterr().out
    assert cli._energy(dict(energy_joules=12_345.0, train_seconds=60.0, energy_seconds=30.0), "cuda:0") == (
        "12.3 kJ in training, 412 W (measured in 50% of it)"
    )
