"""What a person sees of a study: one progress over all runs, on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastcifar.run.folder import RunFolder
from fastcifar.run.planned import PlannedRun
from fastcifar.studies.folder import Study, last_record
from fastcifar.ui.display import REDRAWS_PER_SECOND, SECONDS_BETWEEN_SIGNS, format_seconds


class Progress:
    """One progress for the whole study, on stderr: live on a terminal; elsewhere a line a run, and one a minute.

    Args:
        file: where to write; stderr if not given.
        clock: seconds, for the time left.
    """

    def __init__(
        self,
        study: Study,
        runs: Sequence[PlannedRun],
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._clock = file or sys.stderr, clock
        terminal = self._file.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._console = Console(file=self._file, force_terminal=True, highlight=False) if terminal else None
        self._live: Live | None = None
        self._epochs = {run.name: run.epochs_done if run.state == "pruned" else run.epochs for run in runs}
        self._done = {run.name: run.epochs if run.state == "finished" else run.epochs_done for run in runs}
        self._ended = {run.name for run in runs if run.state == "finished"}
        self._running: list[tuple[str, float | None]] = []
        self._phase = ""
        self._start, self._start_done = clock(), sum(self._done.values())
        self._next_sign = clock() + SECONDS_BETWEEN_SIGNS
        self._headline = _headline(study, runs, self._ended)

    def __enter__(self) -> Progress:
        self.line(self._headline)
        if self._console is not None:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=REDRAWS_PER_SECOND,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, running: Sequence[PlannedRun]) -> None:
        """Reads how far the runs in training are."""
        self._running = []
        for run in running:
            record = last_record(run.path) or {}
            self._done[run.name] = int(record.get("epoch", 0))
            self._running.append((run.name, record.get("val_accuracy")))
        if self._live is None and self._clock() >= self._next_sign:
            self._next_sign = self._clock() + SECONDS_BETWEEN_SIGNS
            now = ", ".join(self._position(*each) for each in self._running)
            self.line(f"{self._totals()}, {format_seconds(self._seconds_left())} left; now {now}")

    def finished(self, run: PlannedRun) -> None:
        """A run's line with its result."""
        self._done[run.name] = run.epochs
        self._ended.add(run.name)
        self._next_sign = self._clock() + SECONDS_BETWEEN_SIGNS
        summary = RunFolder.open(run.path, note=lambda _: None).summary() or {}
        accuracies = {split: summary.get(f"{split}_accuracy") for split in ("val", "test")}
        cells = [f"{split} {value:.2%}" for split, value in accuracies.items() if isinstance(value, (int, float))]
        took, left = format_seconds(summary.get("process_seconds", float("nan"))), self._seconds_left()
        count = f"{len(self._ended):>{len(str(len(self._epochs)))}}/{len(self._epochs)}"
        width = max(map(len, self._epochs))
        self.line(f"{count}  {run.name:<{width}}  {'  '.join(cells)}  in {took}, {format_seconds(left)} left")

    def ended(self, run: PlannedRun, how: str) -> None:
        """A run's line with how it ended early; its remaining epochs are no longer waited for."""
        self._epochs[run.name] = self._done[run.name]
        self.line(f"{run.name} {how}")

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._console is not None:
            self._console.print(Text(text), soft_wrap=True)
            return
        with contextlib.suppress(OSError, ValueError):  # whoever watched is gone: the study goes on
            print(text, file=self._file, flush=True)

    def note(self, text: str) -> None:
        """What a user should know but that stops nothing."""
        self.line(f"note: {text}")

    def phase(self, name: str) -> None:
        """Says what comes after training."""
        self._phase = name
        if self._live is None:
            self.line(f"{name} ...")

    def _seconds_left(self) -> float:
        """At the pace of this process so far, start and end of the runs included."""
        done = sum(self._done.values())
        if (new := done - self._start_done) <= 0:
            return float("nan")
        return (sum(self._epochs.values()) - done) * (self._clock() - self._start) / new

    def _totals(self) -> str:
        epochs = f"{sum(self._done.values()):,}/{sum(self._epochs.values()):,} epochs"
        return f"{len(self._ended)}/{len(self._epochs)} runs, {epochs}"

    def _position(self, name: str, val_accuracy: float | None) -> str:
        epoch = f"{name} {self._done[name]}/{self._epochs[name]}"
        return epoch if val_accuracy is None else f"{epoch} val {val_accuracy:.2%}"

    def _render(self) -> RenderableType:
        overall = Table.grid(padding=(0, 2, 0, 0), expand=True)
        left = f"{format_seconds(self._seconds_left())} left"
        cells: list[RenderableType] = [
            Text(self._totals(), "bold"),
            ProgressBar(sum(self._epochs.values()), sum(self._done.values())),
            Text(self._phase or left, "cyan"),
        ]
        for cell in cells:
            overall.add_column(no_wrap=True, ratio=1 if isinstance(cell, ProgressBar) else None)
        overall.add_row(*cells)
        running = [] if self._phase else [Text(f"  {self._position(*each)}", no_wrap=True) for each in self._running]
        return Group(overall, *running)


def _headline(study: Study, runs: Sequence[PlannedRun], ended: set[str]) -> str:
    trials, seeds = {run.trial for run in runs}, {run.seed for run in runs}
    parts = [f"{len(trials)} trial{'s' * (len(trials) > 1)}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"]
    parts += ["quick: small runs on procedural images"] * study.quick
    parts += [f"a search of {', '.join(study.search.space)}"] if study.search else []
    parts += [f"epochs x {study.epochs_scale:g}"] * (study.epochs_scale != 1)
    parts += [f"{key} = {text}" for key, text in study.settings.items()]
    parts += [f"{len(ended)} of {len(runs)} runs finished before"] * bool(ended)
    return f"study {study.path}: {'; '.join(parts)}"
