"""The two clocks of a run, training alone and the whole process; and the processor time that Linux tells."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

_IMPORTED = time.monotonic()
_own_parts: dict[float, float] = {}
"""For each `process_seconds` that `Clocks.state` has given, the part of it that is the time of this very process.

A notebook resumes a run in the process that was stopped: its time must not count twice.
"""


class Clocks:
    """The times of a run, all in seconds. Those of a resumed run go on where its last checkpoint left them.

    Args:
        device: waited for at both ends of `training()`.

    Attributes:
        train_seconds: spent inside `training()`, and nowhere else.
        compile_seconds: spent in the first, warming steps, before training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.train_seconds = self.compile_seconds = self._earlier_seconds = 0.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Counts the time inside as training. The device is idle at both ends."""
        wait(self._device)
        start = time.perf_counter()
        try:
            yield
        finally:
            wait(self._device)
            self.train_seconds += time.perf_counter() - start

    def state(self) -> dict[str, float]:
        """The three times, for a checkpoint and for the summary.

        `process_seconds` are from the start of this process to now, with the time of the run's earlier processes to
        their checkpoints.
        """
        own = process_seconds()
        whole = self._earlier_seconds + own
        _own_parts[whole] = own
        return {
            "train_seconds": self.train_seconds,
            "compile_seconds": self.compile_seconds,
            "process_seconds": whole,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Goes on from what `state()` gave."""
        self.train_seconds, self.compile_seconds = state["train_seconds"], state["compile_seconds"]
        whole = state["process_seconds"]
        self._earlier_seconds = whole - _own_parts.get(whole, 0.0)


def wait(device: torch.device) -> None:
    """Returns when the device has finished all work that was given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def process_seconds() -> float:
    """Seconds since the start of this process, with interpreter and imports.

    Only Linux tells when a process was started: elsewhere it is since the import of this module.
    """
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def times_in(folder: Path) -> dict[int, tuple[int, int]]:
    """For each running process or thread in a folder: its parent process, and its clock ticks in user and system mode.

    Args:
        folder: /proc for processes, /proc/PID/task for the threads of one (Linux).

    Raises:
        OSError: there is no such folder.
    """
    times = {}
    for name in os.listdir(folder):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                words = (folder / name / "stat").read_text().rpartition(")")[2].split()
                times[int(name)] = int(words[1]), int(words[11]) + int(words[12])
    return times
