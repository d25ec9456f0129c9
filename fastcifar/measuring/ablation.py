"""What each choice is worth on this machine: images/s over a grid of settings, and with one factor removed at a time.

    runs/ablate/20261123-143000/
      ablation.jsonl      the environment, a line for each process as it ends, then the cells and factors
      ablation.csv        a row a cell
      ablation.txt        the tables
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import rich.progress
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.text import Text

from fastcifar.errors import UsageError
from fastcifar.measuring.ablation_chart import draw_chart
from fastcifar.measuring.cell import NUM_IMAGES, Failure, Measurement, measure
from fastcifar.measuring.grid import QUIET, Entry, Factor, dearest_first, factors_of, plan
from fastcifar.run.environment import collect
from fastcifar.run.folder import RunFolder
from fastcifar.target import find_device
from fastcifar.ui.display import format_seconds

NUM_WINDOWS = 3
"""Of each process."""

JSONL, CSV, TEXT, CHART = "ablation.jsonl", "ablation.csv", "ablation.txt", "ablation"


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
            self._task = self._live.add_task("", until=float("nan"))

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
        seconds = task.fields["until"] - time.monotonic()
        return Text(f"{format_seconds(0.0 if seconds < 0 else seconds)} left", "cyan")


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
    (ablation.path / TEXT).write_text(text(ablation) + "\n", encoding="utf-8")
    if any(entry.measurements for entry in ablation.entries):
        where = ablation.path / CHART
        draw_chart(ablation.entries, ablation.factors, ablation.fastest, _machine(ablation), where)


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
        "num_left_out": entry.num_left_out,
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
    return {
        "factor": factor.name,
        "change": factor.change,
        "without": factor.without.name,
        "of": factor.of.name,
        "cost": factor.cost if factor.measured else None,
        "problem": factor.without.problem,
    }


def text(ablation: Ablation) -> str:
    """The tables, and how to read them."""
    parts = _aligned(*cell_table(ablation), left=1)
    if (fastest := ablation.fastest) is not None:
        parts += ["", f"{fastest.name} ({fastest.rate:,.0f} images/s) with one thing changed:"]
        parts += _aligned(*factor_table(ablation), left=2)
    return "\n".join([*parts, "", *remarks(ablation)])


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table whose first `left` columns are words. Never cut to the terminal: numbers would go first."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def cell_table(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a cell each."""
    epochs = next(entry.cell.config.epochs for entry in ablation.entries if entry.cell)
    header = ["cell", "images/s", "range", "speed-up", f"{epochs} epochs", "compile s", "GiB"]
    on_gpu = any(m.device_memory_gib is not None for entry in ablation.entries for m in entry.measurements)
    header += ["GPU GiB"] * on_gpu
    rows = []
    for entry in ablation.entries:
        s = _summary(ablation, entry)
        if not entry.measurements:
            what = "failed" if entry.failed else "cannot run" if entry.problem else "-"
            rows.append([entry.name, what, *[""] * (len(header) - 2)])
            continue
        again = "" if s["compile_seconds_again"] is None else f" ({s['compile_seconds_again']:.1f})"
        row = [
            entry.name,
            f"{s['images_per_second']:,.0f}",
            f"{s['slowest_window']:,.0f}-{s['fastest_window']:,.0f}",
            "-" if s["speed_up"] is None else f"{s['speed_up']:.2f}x",
            format_seconds(s["run_seconds_computed"]),
            f"{s['compile_seconds']:.1f}{again}",
            f"{s['host_memory_gib']:.2f}",
        ]
        rows.append([*row, f"{s['device_memory_gib']:.2f}"] if on_gpu else row)
    return header, rows


def factor_table(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a factor each, the dearest first; a star where it is not the fastest that is compared with."""
    rows = []
    for factor in dearest_first(ablation.factors):
        if not factor.measured:
            rows.append([factor.name, factor.change, "failed" if factor.without.failed else "not measured", "", ""])
            continue
        low, high = factor.without.spread
        star = " " if factor.of is ablation.fastest else "*"
        cells = [f"{factor.without.rate:,.0f}", f"{low:,.0f}-{high:,.0f}", f"{-factor.cost:+.1%}{star}"]
        rows.append([factor.name, factor.change, *cells])
    return ["factor", "change", "images/s", "range", "difference "], rows


def remarks(ablation: Ablation) -> list[str]:
    """How to read the tables; what could not run, what failed, and what is missing."""
    windows = NUM_WINDOWS * ablation.repeats
    lines = [
        f"images/s: median and range of {windows} windows of {ablation.window_seconds:g} s, in "
        f"{ablation.repeats} process{'es' * (ablation.repeats > 1)} a cell; speed-up over the first row",
        f"epochs: computed from images/s, for {NUM_IMAGES:,} images an epoch, without validation; not run",
        "compile s: first batch and step, from nothing (and from the cell's own cache), not in images/s; GiB: peak",
        _machine(ablation),
    ]
    if left_out := sum(entry.num_left_out for entry in ablation.all_entries):
        lines.append(f"{left_out} windows left out: other programs used more than {QUIET:.0%} of the cores")
    if disturbed := [entry.name for entry in ablation.all_entries if entry.disturbed]:
        lines.append(f"other programs used more than {QUIET:.0%} of the cores in all windows of {'; '.join(disturbed)}")
    stars = [factor for factor in ablation.factors if factor.of is not ablation.fastest]
    lines += [f"*{f.name}: of {f.of.name}'s, because engine = fused computes in channels_last only" for f in stars]
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
