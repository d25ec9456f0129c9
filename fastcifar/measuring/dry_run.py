"""What a run would take: a few of its steps are taken, and the rest is computed from them. Nothing is written."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fastcifar.config import Config
from fastcifar.data import sources
from fastcifar.data.dataset import Split
from fastcifar.loaders import check_available
from fastcifar.measuring.process import peak_memory_gib, seconds_of_others, share_of_cores
from fastcifar.model import count_parameters
from fastcifar.run.clock import wait
from fastcifar.run.environment import allowed_cores
from fastcifar.session import Session
from fastcifar.target import Target
from fastcifar.trainer import splits_of
from fastcifar.ui.display import LOADING, Display

_SECONDS, _MOST_STEPS = 1.0, 20
"""Steps are timed for about a second: three at least, and `_MOST_STEPS` at most."""


@dataclass(frozen=True)
class DryRun:
    """What was measured, and what follows for the run.

    Attributes:
        config: the settled settings.
        num_images: the number of training images.
        num_classes: the number of classes.
        parameters: the number of trainable numbers.
        steps_an_epoch: the number of steps in an epoch.
        steps_timed: how many steps were timed, of those on whole images.
        warm_up_seconds: the time before the first step, with compilation.
        step_seconds: the median time of a step of `batch_size` whole images.
        low_res_step_seconds: the same of the epochs on small images; None if there are none.
        validation_seconds: the time of a validation, computed from that of one batch; 0 without validation images.
        epoch_seconds: the time of an epoch on whole images with its validation.
        run_seconds: the time of all epochs, with warm-up and the validations that `eval_every` asks for. Checkpoints,
            the test and the start of the process are not in it.
        host_memory_gib: the peak memory of this process, with the images.
        device_memory_gib: the peak memory of PyTorch's allocator on the GPU; None on the CPU.
        device_memory_free_gib: what was free on the GPU before; None on the CPU.
        others: the share of the cores, 0 to 1, that other programs used meanwhile; None if not known.
    """

    config: Config
    num_images: int
    num_classes: int
    parameters: int
    steps_an_epoch: int
    steps_timed: int
    warm_up_seconds: float
    step_seconds: float
    low_res_step_seconds: float | None
    validation_seconds: float
    epoch_seconds: float
    run_seconds: float
    host_memory_gib: float
    device_memory_gib: float | None
    device_memory_free_gib: float | None
    others: float | None


def dry_run(config: Config) -> DryRun:
    """Takes a few steps of a run, and validates one batch, without a run folder.

    Args:
        config: the settings, with or without `auto`.

    Returns:
        What the run would take.

    Raises:
        FastcifarError: any that the run itself would raise before its second epoch.
    """
    target = Target.of(config)
    config, device = target.config, target.device
    on_cuda, cores = device.type == "cuda", allowed_cores()  # beside others this thread is kept on one of them
    with Display() as display:
        display.phase(LOADING)
        dataset = sources.load(config.data, mirror=config.mirror)
        train, val = splits_of(dataset, config)
        check_available(target, len(train))
        free = torch.cuda.mem_get_info(device)[0] / 2**30 if on_cuda else None
        others, start = seconds_of_others(cores), time.perf_counter()
        with Session(target, dataset.num_classes) as session:
            session.feed(train, display.note)
            for remark in target.remarks:
                display.note(remark)
            display.phase("compiling" if config.engine == "compiled" else "warming up")
            warm_up = session.steps.warm_up()
            small_epochs = config.low_res_epochs
            small_times = _times_of_steps(session, _first_epoch(session)) if small_epochs else []
            times = _times_of_steps(session, session.train())
            validation = _time_of_validation(session, val) if len(val) else 0.0
            others = share_of_cores(seconds_of_others(cores) - others, time.perf_counter() - start, len(cores))
            num_batches = session.loader.num_batches
            parameters = count_parameters(session.engine.model)
    step, small_step = statistics.median(times), statistics.median(small_times) if small_times else None
    training = num_batches * (step * (config.epochs - small_epochs) + (small_step or 0.0) * small_epochs)
    return DryRun(
        config=config,
        num_images=len(train),
        num_classes=dataset.num_classes,
        parameters=parameters,
        steps_an_epoch=num_batches,
        steps_timed=len(times),
        warm_up_seconds=warm_up,
        step_seconds=step,
        low_res_step_seconds=small_step,
        validation_seconds=validation,
        epoch_seconds=step * num_batches + validation,
        run_seconds=warm_up + training + validation * math.ceil(config.epochs / config.eval_every),
        host_memory_gib=peak_memory_gib(),
        device_memory_gib=torch.cuda.max_memory_allocated(device) / 2**30 if on_cuda else None,
        device_memory_free_gib=free,
        others=None if math.isnan(others) else others,
    )


def _first_epoch(session: Session) -> Iterator[int]:
    """Takes the steps of the first epoch, again and again, as `Session.train` takes those of epochs on whole images."""
    while True:
        session.steps.begin(1)
        for step in range(session.loader.num_batches):
            yield session.steps.take(step)


def _times_of_steps(session: Session, training: Iterator[int]) -> list[float]:
    """The seconds of each of a few steps of whole batches, the first of all steps left out: it allocates."""
    device, whole = session.target.device, session.target.config.batch_size
    times = list[float]()
    next(training)
    started = time.perf_counter()
    for number in itertools.count(1):
        wait(device)
        start = time.perf_counter()
        count = next(training)
        wait(device)
        if count == whole or session.loader.num_batches == 1:
            times.append(time.perf_counter() - start)
        if number >= 3 and (number >= _MOST_STEPS or time.perf_counter() - started >= _SECONDS) and times:
            break
    return times


def _time_of_validation(session: Session, val: Split) -> float:
    part = val.take(np.arange(min(len(val), session.target.config.eval_batch_size)))
    session.evaluate(part)  # the first one allocates
    start = time.perf_counter()
    session.evaluate(part)  # it reads its result from the device
    return (time.perf_counter() - start) * len(val) / len(part)
