"""What each choice is worth on this machine: images/s over a grid of settings, and with one factor removed at a time.

    runs/ablate/20261123-143000/
      ablation.jsonl      the environment, a line for each process as it ends, then the cells and factors
      ablation.csv        a row a cell
      ablation.svg, .png

A cell is measured in a new process each time. Every round measures all cells in another order, so that a machine which
slows down slows all alike. After the first round the cells without one factor of the fastest join in.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import rich.progress
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.text import Text

from fastcifar import ops
from fastcifar.config import Config, from_dict, parse_value, resolve, trace
from fastcifar.device import find_device, has_fast_bf16, settle
from fastcifar.display import format_seconds
from fastcifar.environment import collect
from fastcifar.errors import UsageError
from fastcifar.loaders import augmentation_of
from fastcifar.measure import NUM_IMAGES, Cell, Failure, Measurement, measure
from fastcifar.run import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = ("engine", "precision", "loader", "memory_format", "batch_size", "tuned", "compile_mode")
"""The settings that may be lists."""

_OF_ENGINE = {"compile_mode": "compiled"}
"""Axes that say something of one engine only; cells of the others are not multiplied by them."""

UNUSED = ("data", "mirror", "val_size", "split_seed", "eval_batch_size", "eval_every", "checkpoint_seconds")
"""Settings that are refused, because nothing is read, evaluated or saved."""

RESIDENT = ("resident", "device")
"""Loader and images_on of batches that are made on the device."""

NUM_WINDOWS = 3
"""Of each process."""

JSONL, CSV, CHART = "ablation.jsonl", "ablation.csv", "ablation"


@dataclass
class Entry:
    """A cell, and what was found out about it.

    Attributes:
        name: `fused bf16, batch 256`.
        values: what it is on each axis.
        cell: what is measured; None where the settings exclude each other.
        problem: why it was not measured, or not to the end.
        failed: whether that is a failure, not a cell that this machine excludes.
        measurements: one for each process.
    """

    name: str
    values: dict[str, Any]
    cell: Cell | None = None
    problem: str = ""
    failed: bool = False
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return self.cell is not None and not self.problem

    @property
    def windows(self) -> list[float]:
        """Images a second of every window."""
        return [rate for m in self.measurements for rate in m.images_per_second]

    @property
    def rate(self) -> float:
        """Images a second: the median of all windows of all processes; NaN without any."""
        return statistics.median(self.windows) if self.measurements else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest window."""
        return min(self.windows), max(self.windows)


@dataclass
class Factor:
    """One choice of the fastest cell, taken back.

    Attributes:
        name, change: `engine`, `fused -> eager`.
        without: the cell without it.
        of: the cell that it is compared with: the fastest or, where the choice comes with another one, that without
            the other one.
    """

    name: str
    change: str
    without: Entry
    of: Entry

    @property
    def cost(self) -> float:
        """The share of images/s that goes with it, 0 to 1; below 0 if more come without it; NaN where not measured."""
        return 1 - self.without.rate / self.of.rate


# ---- the grid ----


def plan(settings: Sequence[tuple[str, str]], options: Sequence[str] = ()) -> list[Entry]:
    """The cells that `settings` (pairs of key and text, axes as comma lists) ask for; the first one is the reference.

    Engine and precision take every value that pays on the device, unless they are named. Where another axis is a list
    they are what a run would take. On the CPU, and unless `tuned` is named, stock PyTorch comes first: eager, fp32.

    Errors: one UsageError for all problems, a line each. `options` are suggested to who mistypes a setting.
    """
    axes, fixed = _axes(settings, options)
    device = find_device(resolve(None, None, fixed).device)
    listed = [name for name, texts in axes.items() if len(texts) > 1 and name not in ("engine", "precision")]
    axes.setdefault("engine", ["auto"] if listed else ["eager", "compiled", "fused"])
    axes.setdefault("precision", ["auto"] if listed else _precisions(device))
    for name, engine in _OF_ENGINE.items():
        if name in listed and engine not in axes["engine"]:
            raise UsageError(
                f"command line: --{name.replace('_', '-')}: only for engine = {engine}: name it in --engine"
            )
    names = [name for name in AXES if name in axes]
    combinations = [dict(zip(names, texts, strict=True)) for texts in itertools.product(*(axes[n] for n in names))]
    if device.type == "cpu" and "tuned" not in axes:
        stock = {"engine": "eager", "precision": "fp32", "memory_format": "channels_last", "tuned": "false"}
        combinations.insert(0, combinations[0] | stock)
    entries: dict[tuple[object, ...], Entry] = {}
    for values in combinations:
        kept = {k: v for k, v in values.items() if _OF_ENGINE.get(k, values["engine"]) == values["engine"]}
        entry = _entry(kept, fixed, device)
        entries.setdefault(tuple(entry.values.values()), entry)
    _name(list(entries.values()))
    return list(entries.values())


