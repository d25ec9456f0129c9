"""Measurements in processes of their own: what one variant tells the allocator or the compiler, no other one feels."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastcifar.measuring.process import Death, Process, memory_of, seconds_of, serve

Run = Callable[[int], float]
"""Does so many units of work and returns the seconds they took on the device."""


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants have used: processor seconds, and memory, shared pages counted once."""

    cpu_seconds: float
    bytes: int


@dataclass(frozen=True)
class Worker:
    """A measuring process: calling it does so many units of work there and returns the seconds."""

    pid: int
    run: Run

    def __call__(self, count: int) -> float:
        return self.run(count)

    def usage(self) -> Usage:
        """Of the process and of those that it has started (Linux)."""
        return Usage(seconds_of(self.pid), memory_of(self.pid))


@contextmanager
def worker(start: Callable[..., Run], *arguments: Any) -> Iterator[Worker]:
    """Calls `start(*arguments)`, a function of this file, in a new process and yields it, to run the result there.

    Raises:
        RuntimeError: with the text of an error in the process, or how it ended.
    """
    with Process([sys.executable, __file__]) as process:

        def ask(question: dict[str, Any]) -> Any:
            answer = process.ask(question)
            if isinstance(answer, Death):
                raise RuntimeError(answer.message)
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return answer["seconds"]

        ask({"start": start.__name__, "arguments": arguments})
        yield Worker(process.pid, lambda count: float(ask({"count": count})))


_started: list[Run] = []


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Starts what is to be measured, or does so many units of its work."""
    try:
        if "start" in question:
            _started.append(
                {"training_step": training_step, "loader": loader}[question["start"]](*question["arguments"])
            )
            return {"seconds": 0.0}
        return {"seconds": _started[0](question["count"])}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def training_step(settings: dict[str, Any], num_images: int = 4096) -> Run:
    """The steps that a training run with these settings takes, its loader's batches included, after their warm-up."""
    from itertools import islice

    from fastcifar.measuring.cell import NUM_CLASSES, random_images
    from fastcifar.run.clock import wait
    from fastcifar.session import Session

    target = _target(settings)
    session = Session(target, NUM_CLASSES)
    session.feed(random_images(num_images), print)
    session.steps.warm_up()
    training = session.train()

    def run(count: int) -> float:
        wait(target.device)
        start = time.perf_counter()
        for _ in islice(training, count):
            pass
        wait(target.device)
        return time.perf_counter() - start

    run(2)
    return run


def loader(settings: dict[str, Any], num_images: int, augmentation: Any = None) -> Run:
    """Whole epochs of the loader that a config names: draws, crop, flip, normalise, and on a GPU the way there.

    `augmentation`: of the resident loader, what makes its batches, if not what the engine makes them with.
    """
    from fastcifar.loaders import build_loader
    from fastcifar.measuring.cell import random_images
    from fastcifar.run.clock import wait

    target = _target({"precision": "fp32", **settings})
    made = build_loader(random_images(num_images), target, print, augmentation=augmentation)
    epoch = 0

    def run(count: int) -> float:
        nonlocal epoch
        wait(target.device)
        start = time.perf_counter()
        for _ in range(count):
            epoch += 1
            made.begin(epoch)
            for step in range(made.num_batches):
                made.batch(step)
        wait(target.device)
        return time.perf_counter() - start

    run(1)
    return run


def _target(settings: dict[str, Any]) -> Any:
    from fastcifar.config import Config
    from fastcifar.target import Target

    return Target.of(Config.model_validate(settings))


if __name__ == "__main__":
    serve(_answer)
