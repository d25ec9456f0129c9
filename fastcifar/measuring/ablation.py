"""`fastcifar ablate`: images/s for a grid of settings, and what each choice of the fastest cell is worth.

    runs/ablate/20261123-143000/
      ablation.jsonl      the environment, a line for each process as it ends, then the cells and factors
      ablation.csv        a row for each cell
      ablation.txt        the tables
      ablation.svg, .png  the chart

Every measurement of a cell runs in a new process. Each round measures all cells once, in a new random order, so that a
machine that becomes slower slows down all cells alike. The first round finds the fastest cell. From then on the rounds
also measure cells that differ from the fastest cell in one factor.
"""

from __future__ import annotations

import csv
import itertools
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fastcifar import signals
from fastcifar.errors import UsageError
from fastcifar.measuring.ablation_chart import draw_chart
from fastcifar.measuring.ablation_progress import Progress
from fastcifar.measuring.ablation_results import (
    CHART,
    CSV,
    NUM_WINDOWS,
    TEXT,
    Ablation,
    Results,
    as_dict,
    beside,
    facts_of,
    machine_line,
    method_of,
    settings_line,
)
from fastcifar.measuring.ablation_text import text
from fastcifar.measuring.cell import Failure, Measurement, Method, measure
from fastcifar.measuring.grid import AXES, Entry, factors_of, plan
from fastcifar.run.environment import collect
from fastcifar.run.folder import RunFolder
from fastcifar.target import find_device


def ablate(
    settings: Sequence[tuple[str, str]],
    *,
    repeats: int = 3,
    window_seconds: float = 1.0,
    out: Path | None = None,
    attribution: bool = True,
    neighbour: bool = False,
    command: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Ablation:
    """Measures the cells that `settings` ask for, and writes each result to a folder as soon as it is known.

    Ctrl-C and SIGTERM end the measurement early; the results so far are kept and summarised.

    Args:
        settings: as for `plan`.
        repeats: how many processes measure each cell.
        window_seconds: the length of a window, in seconds. Each process measures `NUM_WINDOWS` windows.
        out: the folder, new or empty; None makes runs/ablate/<time>.
        attribution: whether the fastest cell is also measured without each of its factors.
        neighbour: whether each cell of the grid is also measured beside one busy process.
        command: the words of the user's command line, for the record.
        options: as for `plan`.

    Returns:
        The results.

    Raises:
        UsageError: a setting is wrong, no cell can run, or `out` is not empty or cannot be made.
    """
    entries = plan(settings, options)
    runnable = [entry.cell.config for entry in entries if entry.runs and entry.cell is not None]
    if not runnable:
        raise UsageError("\n".join(f"{entry.name}: cannot run: {entry.problem}" for entry in entries))
    device = find_device(runnable[0].device)
    path = _folder(out)
    environment = collect(str(device)) | {"command": list(command), "settings": runnable[0].model_dump(mode="json")}
    given = [name for key, _ in settings if (name := key.replace("-", "_")) not in AXES]
    ablation = Ablation(path, entries, repeats, window_seconds, environment, neighbour, list(dict.fromkeys(given)))
    order = random.Random(runnable[0].seed)
    with signals.as_interrupts() as stop, Results(path) as results, Progress() as progress:
        results.write("environment", environment | method_of(ablation))
        runner = _Runner(ablation, results, progress, attribution)
        try:
            for number in range(1, repeats + 1):
                runner.round(number, order.sample(ablation.all_entries, len(ablation.all_entries)))
                if number == 1 and attribution:
                    _attribute(ablation, device)
                    runner.round(number, order.sample(ablation.extra, len(ablation.extra)))
        except KeyboardInterrupt:
            ablation.signal_number = stop.number
        write_results(ablation, results)
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
    """Measures rounds of cells, keeps the results, and estimates the time that is left."""

    _EXPECTED_EXTRA = 5  # a guess of how many cells the attribution adds, used until the number is known

    def __init__(self, ablation: Ablation, results: Results, progress: Progress, attribution: bool) -> None:
        self._ablation, self._results, self._progress = ablation, results, progress
        self._attribution = attribution
        self._seconds: dict[int, float] = {}  # id of an entry -> seconds of its quickest process, whose code was cached
        self._done = 0

    def round(self, number: int, entries: Iterable[Entry]) -> None:
        """Measures each entry once more.

        Args:
            number: the number of the round, counted from 1.
            entries: the entries in the order of the round.
        """
        for entry in entries:
            if entry.cell is None or entry.problem:
                continue
            total, left = self._left()
            self._progress.begin(entry.name, number, self._done, total, left)
            start = time.monotonic()
            method = Method(
                NUM_WINDOWS,
                self._ablation.window_seconds,
                neighbour=self._ablation.neighbour and entry in self._ablation.entries,
                roofs=entry.cell.config.precision not in self._ablation.roofs,
            )
            found = measure(entry.cell, method, self._results.cache_of(entry))
            seconds = time.monotonic() - start
            self._seconds[id(entry)] = min(seconds, self._seconds.get(id(entry), seconds))
            self._done += 1
            text = self._keep(entry, found, number)
            self._progress.end(f"[{self._done}/{total}] {entry.name}: {text}", self._left()[1])

    def _keep(self, entry: Entry, found: Measurement | Failure, number: int) -> str:
        """Records what a process found, and returns it in a few words."""
        facts = {"cell": entry.name, **entry.values, **beside(entry), "round": number}
        if isinstance(found, Measurement):
            entry.measurements.append(found)
            if found.roofs is not None and entry.cell is not None:
                self._ablation.roofs[entry.cell.config.precision] = found.roofs
            self._results.write("measurement", facts | asdict(found))
            return f"{statistics.median(found.images_per_second):,.0f} images/s"
        entry.problem, entry.failed = found.message, not found.cannot_run
        error = {"error": found.kind, "message": found.message, "traceback": found.traceback}
        self._results.write("failure", facts | error)
        return f"{'failed' if entry.failed else 'cannot run'}: {found.message.splitlines()[0]}"

    def _left(self) -> tuple[int, float]:
        """The number of processes in all, done ones included, and the seconds that the rest will take."""
        a = self._ablation
        mean = statistics.fmean(self._seconds.values()) if self._seconds else float("nan")
        todo = {id(e): a.repeats - len(e.measurements) for e in a.all_entries if e.runs}
        more = self._EXPECTED_EXTRA * a.repeats if self._attribution and not a.factors else 0
        seconds = more * mean + sum(count * self._seconds.get(key, mean) for key, count in todo.items())
        return self._done + sum(todo.values()) + more, seconds


def _folder(out: Path | None) -> Path:
    """Makes the folder for the results."""
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


def write_results(ablation: Ablation, results: Results) -> None:
    """Writes the summaries of cells and factors, the CSV file, the tables and the chart.

    Args:
        ablation: the results; its folder receives the files.
        results: the file of JSON lines, which receives the summaries.
    """
    found = as_dict(ablation)
    cells = found["cells"]
    for cell in cells:
        results.write("cell", cell)
    for factor in found["factors"]:
        results.write("factor", factor)
    facts = facts_of(ablation)
    with open(ablation.path / CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*cells[0], *facts])
        writer.writeheader()
        writer.writerows({**cell, **facts} for cell in cells)
    (ablation.path / TEXT).write_text(text(ablation) + "\n", encoding="utf-8")
    if any(entry.measurements for entry in ablation.entries):
        title = f"{settings_line(ablation)}\n{machine_line(ablation)}"
        draw_chart(ablation.entries, ablation.factors, ablation.fastest, title, ablation.path / CHART)