def _axes(
    settings: Sequence[tuple[str, str]], options: Sequence[str]
) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """The values of each axis that is named, checked one by one, and the other settings, checked together."""
    axes: dict[str, list[str]] = {}
    fixed, problems = [], []
    for key, text in settings:
        name = key.replace("-", "_")
        if name in UNUSED:
            problems.append(
                f"command line: --{key} {text}: nothing to set here: {NUM_IMAGES:,} images of random bytes are trained "
                "on, and nothing is evaluated or saved"
            )
        elif name in AXES:
            axes[name] = list(dict.fromkeys(part.strip() for part in text.split(",")))
        else:
            fixed.append((key, text))
    for name, texts in axes.items():
        problems += _problems([[(name.replace("_", "-"), text)] for text in texts], options)
    problems += _problems([fixed], options)
    if problems:
        raise UsageError("\n".join(problems))
    return axes, fixed


def _problems(groups: Iterable[Sequence[tuple[str, str]]], options: Sequence[str]) -> list[str]:
    found = []
    for pairs in groups:
        try:
            trace(None, None, pairs, options)
        except UsageError as error:
            found.append(str(error))
    return found


def _precisions(device: torch.device) -> list[str]:
    """fp32, and what is faster there."""
    if has_fast_bf16(device):
        return ["fp32", "bf16"]
    return ["fp32", "fp16"] if device.type == "cuda" else ["fp32"]


def _entry(values: Mapping[str, str], fixed: Sequence[tuple[str, str]], device: torch.device) -> Entry:
    """The cell with these settings, or why there is none."""
    try:
        return _entry_of(Cell(settle(resolve(None, None, [*fixed, *values.items()]), device)), device)
    except UsageError as error:
        given = {name: parse_value(name, text) for name, text in values.items()}
        defaults = {name: Config.model_fields[name].default for name in AXES}
        return Entry("", defaults | given, problem=str(error).removeprefix("command line: "))


def _entry_of(cell: Cell, device: torch.device) -> Entry:
    config = cell.config
    entry = Entry("", {name: getattr(config, name) for name in AXES}, cell)
    if config.engine == "fused" and not ops.available(device.type):
        entry.problem = ops.why_unavailable(device.type)
    return entry


_WORDS: Mapping[str, Callable[[Any], str]] = {
    "loader": str,
    "memory_format": str,
    "batch_size": lambda value: f"batch {value}",
    "compile_mode": str,
}


def _name(entries: Sequence[Entry]) -> None:
    """Names each by engine and precision and, in what they differ, the rest."""
    for entry in entries:
        values = entry.values
        stock = values["tuned"] is False and values["engine"] != "fused"
        parts = [f"{'stock ' * stock}{values['engine']} {values['precision']}"]
        for axis, word in _WORDS.items():
            if (
                len({e.values[axis] for e in entries}) > 1
                and _OF_ENGINE.get(axis, values["engine"]) == values["engine"]
            ):
                parts.append(word(values[axis]))
        if values["tuned"] is False and not stock:
            parts.append("untuned")
        entry.name = ", ".join(parts)


# ---- attribution ----


