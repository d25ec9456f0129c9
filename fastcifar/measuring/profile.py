"""`fastcifar profile`: where the time of a training step goes, and how near each layer is to this device's floor.

The steps are a training run's: same engine, loader, batch and precision, on images of random bytes, which cost what any
others do. They are timed first, then profiled, then each layer is timed by itself.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from fastcifar.config import Config
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.loaders import Loader
from fastcifar.measuring.cell import NUM_CLASSES, random_images
from fastcifar.measuring.kernels import (
    COLOURS,
    IDLE,
    KINDS,
    MAKE_BATCH,
    PYTHON,
    STEP,
    UNCLASSIFIED,
    Breakdown,
    Shapes,
    breakdown,
)
from fastcifar.measuring.roofline import (
    Roofs,
    Row,
    draw_roofline,
    list_layers,
    measure_roofs,
    rows_of,
    time_layer,
)
from fastcifar.run import environment
from fastcifar.run.clock import wait
from fastcifar.run.folder import RunFolder
from fastcifar.session import Session
from fastcifar.target import Target
from fastcifar.ui.display import Display

STEPS_AN_EPOCH = 16
TRACE, RESULT, LAYERS_CSV, NAMES_CSV = "trace.json.gz", "profile.json", "layers.csv", "names.csv"
TIME, ROOFLINE = "time", "roofline"  # pictures, without their endings

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


@dataclass(frozen=True)
class Profile:
    """What was found.

    Attributes:
        config: settled.
        step_seconds: median of a step that nobody watched.
        breakdown: of the profiled steps.
        roofs, rows: what the device reached; the layers under it.
        environment: see `environment.collect`.
        path: the folder with what was written.
    """

    config: Config
    step_seconds: float
    breakdown: Breakdown
    roofs: Roofs
    rows: list[Row]
    environment: Mapping[str, Any]
    path: Path

    @property
    def images_per_second(self) -> float:
        return self.config.batch_size / self.step_seconds

    @property
    def floor_seconds(self) -> float:
        return sum(self.floors().values())

    def floors(self) -> dict[str, float]:
        """Seconds of the floor of a step's layers, by kind."""
        floors: dict[str, float] = {}
        for row in self.rows:
            floors[row.layer.kind] = floors.get(row.layer.kind, 0.0) + row.layer.count * row.floor_seconds
        return floors

    @property
    def alone_seconds(self) -> float | None:
        """All layers of a step, each by itself; None if they were not timed."""
        timed = [row.layer.count * row.seconds for row in self.rows if row.seconds is not None]
        return sum(timed) if timed else None


def profile(config: Config, out: Path | None, num_steps: int = 10) -> Profile:
    """Profiles training steps of `config` and writes what it finds to a folder.

    Arguments:
        config: what a run of it would do with data; its own is not read.
        out: the folder, new or empty; None makes runs/profile/<local time>-<engine>-<precision>.
        num_steps: how many steps are profiled, and as many timed.

    Errors: `UsageError` for an `out` that holds something; any other `FastcifarError` of a run.
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
            walk = _Walk(session)
            walk.take(3)  # the first steps allocate
            step_seconds = statistics.median(walk.take(1) for _ in range(max(num_steps, 5)))
            display.phase(f"profiling {num_steps} steps")
            _record(walk, num_steps, device, folder / TRACE)
        display.phase("measuring copies and products")
        roofs = measure_roofs(device, target.dtype)
        layers = list_layers(target, NUM_CLASSES)
        times: list[list[float] | None] = [None] * len(layers)
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

    def __init__(self, session: Session) -> None:
        self._training, self._device = session.train(), session.target.device

    def take(self, count: int) -> float:
        """Takes `count` steps; returns the seconds of one."""
        wait(self._device)
        start = time.perf_counter()
        for _ in range(count):
            with record_function(STEP):
                next(self._training)
        wait(self._device)
        return (time.perf_counter() - start) / count


@contextmanager
def _batches_marked(loader: Loader) -> Iterator[None]:
    """While it lasts, a trace shows the making of each batch as a range."""
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
    """What torch.compile makes for the CPU is seen by the profiler only if it is compiled to be seen."""
    if config.engine != "compiled" or config.device != "cpu":
        return nullcontext()
    from torch._inductor import config as inductor

    patched: AbstractContextManager[Any] = inductor.patch({"cpp.enable_kernel_profile": True})
    return patched


def _record(walk: _Walk, num_steps: int, device: torch.device, path: Path) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler prints two lines of its own
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch_profile(activities=activities, record_shapes=True) as profiler:
        walk.take(num_steps)
    profiler.export_chrome_trace(str(path))


# ---- what is written ----


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


def as_dict(result: Profile) -> dict[str, Any]:
    found = result.breakdown
    return {
        "config": result.config.model_dump(mode="json"),
        "environment": dict(result.environment),
        "images_per_second": result.images_per_second,
        "step_seconds": result.step_seconds,
        "floor_seconds": result.floor_seconds,
        "layers_alone_seconds": result.alone_seconds,
        "profiled": {
            "steps": found.num_steps,
            "step_ms": found.step_ms,
            "calls": found.calls,
            "on_device": found.on_device,
            "kinds": {kind: {"ms": cost.ms, "calls": cost.calls} for kind, cost in found.kinds.items()},
        },
        "roofs": {"copies": [list(c) for c in result.roofs.copies], "flops_per_second": result.roofs.flops_per_second},
        "layers": [row.as_dict() for row in result.rows],
    }


def describe(config: Config) -> str:
    """Such as `fused, bf16, batch 128, width 1`."""
    return f"{config.engine}, {config.precision}, batch {config.batch_size}, width {config.width_mult:g}"


def device_name(result: Profile) -> str:
    gpu = result.environment["gpu"]
    if gpu is not None:
        return str(gpu["name"])
    threads = result.environment["threads"]["torch"]
    return f"{result.environment['cpu']['model'] or platform.machine()}, {threads} thread{'s' * (threads != 1)}"


def slowest(found: Breakdown) -> list[tuple[str, str, float, float]]:
    """Kind, name, milliseconds and calls a step, the slowest first."""
    costs = [(kind, name, cost.ms, cost.calls) for (kind, name), cost in found.names.items()]
    return sorted(costs, key=lambda cost: -cost[2])


# ---- what is said ----


def headline(result: Profile) -> list[str]:
    """The answer in a few lines."""
    found, floor, step = result.breakdown, result.floor_seconds, result.step_seconds
    roofs, precision = result.roofs, result.config.precision
    what = "kernels" if found.on_device else "ops"
    alone = result.alone_seconds
    return [
        f"{describe(result.config)}; {device_name(result)}, torch {torch.__version__}",
        "",
        f"a step        {step * 1e3:.2f} ms, {result.images_per_second:,.0f} images/s",
        f"its floor     {floor * 1e3:.2f} ms: {floor / step:.1%} of the possible speed is reached",
        *([f"layers alone  {alone * 1e3:.2f} ms, each by itself, on what it has just seen"] if alone else []),
        f"profiled      {found.num_steps} steps, {found.step_ms:.2f} ms and {found.calls:.0f} {what} each",
        f"this device   copies {roofs.memory / 1e9:,.0f} GB/s in memory, {roofs.cache / 1e9:,.0f} GB/s in cache; "
        f"{precision} products {roofs.flops_per_second / 1e12:,.2f} TFLOP/s",
    ]


def tables(result: Profile) -> list[Table]:
    """By kind, by name, and the layers."""
    return [kinds_table(result), names_table(result.breakdown), layers_table(result.rows)]


def kinds_table(result: Profile) -> Table:
    """Each kind's time in the profiled steps beside the floor of its layers. A CUDA kernel may do less than a layer."""
    found, floors = result.breakdown, result.floors()
    rows = []
    for kind, cost in sorted(found.kinds.items(), key=lambda item: -item[1].ms):
        if cost.ms or cost.calls:
            floor = floors.get(kind)
            against = [f"{floor * 1e3:.2f}", _ratio(cost.ms / floor / 1e3)] if floor else ["", ""]
            share = f"{cost.ms / found.step_ms:.1%}"
            rows.append([kind, f"{cost.ms:.2f}", share, f"{cost.calls:.0f}", *against, KINDS[kind]])
    return _aligned(["where the time goes", "ms", "share", "calls", "floor ms", "x floor", ""], rows, {1, 2, 3, 4, 5})


