"""`fastcifar profile`: where the time of a training step goes, and how near each layer comes to its least time.

The steps have the engine, loader, batch size and precision of a training run. The images are random bytes, which take
as long as others. The steps are timed first, then profiled; then each layer is timed by itself.

On CUDA the steps that are timed are CUDA graphs, as in a run. To be profiled, the steps of the engines eager and
compiled are launched op by op.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from fastcifar.config import Config
from fastcifar.engines import LaunchedSteps, Steps
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.loaders import Loader
from fastcifar.measuring.cell import NUM_CLASSES, random_images
from fastcifar.measuring.kernels import (
    COLOURS,
    MAKE_BATCH,
    STEP,
    Shapes,
    breakdown,
)
from fastcifar.measuring.layer_times import time_layer
from fastcifar.measuring.layers import list_layers
from fastcifar.measuring.profile_result import STEPS_AN_EPOCH, Profile, as_dict, describe, device_name, slowest
from fastcifar.measuring.roofline import rows_of
from fastcifar.measuring.roofline_chart import draw_roofline
from fastcifar.measuring.roofs import measure_roofs
from fastcifar.run import environment
from fastcifar.run.clock import wait
from fastcifar.run.folder import RunFolder
from fastcifar.session import Session
from fastcifar.target import Target
from fastcifar.ui import drawing
from fastcifar.ui.display import Display

TRACE, RESULT, LAYERS_CSV, NAMES_CSV = "trace.json.gz", "profile.json", "layers.csv", "names.csv"
TIME, ROOFLINE = "time", "roofline"  # pictures, without their endings


def profile(config: Config, out: Path | None, num_steps: int = 10) -> Profile:
    """Profiles training steps, and writes the result to a folder.

    Args:
        config: the settings of the run. Its data is not read.
        out: the folder, new or empty; None makes runs/profile/<local time>-<engine>-<precision>.
        num_steps: the number of steps that are profiled. As many, and at least 5, are timed.

    Returns:
        The result.

    Raises:
        UsageError: `out` is not empty, or cannot be made.
        FastcifarError: any error of a training run, or the result cannot be written.
    """
    if out is not None:
        RunFolder.check_unused(out)
    target = Target.of(config)
    config, device = target.config, target.device
    folder = _make_folder(out, config)
    with Display() as display, Session(target, NUM_CLASSES) as session:
        session.feed(random_images(config.batch_size * STEPS_AN_EPOCH), display.note)
        with _batches_marked(session.loader):
            display.phase("compiling" if config.engine == "compiled" else "warming up")
            with _generated_code_visible(config):
                session.steps.warm_up()
            display.phase("timing steps")
            walk = _Walk(session, session.steps)
            walk.take(3)  # the first steps allocate
            step_seconds = statistics.median(walk.take(1) for _ in range(max(num_steps, 5)))
            display.phase(f"profiling {num_steps} steps")
            if device.type == "cuda" and config.engine != "fused":
                # In a replayed graph no kernel belongs to an op; only the names of our own kernels tell what they do.
                launched = LaunchedSteps(session.engine, session.loader, session.lrs, target)
                launched.warm_up()
                walk = _Walk(session, launched)
                walk.take(3)
            _record(walk, num_steps, device, folder / TRACE)
        display.phase("measuring copies and products")
        roofs = measure_roofs(device, target.dtype)
        layers = list_layers(target, NUM_CLASSES)
        times = None
        if config.engine != "compiled":
            display.phase(f"timing {len(layers)} layers")
            times = [time_layer(layer, session) for layer in layers]
        display.phase("reading the trace")
        with gzip.open(folder / TRACE, "rt", encoding="utf-8") as file:
            found = breakdown(json.load(file), Shapes(config.batch_size, NUM_CLASSES))
        rows = rows_of(layers, roofs, times)
        result = Profile(config, step_seconds, found, roofs, rows, environment.collect(config.device), folder)
        _write(result)
    return result


class _Walk:
    """Steps one after the other, epoch after epoch."""

    def __init__(self, session: Session, steps: Steps) -> None:
        self._training, self._device = session.train(steps), session.target.device

    def take(self, count: int) -> float:
        """Takes `count` steps, and returns the mean seconds of a step."""
        wait(self._device)
        start = time.perf_counter()
        for _ in range(count):
            with record_function(STEP):
                next(self._training)
        wait(self._device)
        return (time.perf_counter() - start) / count


@contextmanager
def _batches_marked(loader: Loader) -> Iterator[None]:
    """A context in which a trace shows the making of each batch as a range."""
    make = loader.batch

    def batch(step: int) -> Any:
        with record_function(MAKE_BATCH):
            return make(step)

    loader.batch = batch  # type: ignore[method-assign]
    try:
        yield
    finally:
        loader.batch = make  # type: ignore[method-assign]


def _generated_code_visible(config: Config) -> AbstractContextManager[Any]:
    """A context in which torch.compile makes CPU code that the profiler can see."""
    if config.engine != "compiled" or config.device != "cpu":
        return nullcontext()
    from torch._inductor import config as inductor

    patched: AbstractContextManager[Any] = inductor.patch({"cpp.enable_kernel_profile": True})
    return patched


def _record(walk: _Walk, num_steps: int, device: torch.device, path: Path) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise the profiler prints two lines
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch_profile(activities=activities, record_shapes=True) as profiler:
        walk.take(num_steps)
    profiler.export_chrome_trace(str(path))


def _make_folder(out: Path | None, config: Config) -> Path:
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.engine}-{config.precision}"
    folder = out or Path("runs/profile") / stem
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as problem:
        raise UsageError(f"{folder} cannot be made: {problem.strerror}; give a folder with --out") from problem
    return folder


def _write(result: Profile) -> None:
    folder = result.path
    try:
        (folder / RESULT).write_text(json.dumps(as_dict(result), indent=1) + "\n", encoding="utf-8")
        rows = [row.as_dict() for row in result.rows]
        with open(folder / LAYERS_CSV, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        with open(folder / NAMES_CSV, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["kind", "name", "ms", "calls"])
            out.writerows([kind, name, ms, calls] for kind, name, ms, calls in slowest(result.breakdown))
        title = f"{describe(result.config)}, {device_name(result)}"
        draw_times(result, folder / TIME, title)
        if any(row.seconds for row in result.rows):
            draw_roofline(result.rows, result.roofs, folder / ROOFLINE, title)
    except OSError as problem:
        raise FastcifarError(f"{folder} cannot be written: {problem.strerror or problem}") from problem


def draw_times(result: Profile, path_stem: Path, title: str) -> list[Path]:
    """Draws the time of a step by kind, as `path_stem`.svg and `path_stem`.png.

    Args:
        result: the profile.
        path_stem: the path of the pictures without its ending.
        title: the text above the picture.

    Returns:
        The paths of the pictures.
    """

    found = result.breakdown
    order = sorted(((k, c) for k, c in found.kinds.items() if c.ms > 0), key=lambda item: item[1].ms)
    with drawing.styled():
        figure = drawing.new_figure(9, 1.3 + 0.36 * len(order))
        axes = figure.add_subplot()
        axes.set_title(title, loc="left", fontsize=11)
        axes.barh([k for k, _ in order], [c.ms for _, c in order], color=[COLOURS[k] for k, _ in order])
        for position, (_, cost) in enumerate(order):
            axes.annotate(
                f"{cost.ms:.2f} ms, {cost.ms / found.step_ms:.1%}",
                (cost.ms, position),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_xlim(0, order[-1][1].ms * 1.25)
        axes.set_xlabel(f"milliseconds of a profiled step ({found.step_ms:.2f} ms)")
        return drawing.save(figure, path_stem)
