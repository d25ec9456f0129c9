"""One short measured run in a process of its own, so that no measurement changes the allocator or compiler of another.

`python -m fastcifar.measuring.cell` reads a request from stdin and writes an answer to stdout, a line of JSON each:

    {"settings": {...}, "augmentation": null, "launched": false,
     "num_images": 40000, "num_windows": 3, "window_seconds": 1.0, "neighbour": false, "roofs": false}
    {"measurement": {...}} or {"failure": {"kind": "DeviceMemoryError", "message": "..."}}

The run has the engine, loader and steps of a training run. Its images are random bytes, which take as long as others.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from fastcifar.config import Config
from fastcifar.data.dataset import Split
from fastcifar.errors import FastcifarError, NonFiniteError
from fastcifar.loaders import Augmentation
from fastcifar.measuring.neighbour import busy_process
from fastcifar.measuring.process import Death, Process, peak_memory_gib, seconds_of_others, serve, share_of_cores
from fastcifar.measuring.roofs import Roofs, measure_roofs
from fastcifar.run.clock import process_seconds, wait
from fastcifar.run.environment import allowed_cores
from fastcifar.session import Session
from fastcifar.target import Target

NUM_IMAGES, NUM_CLASSES = 40_000, 100
"""As in a run with the default settings: CIFAR-100's training images without the validation images, and its classes."""


@dataclass(frozen=True)
class Cell:
    """What to measure.

    Attributes:
        config: the settings of the run, settled.
        augmentation: how the resident loader makes a batch; None means as the engine does by default.
        launched: whether the steps are launched op by op even where they would be one CUDA graph.
    """

    config: Config
    augmentation: Augmentation | None = None
    launched: bool = False


@dataclass(frozen=True)
class Method:
    """How a cell is measured.

    Attributes:
        num_windows: the number of windows.
        window_seconds: the length of a window, in seconds.
        num_images: the number of training images.
        neighbour: whether as many windows are also measured beside one busy process.
        roofs: whether the best speeds of the device are measured too, in the cell's compute dtype.
    """

    num_windows: int
    window_seconds: float
    num_images: int = NUM_IMAGES
    neighbour: bool = False
    roofs: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one process measured.

    Attributes:
        images_per_second: the rate of each window. It includes all work of training: draws, batches and steps.
        others: the share that other programs used in each window of the cores that this process may use, 0 to 1; None
            if not known.
        steps_per_window: the number of steps in a window, chosen so that a window lasts as long as asked for.
        warm_up_seconds: the time of the first batch and step, with compilation; it is not part of a window.
        start_seconds: the time from the start of the process to the first batch, with imports.
        host_memory_gib: the peak memory of the process, in GiB.
        device_memory_gib: the peak memory of PyTorch's allocator on the GPU, in GiB; None on the CPU.
        loss: the mean loss of all images in the windows; it is finite.
        notes: remarks for the user on how the steps were taken.
        beside_neighbour: the rate of each window beside one busy process; empty if that was not measured.
        roofs: the best speeds of the device; None if they were not measured.
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
    beside_neighbour: list[float] = field(default_factory=list)
    roofs: Roofs | None = None

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Measurement:
        """The measurement whose `asdict` came through JSON."""
        roofs = facts["roofs"]
        return cls(**{**facts, "roofs": roofs and Roofs(tuple(map(tuple, roofs["copies"])), roofs["flops_per_second"])})


@dataclass(frozen=True)
class Failure:
    """Why there is no measurement.

    Attributes:
        kind: the class of the error; or the name of the signal that ended the process, or `exit`.
        message: the error's text.
        traceback: the error's traceback; empty if the process died.
    """

    kind: str
    message: str
    traceback: str = ""

    @property
    def cannot_run(self) -> bool:
        """Whether this machine cannot run the cell at all. Then nothing went wrong."""
        return self.kind == "UsageError"