def names_table(found: Breakdown, most: int = 10) -> Table:
    """The slowest by name, and everything that the table of kinds does not know."""
    costs = [cost for cost in slowest(found) if cost[0] not in (PYTHON, IDLE)]
    shown = costs[:most] + [cost for cost in costs[most:] if cost[0] == UNCLASSIFIED]
    rows = [[_cut(name), f"{ms:.2f}", f"{calls:.0f}", kind] for kind, name, ms, calls in shown]
    return _aligned(["slowest by name", "ms", "calls", "kind"], rows, {1, 2})


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _cut(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def layers_table(rows: Sequence[Row]) -> Table:
    """A line a layer, forward / backward; milliseconds are of one of them."""
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(row.layer.name, []).append(row)

    def both(values: Sequence[str]) -> str:
        return " / ".join(values)

    table = []
    for name, directions in by_layer.items():
        measured = [r for r in directions if r.seconds is not None]
        table.append(
            [
                f"{name}{f' (x{directions[0].layer.count})' if directions[0].layer.count > 1 else ''}",
                both([f"{r.work.bytes / 1e6:.1f}" for r in directions]),
                both([f"{r.work.flops / 1e6:,.0f}" for r in directions]),
                both([f"{r.floor_seconds * 1e3:.3f}" for r in directions]),
                both([f"{(r.seconds or 0) * 1e3:.3f}" for r in measured]) or "-",
                both([_ratio(r.times_floor) for r in measured]) or "-",
                both(["memory" if r.memory_bound else "compute" for r in directions[:1]]),
            ]
        )
    header = ["layer", "MB", "MFLOP", "floor ms", "measured ms", "x floor", "bound"]
    return _aligned(header, table, {1, 2, 3, 4, 5})


def _aligned(header: list[str], rows: list[list[str]], right: set[int]) -> Table:
    """Numbers end in the same column."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        [cell.rjust(width) if i in right else cell for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in (header, *rows)
    ]
    return lines[0], lines[1:]


def draw_times(result: Profile, path_stem: Path, title: str) -> list[Path]:
    """Draws the time of a step by kind, to `path_stem`.svg and .png."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = result.breakdown
    order = sorted(((k, c) for k, c in found.kinds.items() if c.ms > 0), key=lambda item: item[1].ms)
    style: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**style, "svg.hashsalt": "fastcifar"}):
        figure = Figure(figsize=(9, 1.3 + 0.36 * len(order)), layout="constrained")
        FigureCanvasAgg(figure)
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
        paths = [Path(f"{path_stem}{ending}") for ending in (".svg", ".png")]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=120)
    return paths
