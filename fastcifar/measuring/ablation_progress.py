"""The progress of an ablation on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TextIO

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.text import Text

from fastcifar.ui.display import format_seconds


class Progress:
    """Shows which cell is measured, how many processes are done, and the time left.

    On a terminal it is one live line; elsewhere a line is printed after each process.

    Args:
        file: where the progress is written; None is stderr.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stderr
        self._live: rich.progress.Progress | None = None
        if self._file.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _TimeLeft())
            console = Console(file=self._file, force_terminal=True, highlight=False)
            self._live = rich.progress.Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._task = self._live.add_task("", until=float("nan"))

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, name: str, number: int, done: int, total: int, seconds_left: float) -> None:
        """Shows what starts now.

        Args:
            name: the cell's name.
            number: the round, counted from 1.
            done: the number of processes that have ended.
            total: the number of processes in all.
            seconds_left: the estimated seconds until the end.
        """
        if self._live is not None:
            until = time.monotonic() + seconds_left
            self._live.update(
                self._task, description=f"round {number}: {name}", completed=done, total=total, until=until
            )

    def end(self, line: str, seconds_left: float) -> None:
        """Prints the result of a process, if there is no live line.

        Args:
            line: the result in words.
            seconds_left: the estimated seconds until the end.
        """
        if self._live is None:
            with contextlib.suppress(OSError, ValueError):  # stderr is closed
                print(f"{line}, {format_seconds(seconds_left)} left", file=self._file, flush=True)


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = task.fields["until"] - time.monotonic()
        return Text(f"{format_seconds(0.0 if seconds < 0 else seconds)} left", "cyan")