def measure(cell: Cell, method: Method, environment: Mapping[str, str] | None = None) -> Measurement | Failure:
    """Measures a cell in a new process. An exception in this process, such as Ctrl-C, ends the new process too.

    Args:
        cell: what to measure.
        method: how to measure it.
        environment: environment variables for the new process, added to the ones that this process has.

    Returns:
        The measurement, or why there is none.
    """
    request = {
        "settings": cell.config.model_dump(mode="json"),
        "augmentation": cell.augmentation,
        "launched": cell.launched,
        **asdict(method),
    }
    with Process([sys.executable, "-m", "fastcifar.measuring.cell"], environment) as process:
        found = process.ask(request, last=True)
    if isinstance(found, Death):
        return Failure(found.kind, found.message)
    return Failure(**found["failure"]) if "failure" in found else Measurement.from_dict(found["measurement"])


@dataclass(frozen=True)
class _Window:
    """One window.

    Attributes:
        num_images: the number of images that were trained on.
        seconds: the length of the window.
        others: the seconds of other programs on the cores of this process during the window; NaN if not known.
    """

    num_images: int
    seconds: float
    others: float


def measure_here(cell: Cell, method: Method) -> Measurement:
    """Measures a cell in this process.

    Args:
        cell: what to measure.
        method: how to measure it.

    Returns:
        The measurement.

    Raises:
        FastcifarError: any error of a training run.
    """
    target, notes = Target.of(cell.config), list[str]()
    device, cores = target.device, allowed_cores()  # beside others this thread is kept on one of them
    with Session(target, NUM_CLASSES, launched=cell.launched) as session:
        images = random_images(method.num_images)
        session.feed(images, notes.append, augmentation=cell.augmentation)
        start_seconds = process_seconds()
        warm_up_seconds = session.steps.warm_up()
        training = session.train()

        def window(num_steps: int) -> _Window:
            wait(device)
            others, start = seconds_of_others(cores), time.perf_counter()
            count = sum(itertools.islice(training, num_steps))
            wait(device)
            return _Window(count, time.perf_counter() - start, seconds_of_others(cores) - others)

        window(2)  # the first steps allocate
        num_steps = max(1, round(method.window_seconds / (window(2).seconds / 2)))
        window(-(-num_steps // 2))
        session.engine.pop_means(1)
        windows = [window(num_steps) for _ in range(method.num_windows)]
        loss = session.engine.pop_means(sum(w.num_images for w in windows)).loss
        beside = []
        if method.neighbour:
            with busy_process():
                window(-(-num_steps // 2))
                beside = [window(num_steps) for _ in range(method.num_windows)]
    if not math.isfinite(loss):
        raise NonFiniteError(f"the loss is not finite after {method.num_windows * num_steps} steps on random images")
    return Measurement(
        images_per_second=[w.num_images / w.seconds for w in windows],
        others=_shares(windows, len(cores)),
        steps_per_window=num_steps,
        warm_up_seconds=warm_up_seconds,
        start_seconds=start_seconds,
        host_memory_gib=peak_memory_gib(),
        device_memory_gib=torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        loss=loss,
        notes=notes,
        beside_neighbour=[w.num_images / w.seconds for w in beside],
        roofs=measure_roofs(device, target.dtype) if method.roofs else None,  # after the peaks of memory were read
    )


def random_images(count: int) -> Split:
    """`count` images of random bytes, uint8 [count, 32, 32, 3], with random labels; the same in every call."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, NUM_CLASSES, count))


def _shares(windows: Sequence[_Window], num_cores: int) -> list[float] | None:
    if any(math.isnan(w.others) for w in windows):
        return None
    return [share_of_cores(w.others, w.seconds, num_cores) for w in windows]


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a request. The module's docstring shows the form of requests and answers."""
    try:
        cell = Cell(Config.model_validate(request["settings"]), request["augmentation"], request["launched"])
        method = Method(**{field.name: request[field.name] for field in fields(Method)})
        return {"measurement": asdict(measure_here(cell, method))}
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        if not isinstance(error, FastcifarError):
            text = f"{type(error).__name__}: {text.splitlines()[0]}"
        return {"failure": asdict(Failure(type(error).__name__, text, traceback.format_exc()))}


if __name__ == "__main__":
    serve(answer)