def factors_of(fastest: Entry, entries: Sequence[Entry], device: torch.device) -> list[Factor]:
    """Every choice of the fastest cell that can be taken back, with the cell that lacks it, old or new."""
    assert fastest.cell is not None
    config = fastest.cell.config
    known = {entry.cell: entry for entry in entries if entry.cell is not None}

    def entry(what: str, updates: dict[str, Any], **beside: Any) -> Entry:
        try:
            changed = settle(from_dict(config.model_dump() | updates, "ablate"), device)
            new = _entry_of(Cell(changed, **beside), device)
        except UsageError as error:
            new = Entry("", fastest.values | updates, problem=str(error).removeprefix("ablate: "))
        gone = [_WORDS[axis](fastest.values[axis]) for axis in updates if axis in _WORDS]
        parts = [part for part in fastest.name.split(", ")[1:] if part not in gone]
        new.name = ", ".join([f"{new.values['engine']} {new.values['precision']}", *parts, *([what] if what else [])])
        return known.setdefault(new.cell, new) if new.cell is not None else new

    found = []
    eager = {"engine": "eager", "compile_mode": "default", "fuse_pointwise": False}
    without_engine = entry("", eager)
    if config.engine != "eager":
        found.append(Factor("engine", f"{config.engine} -> eager", without_engine, fastest))
    if config.compile_mode != "default" and config.engine == "compiled":
        default = entry("default", {"compile_mode": "default"})
        found.append(Factor("compile mode", f"{config.compile_mode} -> default", default, fastest))
    if config.engine == "fused" and device.type == "cuda" and (config.loader, config.images_on) == RESIDENT:
        launched = entry("launched", {}, launched=True)
        found.append(Factor("CUDA graph", "one a step -> launched op by op", launched, fastest))
    if config.precision != "fp32":
        found.append(Factor("precision", f"{config.precision} -> fp32", entry("", {"precision": "fp32"}), fastest))
    if config.loader != "torchvision":
        torchvision = entry("torchvision", {"loader": "torchvision", "images_on": "device"})
        found.append(Factor("loader", f"{config.loader} -> torchvision", torchvision, fastest))
    if (config.loader, config.images_on) == RESIDENT and (how := augmentation_of(config.engine, device)) != "eager":
        op_by_op = entry("augmented op by op", {}, augmentation="eager")
        found.append(Factor("augmentation", f"{how} -> op by op", op_by_op, fastest))
    if config.memory_format == "channels_last":
        contiguous = {"memory_format": "contiguous"}
        if config.engine == "fused":  # it knows channels_last only: both are asked of the eager engine
            without = entry("contiguous", eager | contiguous)
            found.append(Factor("memory format", "channels_last -> contiguous, on eager", without, without_engine))
        else:
            without = entry("contiguous", contiguous)
            found.append(Factor("memory format", "channels_last -> contiguous", without, fastest))
    if config.tuned and device.type == "cpu":
        found.append(Factor("tuned", "true -> false", entry("untuned", {"tuned": False}), fastest))
    if (half := config.batch_size // 2) >= 1:
        halved = entry(f"batch {half}", {"batch_size": half})
        found.append(Factor("batch size", f"{config.batch_size} -> {half}", halved, fastest))
    return found


# ---- measuring ----


@dataclass
class Ablation:
    """What a run of `ablate` found.

    Attributes:
        path: its folder.
        entries: the cells of the grid, the reference first.
        extra: cells that the attribution asked for.
        factors: the attribution; empty without one.
        fastest: what it starts from, the fastest of the first round.
        repeats, window_seconds: as asked for.
        environment: see `environment.collect`, with the command.
        signal_number: of what stopped it; 0 if nothing did.
    """

    path: Path
    entries: list[Entry]
    repeats: int
    window_seconds: float
    environment: dict[str, Any]
    extra: list[Entry] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    fastest: Entry | None = None
    signal_number: int = 0

    @property
    def all_entries(self) -> list[Entry]:
        return [*self.entries, *self.extra]

    @property
    def failed(self) -> list[Entry]:
        return [entry for entry in self.all_entries if entry.failed]

    @property
    def missing(self) -> list[str]:
        """What a stopped run did not get to: `fused bf16 (1 of 3)`."""
        todo = [entry for entry in self.all_entries if entry.runs and len(entry.measurements) < self.repeats]
        return [f"{entry.name} ({len(entry.measurements)} of {self.repeats})" for entry in todo]


def ablate(
    settings: Sequence[tuple[str, str]],
    *,
    repeats: int = 3,
    window_seconds: float = 1.0,
    out: Path | None = None,
    attribution: bool = True,
    command: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Ablation:
    """Measures the cells that `settings` ask for (see `plan`), and writes the results to a folder as they come.

    Arguments:
        repeats: processes of each cell.
        window_seconds: how long each of a process's `NUM_WINDOWS` measures.
        out: the folder, new or empty; None makes runs/ablate/<time>.
        attribution: whether the fastest cell is also measured without one factor at a time.
        command: what the user ran, for the record.

    Ctrl-C and SIGTERM end it early, with what there is. Errors: `UsageError`.
    """
    entries = plan(settings, options)
    runnable = [entry.cell.config for entry in entries if entry.runs and entry.cell is not None]
    if not runnable:
        raise UsageError("\n".join(f"{entry.name}: cannot run: {entry.problem}" for entry in entries))
    device = find_device(runnable[0].device)
    path = _folder(out)
    environment = collect(str(device)) | {"command": list(command)}
    ablation = Ablation(path, entries, repeats, window_seconds, environment)
    order = random.Random(runnable[0].seed)
    with _interruptible() as stop, _Results(path) as results, _Progress() as progress:
        results.write(
            "environment", environment | _method(ablation) | {"settings": runnable[0].model_dump(mode="json")}
        )
        runner = _Runner(ablation, results, progress, attribution)
        try:
            for number in range(1, repeats + 1):
                runner.round(number, order.sample(ablation.all_entries, len(ablation.all_entries)))
                if number == 1 and attribution:
                    _attribute(ablation, device)
                    runner.round(number, order.sample(ablation.extra, len(ablation.extra)))
        except KeyboardInterrupt:
            ablation.signal_number = stop.number
        _finish(ablation, results)
    return ablation


def _attribute(ablation: Ablation, device: torch.device) -> None:
    measured = [entry for entry in ablation.entries if entry.measurements]
    if not measured:
        return
    ablation.fastest = max(measured, key=lambda entry: entry.rate)
    ablation.factors = factors_of(ablation.fastest, ablation.entries, device)
    cells = {id(entry): entry for factor in ablation.factors for entry in (factor.without, factor.of)}
    ablation.extra = [entry for entry in cells.values() if entry not in ablation.entries]


class _Runner:
    """Measures rounds of cells, keeps what comes of it and says how long it will still take."""

    _EXPECTED_EXTRA = 5  # cells that the attribution adds, until it is known

    def __init__(self, ablation: Ablation, results: _Results, progress: _Progress, attribution: bool) -> None:
        self._ablation, self._results, self._progress = ablation, results, progress
        self._attribution = attribution
        self._seconds: dict[int, float] = {}  # id of an entry -> its quickest process, so without a cold compilation
        self._done = 0

    def round(self, number: int, entries: Iterable[Entry]) -> None:
        """Measures each once more, in this order."""
        for entry in entries:
            if entry.cell is None or entry.problem:
                continue
            total, left = self._left()
            self._progress.begin(entry.name, number, self._done, total, left)
            start = time.monotonic()
            found = measure(
                entry.cell,
                num_windows=NUM_WINDOWS,
                window_seconds=self._ablation.window_seconds,
                environment=self._results.cache_of(entry),
            )
            seconds = time.monotonic() - start
            self._seconds[id(entry)] = min(seconds, self._seconds.get(id(entry), seconds))
            self._done += 1
            text = self._keep(entry, found, number)
            self._progress.end(f"[{self._done}/{total}] {entry.name}: {text}", self._left()[1])

    def _keep(self, entry: Entry, found: Measurement | Failure, number: int) -> str:
        """Records it and says it in a few words."""
        facts = {"cell": entry.name, **entry.values, **_beside(entry), "round": number}
        if isinstance(found, Measurement):
            entry.measurements.append(found)
            self._results.write("measurement", facts | asdict(found))
            return f"{statistics.median(found.images_per_second):,.0f} images/s"
        entry.problem, entry.failed = found.message, not found.cannot_run
        error = {"error": found.kind, "message": found.message, "traceback": found.traceback}
        self._results.write("failure", facts | error)
        return f"{'failed' if entry.failed else 'cannot run'}: {found.message.splitlines()[0]}"

    def _left(self) -> tuple[int, float]:
        """How many processes there will be in all, and the seconds that those to come will take."""
        a = self._ablation
        mean = statistics.fmean(self._seconds.values()) if self._seconds else float("nan")
        todo = {id(e): a.repeats - len(e.measurements) for e in a.all_entries if e.runs}
        more = self._EXPECTED_EXTRA * a.repeats if self._attribution and not a.factors else 0
        seconds = more * mean + sum(count * self._seconds.get(key, mean) for key, count in todo.items())
        return self._done + sum(todo.values()) + more, seconds


class _Stop:
    number = signal.SIGINT.value


@contextlib.contextmanager
def _interruptible() -> Iterator[_Stop]:
    """SIGTERM is a KeyboardInterrupt too; the number says which it was."""
    stop = _Stop()

    def note(number: int, frame: FrameType | None) -> None:
        stop.number = number
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not in the main thread, where signals can't be handled
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _folder(out: Path | None) -> Path:
    """The folder for the results, made."""
    stem = Path("runs") / "ablate" / time.strftime("%Y%m%d-%H%M%S")
    try:
        if out is not None:
            RunFolder.check_unused(out)
            out.mkdir(parents=True, exist_ok=True)
            return out
        for number in itertools.count(1):
            path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
            if not path.exists():
                path.mkdir(parents=True)
                return path
    except OSError as problem:
        raise UsageError(f"{out or stem} cannot be made: {problem.strerror}. Give a folder with --out.") from problem
    raise AssertionError("unreachable")


# ---- what is written and shown ----


class _Results:
    """The folder's ablation.jsonl, a line at a time; and caches for compiled code, one for each cell, gone at the end.

    So each cell's first process compiles from nothing and the later ones find its cache, whatever was cached before.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path / JSONL, "w", encoding="utf-8")
        self._caches = tempfile.TemporaryDirectory(prefix="fastcifar-ablate-", ignore_cleanup_errors=True)
        self._cache_of: dict[int, Path] = {}

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._caches.cleanup()

    def write(self, kind: str, facts: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, **facts}) + "\n")
        self._file.flush()

    def cache_of(self, entry: Entry) -> dict[str, str]:
        """The variables that send torch.compile there; none where the user has chosen a cache."""
        folder = self._cache_of.setdefault(id(entry), Path(self._caches.name, str(len(self._cache_of))))
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
        return {} if caches.keys() & os.environ.keys() else caches


class _Progress:
    """What is measured, how far it is and the time left: a live line on a terminal, elsewhere a line a process."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._live: rich.progress.Progress | None = None
        if self._file.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _TimeLeft())
            console = Console(file=self._file, force_terminal=True, highlight=False)
            self._live = rich.progress.Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._task = self._live.add_task("")

    def __enter__(self) -> _Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, name: str, number: int, done: int, total: int, seconds_left: float) -> None:
        if self._live is not None:
            until = time.monotonic() + seconds_left
            self._live.update(
                self._task, description=f"round {number}: {name}", completed=done, total=total, until=until
            )

    def end(self, line: str, seconds_left: float) -> None:
        if self._live is None:
            with contextlib.suppress(OSError, ValueError):  # whoever watched is gone
                print(f"{line}, {format_seconds(seconds_left)} left", file=self._file, flush=True)


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(
            f"{format_seconds(max(0.0, task.fields.get('until', float('nan')) - time.monotonic()))} left", "cyan"
        )


