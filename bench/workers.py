"""Measurements in processes of their own, so that no variant changes the allocator or the compiler of another."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import as_a_run  # noqa: F401

from fastcifar.measuring.process import Death, Process, memory_of, seconds_of, serve

Run = Callable[[int], float]
"""count -> the seconds that `count` units of work took on the device."""


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants have used.

    Attributes:
        cpu_seconds: processor seconds.
        bytes: bytes of memory; memory that several processes share counts once.
    """

    cpu_seconds: float
    bytes: int


@dataclass(frozen=True)
class Worker:
    """A measuring process. Calling it with a count does as many units of work there, and returns the seconds.

    Attributes:
        pid: the process.
        run: does the work in the process.
    """

    pid: int
    run: Run

    def __call__(self, count: int) -> float:
        return self.run(count)

    def usage(self) -> Usage:
        """What the process and its descendants have used (Linux)."""
        return Usage(seconds_of(self.pid), memory_of(self.pid))


@contextmanager
def worker(start: Callable[..., Run], *arguments: Any) -> Iterator[Worker]:
    """Starts a new process for a measurement. The context ends the process.

    Args:
        start: a function of this file, which the process calls to prepare the work.
        *arguments: its arguments, in values that JSON can hold.

    Yields:
        The process, ready to work.

    Raises:
        RuntimeError: an error in the process, or its end.
    """
    with new_process("") as process:
        yield _started_in(process, start, arguments)


def new_process(name: str) -> Process:
    """A process of this file."""
    return Process([sys.executable, __file__])


@contextmanager
def workers(
    start: Callable[..., Run],
    arguments: Mapping[str, Sequence[Any]],
    seconds: float,
    process: Callable[[str], Process] = new_process,
) -> Iterator[dict[str, Worker | Exception]]:
    """Starts a new process for each of several measurements, all at the same time. The context ends the processes.

    Args:
        start: a function of this file, which each process calls to prepare its work.
        arguments: name of a measurement -> the arguments for `start`, in values that JSON can hold.
        seconds: how long to wait. A process that is not ready by then is killed, so that it disturbs no other.
        process: makes the process of a name, of this file or of another checkout's.

    Yields:
        Name -> the process, ready to work, or the error that kept it from that.
    """
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(arguments)))
        processes = {name: stack.enter_context(process(name)) for name in arguments}
        starts = {name: pool.submit(_started_in, processes[name], start, given) for name, given in arguments.items()}
        wait(starts.values(), seconds)
        ready: dict[str, Worker | Exception] = {}
        for name, started in starts.items():
            if not started.done():
                os.kill(processes[name].pid, signal.SIGKILL)
                ready[name] = TimeoutError(f"the process was not ready after {seconds:g} s")
            elif error := started.exception():
                assert isinstance(error, Exception)
                ready[name] = error
            else:
                ready[name] = started.result()
        yield ready


def take_turns(
    ready: Mapping[str, Worker | Exception], counts: Mapping[str, int], rounds: int
) -> dict[str, list[float] | Exception]:
    """Measures in turns, so that a change of the device's clocks affects all alike.

    A process that is not asked does nothing on the device. An interruption ends the turns; what was measured counts.

    Args:
        ready: as of `workers`.
        counts: the units of work of a turn.
        rounds: how many turns each has after a first one, which does not count.

    Returns:
        Name -> the seconds of each turn, or the error that kept the process from them.
    """
    found = {name: run if isinstance(run, Exception) else [] for name, run in ready.items()}
    with suppress(KeyboardInterrupt):
        for _, (name, run) in product(range(rounds + 1), ready.items()):
            seconds = found[name]
            if isinstance(run, Worker) and not isinstance(seconds, Exception):
                try:
                    seconds.append(run(counts[name]))
                except RuntimeError as error:
                    found[name] = error
    return {name: seconds if isinstance(seconds, Exception) else seconds[1:] for name, seconds in found.items()}


def _started_in(process: Process, start: Callable[..., Run], arguments: Sequence[Any]) -> Worker:
    """Waits until a process has prepared its work."""

    def ask(question: dict[str, Any]) -> Any:
        answer = process.ask(question)
        if isinstance(answer, Death):
            raise RuntimeError(answer.message)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["seconds"]

    ask({"start": start.__name__, "arguments": arguments})
    return Worker(process.pid, lambda count: float(ask({"count": count})))


_started: list[Run] = []


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Answers a question: prepares the work, or does `count` units of it."""
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
    """The training steps of a run, after their warm-up; the loader's work is part of a step.

    Args:
        settings: the settings of the run that differ from the defaults.
        num_images: the number of training images.
    """
    from itertools import islice

    from fastcifar.measuring.cell import NUM_CLASSES, random_images
    from fastcifar.run.clock import wait
    from fastcifar.session import Session

    target = _target(settings)
    session = ExitStack().enter_context(Session(target, NUM_CLASSES))  # to the end of the process
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
    """Whole epochs of a loader: draws, crop, flip, normalise and, on a GPU, the copies to it.

    Args:
        settings: the settings of the run that differ from the defaults.
        num_images: the number of images in an epoch.
        augmentation: how the resident loader makes a batch; None means as the engine does by default.
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
