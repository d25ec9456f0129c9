"""The two clocks of a run: training alone, and the whole process from its start."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_IMPORTED = time.monotonic()


class TrainingClock:
    """Seconds spent in training steps; stands still outside `running()`, where the device has been waited for."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device, self.seconds = device, seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds += time.perf_counter() - start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def process_seconds() -> float:
    """Seconds since this process was started, interpreter and imports included (Linux; elsewhere since the import)."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
