"""One short measured run, in a process of its own: what one asks of the allocator or the compiler, no other one feels.

`python -m fastcifar.measuring.cell` reads a request from stdin and writes an answer to stdout, a line of JSON each:

    {"settings": {...}, "augmentation": null, "launched": false,
     "num_images": 40000, "num_windows": 3, "window_seconds": 1.0}
    {"measurement": {...}} or {"failure": {"kind": "DeviceMemoryError", "message": "..."}}

The run is a training run's: same engine, loader and steps, on images of random bytes, which cost what any do.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.errors import FastcifarError, NonFiniteError
from fastcifar.loaders import Augmentation
from fastcifar.measuring.process import Death, Process, seconds_of_others, serve
from fastcifar.run.clock import process_seconds, wait
from fastcifar.session import Session
from fastcifar.target import Target

NUM_IMAGES, NUM_CLASSES = 40_000, 100
"""The protocol's: CIFAR-100's training images less those held out for validation."""


@dataclass(frozen=True)
class Cell:
    """What to measure: a run's settings, and what no setting says.

    Attributes:
        augmentation: what makes the resident loader's batches, if not what the engine makes them with.
        launched: the steps are launched op by op where they would be one CUDA graph.
    """

    config: Config
    augmentation: Augmentation | None = None
    launched: bool = False


@dataclass(frozen=True)
class Measurement:
    """What a process found out.

    Attributes:
        images_per_second: of each window, everything between two epochs' first steps included: draws, batches, steps.
        others: the share of the cores that other programs used in each window, 0 to 1; None where it is not known.
        steps_per_window: chosen for the windows to last what was asked.
        warm_up_seconds: of the first batch and step, compilation included; outside the windows.
        start_seconds: from the start of the process to that first batch, imports included.
        host_memory_gib, device_memory_gib: the process's peak, and that of PyTorch's allocator on a GPU.
        loss: mean over all images of the windows; finite.
        notes: what a user should know of how the steps were taken.
    """

    images_per_second: list[float]
    others: list[float] | None
    steps_per_window: int
    warm_up_seconds: float
    start_seconds: float
    host_memory_gib: float
    device_memory_gib: float | None
    loss: float
    notes: list[str]


@dataclass(frozen=True)
class Failure:
    """Why there is no measurement. `kind` is the error's class, or the signal that ended the process."""

    kind: str
    message: str
    traceback: str = ""

    @property
    def cannot_run(self) -> bool:
        """Whether the settings or the machine's packages exclude it, so that nothing went wrong."""
        return self.kind == "UsageError"


def measure(
    cell: Cell,
    *,
    num_windows: int,
    window_seconds: float,
    num_images: int = NUM_IMAGES,
    environment: Mapping[str, str] | None = None,
) -> Measurement | Failure:
    """Measures `cell` in a new process, which an exception here (say Ctrl-C) ends too.

    Arguments:
        num_windows, window_seconds: how many times is measured, and for how long.
        num_images: of the split.
        environment: variables on top of this process's own.
    """
    request = {
        "settings": cell.config.model_dump(mode="json"),
        "augmentation": cell.augmentation,
        "launched": cell.launched,
        "num_images": num_images,
        "num_windows": num_windows,
        "window_seconds": window_seconds,
    }
    with Process([sys.executable, "-m", "fastcifar.measuring.cell"], environment) as process:
        found = process.ask(request, last=True)
    if isinstance(found, Death):
        return Failure(found.kind, found.message)
    return Failure(**found["failure"]) if "failure" in found else Measurement(**found["measurement"])


@dataclass(frozen=True)
class _Window:
    """What was trained in which time; and the seconds of processor time that other programs had in it."""

    num_images: int
    seconds: float
    others: float


def measure_here(cell: Cell, *, num_windows: int, window_seconds: float, num_images: int = NUM_IMAGES) -> Measurement:
    """Measures `cell` in this process; see `measure`. Raises any `FastcifarError`."""
    target, notes = Target.of(cell.config), list[str]()
    device = target.device
    with Session(target, NUM_CLASSES) as session:
        images = random_images(num_images)
        session.feed(images, notes.append, augmentation=cell.augmentation, launched=cell.launched)
        start_seconds = process_seconds()
        warm_up_seconds = session.steps.warm_up()
        training = session.train()

        def window(num_steps: int) -> _Window:
            wait(device)
            others, start = seconds_of_others(), time.perf_counter()
            count = sum(itertools.islice(training, num_steps))
            wait(device)
            return _Window(count, time.perf_counter() - start, seconds_of_others() - others)

        window(2)  # the first steps allocate
        num_steps = max(1, round(window_seconds / (window(2).seconds / 2)))
        window(-(-num_steps // 2))
        session.engine.pop_means(1)
        windows = [window(num_steps) for _ in range(num_windows)]
        loss = session.engine.pop_means(sum(w.num_images for w in windows)).loss
    if not math.isfinite(loss):
        raise NonFiniteError(f"the loss is not finite after {num_windows * num_steps} steps on random images")
    return Measurement(
        images_per_second=[w.num_images / w.seconds for w in windows],
        others=_shares(windows),
        steps_per_window=num_steps,
        warm_up_seconds=warm_up_seconds,
        start_seconds=start_seconds,
        host_memory_gib=_peak_memory_gib(),
        device_memory_gib=torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        loss=loss,
        notes=notes,
    )


def random_images(count: int) -> Split:
    """Images of random bytes with random labels, as many as asked for."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, NUM_CLASSES, count))


def _shares(windows: Sequence[_Window]) -> list[float] | None:
    cores = os.cpu_count() or 1
    shares = [min(max(w.others / (w.seconds * cores), 0.0), 1.0) for w in windows]
    return None if any(math.isnan(share) for share in shares) else shares


def _peak_memory_gib() -> float:
    """This process's. Not getrusage's, which starts at what the process had that started this one (Linux)."""
    try:
        match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request, both as the module's docstring has them."""
    try:
        cell = Cell(Config.model_validate(request["settings"]), request["augmentation"], request["launched"])
        sizes = {key: request[key] for key in ("num_images", "num_windows", "window_seconds")}
        return {"measurement": asdict(measure_here(cell, **sizes))}
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        if not isinstance(error, FastcifarError):
            text = f"{type(error).__name__}: {text.splitlines()[0]}"
        return {"failure": asdict(Failure(type(error).__name__, text, traceback.format_exc()))}


if __name__ == "__main__":
    serve(answer)