def _finish(ablation: Ablation, results: _Results) -> None:
    cells = [_summary(ablation, entry) for entry in ablation.all_entries]
    for cell in cells:
        results.write("cell", cell)
    for factor in ablation.factors:
        results.write("factor", _factor_summary(factor))
    facts = _facts(ablation)
    with open(ablation.path / CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*cells[0], *facts])
        writer.writeheader()
        writer.writerows({**cell, **facts} for cell in cells)
    if any(entry.measurements for entry in ablation.entries):
        draw_chart(ablation, ablation.path / CHART)


def _method(ablation: Ablation) -> dict[str, Any]:
    return {
        "repeats": ablation.repeats,
        "num_windows": NUM_WINDOWS,
        "window_seconds": ablation.window_seconds,
        "num_images": NUM_IMAGES,
    }


def _facts(ablation: Ablation) -> dict[str, Any]:
    """What a row of the table needs to be understood alone."""
    e = ablation.environment
    gpu = e.get("gpu") or {}
    source = e.get("source") or {}
    return {
        "device": gpu.get("name") or (e.get("cpu") or {}).get("model"),
        "threads": (e.get("threads") or {}).get("torch"),
        "torch": e.get("torch"),
        "fastcifar": e.get("fastcifar"),
        "commit": source.get("commit"),
        "date": e.get("date"),
    }


