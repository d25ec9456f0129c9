"""Measurements in processes of their own: what one variant tells the allocator or the compiler, no other one feels."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                fields = stat.read_text().rpartition(")")[2].split()
                parents[int(stat.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12]))
        family = {self.pid}
        while more := {pid for pid, (parent, _) in parents.items() if parent in family} - family:
            family |= more
        ticks = sum(parents[pid][1] for pid in family if pid in parents)
        kib = 0
        for pid in family:
            with suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kib += int(rollup.partition("\nPss:")[2].split()[0])
        return Usage(ticks / os.sysconf("SC_CLK_TCK"), kib * 1024)


@contextmanager
def worker(start: Callable[..., Run], *arguments: Any) -> Iterator[Worker]:
    """Calls `start(*arguments)` in a new process and yields it, to run the result there.

    An error in the process is raised here with its text.
    """
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, start, arguments), daemon=False)
    process.start()
    theirs.close()

    def receive() -> Any:
        try:
            kind, value = ours.recv()
        except EOFError:
            raise RuntimeError(f"the measuring process ended with exit code {process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(value)
        return value

    def run(count: int) -> float:
        ours.send(count)
        return float(receive())

    try:
        receive()
        assert process.pid is not None
        yield Worker(process.pid, run)
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _serve(pipe: Connection, start: Callable[..., Run], arguments: tuple[Any, ...]) -> None:
    try:
        run = start(*arguments)
        pipe.send(("ready", None))
        while True:
            pipe.send(("seconds", run(pipe.recv())))
    except EOFError:
        return
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


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
