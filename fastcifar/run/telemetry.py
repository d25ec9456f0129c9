"""What the GPU does while it trains, read through NVML: utilisation, memory, power, clock, throttling and joules.

A thread asks NVML once a second, and only while the run trains. The energy counter is read where training begins and
where it ends. None of it calls CUDA, so it disturbs neither a step nor the capture of a step in a graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

SECONDS_BETWEEN_SAMPLES = 1.0

# nvml.h, nvmlClocksEventReason*; an idle GPU (bit 1) is not throttled
THROTTLE_REASONS = {
    0x2: "clocks set by a user",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
    0x100: "display clock",
}


@dataclass(frozen=True)
class Sample:
    """One reading of the GPU. None stands for what this GPU does not tell.

    Attributes:
        utilization: 0 to 1.
        memory_gib: in use on the whole device.
        watts: drawn now.
        sm_mhz: the clock of the multiprocessors.
        throttle: bits of `THROTTLE_REASONS`.
    """

    utilization: float | None
    memory_gib: float | None
    watts: float | None
    sm_mhz: float | None
    throttle: int | None


class Telemetry:
    """The GPU's side of a run. It raises nothing into training.

    It is a context: its thread ends with it. On a CPU there is nothing to tell, and `epoch` and `summary` are empty. On
    a GPU without NVML they are empty too, and one note says why. An error of NVML in mid-run is noted once, and what is
    measured after it is None.

    Args:
        device: where the run trains. NVML finds it by its UUID, because NVML numbers GPUs without regard to
            CUDA_VISIBLE_DEVICES.
        note: receives what a user should know but that stops nothing.

    Attributes:
        joules: the energy used in `training()`, where it could be measured.
        seconds: the time in `training()` that `joules` covers. A resumed run goes on with both.
    """

    def __init__(self, device: torch.device, note: Callable[[str], None]) -> None:
        self.joules = self.seconds = 0.0
        self._note = note
        self._gpu: _Gpu | None = None
        self._has_columns = self._was_integrated = False
        self._lock = threading.Lock()
        self._samples: list[Sample] = []  # since the last epoch()
        self._power: list[tuple[float, float]] | None = None  # (seconds, watts) of the training() that is going on
        self._sums: dict[str, tuple[float, int]] = {}  # name -> sum and count over the whole run
        self._throttled = 0
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if device.type == "cuda":
            try:
                self._gpu = _Gpu(device)
                self._gpu.sample()  # what else is wrong shows itself here
                self._has_columns = True
            except Exception as error:
                self._gpu = None
                note(f"no GPU telemetry: {_reason(error)}")

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._gpu is not None:
            with suppress(Exception):
                self._gpu.close()
            self._gpu = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Counts the energy used inside.

        The device must be idle at both ends, or the energy of unfinished work is counted wrongly. `Clocks.training`
        waits for the device, so: `with telemetry.training(), clocks.training():`.
        """
        if self._thread is None and self._gpu is not None:
            self._thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)
            self._thread.start()
        start, counter = time.perf_counter(), self._begin()
        try:
            yield
        finally:
            self._end(start, counter)

    def epoch(self) -> dict[str, float | str | None]:
        """What an epoch's line of the metrics gets: means over the samples in training since the last call.

        Returns:
            gpu_utilization (0 to 1), gpu_memory_gib (the most, of the whole device), gpu_power_watts, gpu_sm_mhz,
            gpu_throttle (reasons in words, or `none`), and energy_joules of the training so far. A value is None where
            nothing was sampled, as in an epoch of less than a second.
        """
        if not self._has_columns:
            return {}
        with self._lock:
            samples, self._samples = self._samples, []
        throttle = [s.throttle for s in samples if s.throttle is not None]
        memory = [s.memory_gib for s in samples if s.memory_gib is not None]
        return {
            "gpu_utilization": _mean([s.utilization for s in samples]),
            "gpu_memory_gib": max(memory) if memory else None,
            "gpu_power_watts": _mean([s.watts for s in samples]),
            "gpu_sm_mhz": _mean([s.sm_mhz for s in samples]),
            "gpu_throttle": _words(throttle) if throttle else None,
            "energy_joules": self.joules if self._gpu is not None and self.seconds else None,
        }

    def summary(self) -> dict[str, float | str | None]:
        """What the run's summary gets.

        Returns:
            energy_joules, the energy_seconds of training that they cover, energy_source (`counter`, or `power samples`
            if any part of them was integrated), and means over the samples of this process.
        """
        if not self._has_columns and not self.seconds:
            return {}
        source = "power samples" if self._was_integrated else "counter"
        means = {name: total / count for name, (total, count) in self._sums.items()}
        return {
            "energy_joules": self.joules if self.seconds else None,
            "energy_seconds": self.seconds,
            "energy_source": source if self.seconds else None,
            "gpu_utilization": means.get("utilization"),
            "gpu_power_watts": means.get("watts"),
            "gpu_sm_mhz": means.get("sm_mhz"),
            "gpu_throttle": _words([self._throttled]) if means else None,
        }

    def state(self) -> dict[str, float | bool]:
        """The energy so far, for a checkpoint."""
        return {"joules": self.joules, "seconds": self.seconds, "integrated": self._was_integrated}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state()` gave; from nothing if the run began without telemetry."""
        self.joules, self.seconds = state.get("joules", 0.0), state.get("seconds", 0.0)
        self._was_integrated = state.get("integrated", False)

    def _begin(self) -> int | None:
        """Opens the window. Returns the energy counter in millijoules; None without one."""
        with self._lock:
            self._power = []
            return self._read_ends()

    def _end(self, start: float, before: int | None) -> None:
        """Closes the window, adds its joules and says what went wrong in it."""
        with self._lock:
            after = self._read_ends()
            seconds = time.perf_counter() - start
            power, self._power = self._power or [], None
            joules: float | None = None
            if before is not None and after is not None and after >= before:
                joules = (after - before) / 1e3
            elif self._gpu is not None and power:  # no counter, or one that was set back
                joules = _integral(power, seconds)
                if not self._was_integrated:
                    self._was_integrated = True
                    self._note("the energy counter is missing: joules are integrated from samples of the GPU's power")
            if joules is not None:
                self.joules += joules
                self.seconds += seconds
        if self._error is not None:
            error, self._error = self._error, None
            self._note(f"GPU telemetry ends here: {_reason(error)}")

    def _read_ends(self) -> int | None:
        """Reads the counter. Without one it adds a sample of the power to the window, which may be under a second.

        It reads nothing else, because training waits for it.
        """
        if self._gpu is None:
            return None
        try:
            if (millijoules := self._gpu.millijoules()) is None and (watts := self._gpu.watts()) is not None:
                assert self._power is not None
                self._power.append((time.perf_counter(), watts))
            return millijoules
        except Exception as error:
            self._fail(error)
            return None

    def _watch(self) -> None:
        """What the thread does: a sample each second of training."""
        while not self._closing.wait(SECONDS_BETWEEN_SAMPLES):
            with self._lock:
                if self._power is None or self._gpu is None:
                    continue
                try:
                    sample = self._gpu.sample()
                except Exception as error:
                    self._fail(error)
                    return
                self._samples.append(sample)
                if sample.watts is not None:
                    self._power.append((time.perf_counter(), sample.watts))
                self._throttled |= sample.throttle or 0
                for name in ("utilization", "watts", "sm_mhz"):
                    if (value := getattr(sample, name)) is not None:
                        total, count = self._sums.get(name, (0.0, 0))
                        self._sums[name] = total + value, count + 1

    def _fail(self, error: Exception) -> None:
        """Ends all readings. The training thread tells of it, in `_end`."""
        self._gpu, self._error = None, error


class _Gpu:
    """NVML's view of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError_NotFound:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")  # a slice of a GPU has a UUID of its own

    def sample(self) -> Sample:
        rates, memory = self._ask("UtilizationRates"), self._ask("MemoryInfo")
        mhz = self._ask("ClockInfo", self._nvml.NVML_CLOCK_SM)
        return Sample(
            utilization=None if rates is None else rates.gpu / 100,
            memory_gib=None if memory is None else memory.used / 2**30,
            watts=self.watts(),
            sm_mhz=None if mhz is None else float(mhz),
            throttle=self._ask("CurrentClocksThrottleReasons"),
        )

    def watts(self) -> float | None:
        milliwatts = self._ask("PowerUsage")
        return None if milliwatts is None else milliwatts / 1e3

    def millijoules(self) -> int | None:
        """The energy used since the driver was loaded; None without a counter."""
        value: int | None = self._ask("TotalEnergyConsumption")
        return value

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Calls nvmlDeviceGet<name>. None is what this GPU or its driver does not tell."""
        nvml = self._nvml
        try:
            return getattr(nvml, f"nvmlDeviceGet{name}")(self._handle, *arguments)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
            return None


def _integral(power: list[tuple[float, float]], seconds: float) -> float:
    """The joules of a window, by the trapezoidal rule over its samples, scaled to the whole window.

    Args:
        power: (seconds, watts) of each sample; one at least.
        seconds: the length of the window.
    """
    (first, watts), (last, _) = power[0], power[-1]
    if last == first:
        return watts * seconds
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(power, power[1:], strict=False))
    return area / (last - first) * seconds


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _words(reasons: list[int]) -> str:
    return ", ".join(word for bit, word in THROTTLE_REASONS.items() if any(bit & r for r in reasons)) or "none"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