def _machine(ablation: Ablation) -> str:
    facts = _facts(ablation)
    return f"{facts['device']}, {facts['threads']} thread{'s' * (facts['threads'] != 1)}, torch {facts['torch']}"


def _summary(ablation: Ablation, entry: Entry) -> dict[str, Any]:
    """A cell in numbers; None for what was not measured."""
    measured = bool(entry.measurements)
    low, high = entry.spread if measured else (None, None)
    first = ablation.entries[0]
    warm_up = [m.warm_up_seconds for m in entry.measurements]
    device_memory = [m.device_memory_gib for m in entry.measurements if m.device_memory_gib is not None]
    return {
        "cell": entry.name,
        **entry.values,
        **_beside(entry),
        "in_grid": entry in ablation.entries,
        "images_per_second": entry.rate if measured else None,
        "slowest_window": low,
        "fastest_window": high,
        "num_windows": len(entry.windows),
        "num_processes": len(entry.measurements),
        "speed_up": entry.rate / first.rate if measured and first.measurements else None,
        "run_seconds_computed": _run_seconds(entry) if measured else None,
        "compile_seconds": warm_up[0] if measured else None,
        "compile_seconds_again": statistics.median(warm_up[1:]) if warm_up[1:] else None,
        "host_memory_gib": max(m.host_memory_gib for m in entry.measurements) if measured else None,
        "device_memory_gib": max(device_memory, default=None),
        "failed": entry.failed,
        "problem": entry.problem,
    }


def _beside(entry: Entry) -> dict[str, Any]:
    """What makes a cell beside its settings."""
    return {"augmentation": entry.cell and entry.cell.augmentation, "launched": entry.cell and entry.cell.launched}


def _run_seconds(entry: Entry) -> float:
    assert entry.cell is not None
    return entry.cell.config.epochs * NUM_IMAGES / entry.rate


def _factor_summary(factor: Factor) -> dict[str, Any]:
    cost = factor.cost
    return {
        "factor": factor.name,
        "change": factor.change,
        "without": factor.without.name,
        "of": factor.of.name,
        "cost": cost if cost == cost else None,
        "problem": factor.without.problem,
    }


def cell_table(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a cell each."""
    epochs = next(entry.cell.config.epochs for entry in ablation.entries if entry.cell)
    header = ["cell", "images/s", "range", "speed-up", f"{epochs} epochs", "compile s (again)", "memory GiB"]
    rows = []
    for entry in ablation.entries:
        s = _summary(ablation, entry)
        if not entry.measurements:
            rows.append([entry.name, "failed" if entry.failed else "cannot run" if entry.problem else "-", *[""] * 5])
            continue
        again = "" if s["compile_seconds_again"] is None else f" ({s['compile_seconds_again']:.1f})"
        device = "" if s["device_memory_gib"] is None else f", GPU {s['device_memory_gib']:.2f}"
        rows.append(
            [
                entry.name,
                f"{s['images_per_second']:,.0f}",
                f"{s['slowest_window']:,.0f}-{s['fastest_window']:,.0f}",
                "-" if s["speed_up"] is None else f"{s['speed_up']:.2f}x",
                format_seconds(s["run_seconds_computed"]),
                f"{s['compile_seconds']:.1f}{again}",
                f"{s['host_memory_gib']:.2f}{device}",
            ]
        )
    return header, rows


def factor_table(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a factor each, the dearest first."""
    rows = []
    for factor in sorted(ablation.factors, key=_dearest_first):
        measured = bool(factor.without.measurements)
        low, high = factor.without.spread if measured else (0.0, 0.0)
        rows.append(
            [
                factor.name,
                factor.change,
                f"{factor.without.rate:,.0f}" if measured else "failed" if factor.without.failed else "not measured",
                f"{low:,.0f}-{high:,.0f}" if measured else "",
                f"{-factor.cost:+.1%}" if factor.cost == factor.cost else "-",
                f"{factor.of.rate:,.0f} ({factor.of.name})" if factor.of.measurements else factor.of.name,
            ]
        )
    return ["without", "change", "images/s", "range", "difference", "against"], rows


def _dearest_first(factor: Factor) -> float:
    return -factor.cost if factor.cost == factor.cost else float("inf")


def remarks(ablation: Ablation) -> list[str]:
    """How to read the tables; what could not run, what failed, and what is missing."""
    windows = NUM_WINDOWS * ablation.repeats
    lines = [
        f"images/s: median and range of {windows} windows of {ablation.window_seconds:g} s, in "
        f"{ablation.repeats} process{'es' * (ablation.repeats > 1)} a cell; speed-up over the first row",
        f"epochs: computed from images/s, for {NUM_IMAGES:,} images an epoch, without validation; not run",
        "compile s: first batch and step, from nothing (and from the cell's own cache); not in images/s",
        _machine(ablation),
    ]
    quickest = max((e for e in ablation.entries if e.measurements), key=lambda e: e.rate, default=None)
    if ablation.fastest is not None and quickest is not ablation.fastest and quickest is not None:
        lines.append(f"{ablation.fastest.name} was the fastest of the first round; in the end it is {quickest.name}")
    said: dict[str, list[str]] = {}
    for entry in ablation.all_entries:
        for note in dict.fromkeys(note for measurement in entry.measurements for note in measurement.notes):
            said.setdefault(note, []).append(entry.name)
        if entry.problem:
            problem = "\n".join(entry.problem.splitlines()[:3])
            said.setdefault(f"{'failed' if entry.failed else 'cannot run'}: {problem}", []).append(entry.name)
    lines += [f"{'; '.join(names)}: {text}" for text, names in said.items()]
    return lines


def stopped(ablation: Ablation) -> str:
    """What stopped it, and what it did not get to."""
    attribution = ["the attribution"] if ablation.fastest is None else []
    missing = ", ".join([*ablation.missing, *attribution]) or "nothing"
    return f"stopped by {signal.Signals(ablation.signal_number).name}; missing: {missing}"


# ---- the chart ----

ENGINE_COLOURS = {"eager": "#0072B2", "compiled": "#E69F00", "fused": "#009E73"}
"""From Okabe and Ito, as the curves'."""


def draw_chart(ablation: Ablation, path_stem: Path) -> list[Path]:
    """Draws `path_stem`.svg and `path_stem`.png: images/s of each cell and, beside it, the cost of each factor."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    factors = [f for f in sorted(ablation.factors, key=_dearest_first) if f.cost == f.cost]
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.grid.axis": "x",
        "axes.axisbelow": True,
        "grid.color": "#e8e8e8",
        "ytick.major.size": 0,
        "hatch.linewidth": 0.6,
        "svg.hashsalt": "fastcifar",
    }
    with rc_context(style):
        rows = max(len(ablation.entries), len(factors))
        figure = Figure(figsize=(12 if factors else 7.5, 1.6 + 0.34 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(_machine(ablation), fontsize=12)
        panels = figure.subplots(1, 2 if factors else 1, width_ratios=[3, 2] if factors else None, squeeze=False)[0]
        _draw_cells(panels[0], ablation)
        if factors:
            _draw_factors(panels[1], factors, ablation)
        paths = [Path(f"{path_stem}{ending}") for ending in (".svg", ".png")]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=120)
    return paths


def _draw_cells(axes: Axes, ablation: Ablation) -> None:
    entries = ablation.entries
    first = entries[0]
    most = max(entry.spread[1] for entry in entries if entry.measurements)
    for row, entry in enumerate(entries):
        if not entry.measurements:
            what = "failed" if entry.failed else "cannot run" if entry.problem else "not measured"
            axes.text(0.005 * most, row, what, va="center", color="#777777", style="italic")
            continue
        low, high = entry.spread
        stock = entry.values["tuned"] is False
        axes.barh(
            row,
            entry.rate,
            0.72,
            xerr=[[entry.rate - low], [high - entry.rate]],
            color=ENGINE_COLOURS[entry.values["engine"]],
            alpha=0.55 if stock else 1.0,
            hatch="////" if stock else None,
            edgecolor="white",
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#222222"},
        )
        speed_up = f"  {entry.rate / first.rate:.2f}x" if first.measurements and entry is not first else ""
        axes.annotate(
            f"{entry.rate:,.0f}{speed_up}", (high, row), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.22)
    axes.set_xlabel("images/s, median and range of windows")
    axes.set_title(f"training step, speed-up over {first.name}")


def _draw_factors(axes: Axes, factors: Sequence[Factor], ablation: Ablation) -> None:
    from matplotlib.ticker import PercentFormatter

    assert ablation.fastest is not None
    for row, factor in enumerate(factors):
        low, high = (rate / factor.of.rate - 1 for rate in factor.without.spread)
        axes.barh(
            row,
            -factor.cost,
            0.72,
            xerr=[[-factor.cost - low], [high + factor.cost]],
            color="#56B4E9",
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#222222"},
        )
        axes.annotate(
            f"{-factor.cost:+.1%}", (max(high, 0), row), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(factors)), [f"{factor.name}\n{factor.change}" for factor in factors], fontsize=8.5)
    axes.invert_yaxis()
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.16 * (right - left))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("difference in images/s")
    axes.set_title(f"{ablation.fastest.name} with one thing changed")
