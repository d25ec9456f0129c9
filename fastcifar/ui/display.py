"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastcifar.text import printable
from fastcifar.ui import notebook
from fastcifar.ui.notes import unfailing

REDRAWS_PER_SECOND = 4
SECONDS_BETWEEN_LINES = 1.0  # quicker epochs are left out here; metrics.csv has them all
SECONDS_BETWEEN_SIGNS = 60.0  # of life within a long epoch, where there is no terminal

_WIDTHS = {"lr": 8, "train loss": 10, "train acc": 9, "val loss": 8, "val acc": 7, "images/s": 9, "left": 8}
LOADING = "loading data"
"""The phase that may download, with a bar of its own. It gets no live line: the two would overwrite each other."""
_TRAINING = "training"
_SHORTEST_BAR = 10
"""Columns that a progress bar needs to say something."""


class Display:
    """The progress of one run. It is a context, because a terminal must be left as it was found.

    `images` only counts. On a terminal a thread of rich draws four times a second, so that a person sees that a long
    phase is alive. In a notebook a bar is replaced four times a second. Elsewhere each epoch gets a line, and a long
    epoch a line a minute. Nothing that the stream refuses reaches the run.

    Args:
        file: where to write; stderr if not given.
        clock: seconds, for the time left and the throttling.
        shown: whether anything but notes is written.
    """

    def __init__(
        self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic, *, shown: bool = True
    ) -> None:
        self._file, self._clock = unfailing(sys.stderr if file is None else file), clock
        terminal = self._file.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        stream = cast(TextIO, self._file)
        self._shown = shown
        self._console = Console(file=stream, force_terminal=True, highlight=False) if terminal else None
        self._live: Live | None = None
        self._bar = notebook.Bar() if shown and file is None and notebook.is_here() else None
        self._phase, self._phase_start = "", clock()
        self._record: Mapping[str, Any] = {}
        self._val_accuracy: float | None = None
        # `images` counts what this process has trained; the rest says where on that count things began.
        self._count = self._epoch_count = self._rate_count = 0
        self._epochs = self._epoch = self._images_per_epoch = 0
        self._start = self._rate_start = self._last_line = 0.0
        self._next_sign = float("inf")

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the live line; what was printed above it stays. A second call does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start(self, epochs: int, images_per_epoch: int, start_epoch: int = 1, start_image: int = 0) -> None:
        """Begins the epochs.

        Args:
            epochs: the run's last epoch.
            images_per_epoch: how many images a whole epoch trains on.
            start_epoch: the first epoch to train, counted from 1.
            start_image: how many of its images are done already.
        """
        now = self._clock()
        self._epochs, self._epoch, self._images_per_epoch = epochs, start_epoch, images_per_epoch
        self._count = self._rate_count = 0
        self._epoch_count = -start_image
        self._start = self._rate_start = now
        self._last_line = now - SECONDS_BETWEEN_LINES
        self._next_sign = now + (SECONDS_BETWEEN_SIGNS if self._bar is None else 0.0)
        self._phase = _TRAINING
        self._go_live()
        if start_epoch <= epochs and self._bar is None:
            self._print(self._line("epoch", dict(zip(_WIDTHS, _WIDTHS, strict=True)), "bold"))

    def images(self, count: int) -> None:
        """Counts `count` more training images of the current epoch. It takes well under a microsecond."""
        self._count += count
        if self._phase is not _TRAINING:
            self._phase = _TRAINING
            self._rate_count, self._rate_start = self._count, self._clock()
        if self._live is None and self._clock() >= self._next_sign:
            if self._bar is not None:
                self._show_bar()
                return
            self._next_sign = self._clock() + SECONDS_BETWEEN_SIGNS
            share = (self._count - self._epoch_count) / self._images_per_epoch
            speed, left = self._images_per_second(), format_seconds(self._seconds_left())
            self._print(Text(f"{self._epoch}/{self._epochs} at {share:.0%}, {speed:,.0f} images/s, {left} left"))

    def phase(self, name: str) -> None:
        """Says what goes on beside training, such as `LOADING`, `compiling`, `validating`. `images` ends the phase."""
        self._phase, self._phase_start = name, self._clock()
        if name != LOADING:
            self._go_live()
        if self._bar is not None:
            self._show_bar()
        elif self._live is None and not 1 <= self._epoch <= self._epochs:
            self._print(Text(f"{name} ..."))

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Ends an epoch with its record. The record's keys are `run.names.EPOCH_KEYS`."""
        now, last = self._clock(), record["epoch"] == self._epochs
        self._record, self._epoch = record, record["epoch"] + 1
        if record["val_accuracy"] is not None:
            self._val_accuracy = record["val_accuracy"]
        self._epoch_count = self._rate_count = self._count
        self._rate_start, self._next_sign = now, now + SECONDS_BETWEEN_SIGNS
        self._phase = _TRAINING
        if self._bar is not None:
            self._show_bar()
            return
        if now - self._last_line < SECONDS_BETWEEN_LINES and not last:
            return
        self._last_line = now
        cells = {
            "lr": f"{record['lr']:.3g}",
            "train loss": _loss(record["train_loss"]),
            "train acc": _percent(record["train_accuracy"]),
            "val loss": _loss(record["val_loss"]),
            "val acc": _percent(record["val_accuracy"]),
            "images/s": f"{record['images_per_second']:,.0f}",
            "left": format_seconds(self._seconds_left()),
        }
        self._print(self._line(f"{record['epoch']}/{self._epochs}", cells))

    def remark(self, text: str) -> None:
        """Prints a line that stays, if anything but notes is shown.

        Args:
            text: as for `note`.
        """
        self._print(Text(printable(text)))

    def note(self, text: str) -> None:
        """Prints a line that stays, for what the user should know but that stops nothing.

        Args:
            text: the line. Characters in it that a terminal would obey are written as escapes.
        """
        self._print(Text.assemble(("note: ", "yellow"), printable(text)), is_note=True)

    def _go_live(self) -> None:
        if self._shown and self._console is not None and self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=REDRAWS_PER_SECOND,
                transient=True,
                redirect_stdout=False,  # results go there, and rich would send them to stderr
            )
            self._live.start()

    def _show_bar(self) -> None:
        """Replaces the notebook's bar."""
        assert self._bar is not None
        self._next_sign = self._clock() + 1 / REDRAWS_PER_SECOND
        total = self._epochs * self._images_per_epoch
        done = (self._epoch - 1) * self._images_per_epoch + self._count - self._epoch_count if total else 0
        self._bar.show(min(done / total, 1.0) if total else 0.0, "  ".join(self._words()))

    def _words(self) -> list[str]:
        """What is said beside the notebook's bar."""
        words = [f"epoch {min(self._epoch, self._epochs)}/{self._epochs}"] if self._epochs else []
        if self._record:
            words.append(f"loss {_loss(self._record['train_loss'])}")
            accuracy, split = self._val_accuracy, "val"
            if accuracy is None:
                accuracy, split = self._record["train_accuracy"], "train"
            words.append(f"{split} {_percent(accuracy)}")
        words.append(f"{self._images_per_second():,.0f} images/s" if self._phase is _TRAINING else self._phase)
        return [*words, f"{format_seconds(self._seconds_left())} left"] if self._epochs and self._count else words

    def _seconds_left(self) -> float:
        """Seconds to the last epoch's end at this process's pace so far, with validation and checkpoints; or NaN."""
        left = (self._epochs - self._epoch + 1) * self._images_per_epoch - (self._count - self._epoch_count)
        return left * (self._clock() - self._start) / self._count if self._count else float("nan")

    def _images_per_second(self) -> float:
        """The speed since training last began or went on; in the first second of that, the speed of the last epoch."""
        seconds = self._clock() - self._rate_start
        if seconds >= 1 or "images_per_second" not in self._record:
            return (self._count - self._rate_count) / seconds if seconds else 0.0
        return float(self._record["images_per_second"])

    def _line(self, epoch: str, cells: Mapping[str, str], style: str = "") -> Text:
        width = max(len("epoch"), 2 * len(str(self._epochs)) + 1)
        return Text("  ".join([f"{epoch:>{width}}", *(f"{cells[k]:>{w}}" for k, w in _WIDTHS.items())]), style)

    def _render(self) -> RenderableType:
        line = Table.grid(padding=(0, 2, 0, 0), expand=True)
        cells: list[RenderableType] = []
        if self._epochs:
            cells.append(Text(f"epoch {min(self._epoch, self._epochs)}/{self._epochs}", "bold"))
            done = self._count - self._epoch_count if self._epoch <= self._epochs else self._images_per_epoch
            cells.append(ProgressBar(self._images_per_epoch, done))
        if self._record:
            cells.append(Text(f"loss {_loss(self._record['train_loss'])}"))
            if self._val_accuracy is None:
                cells.append(Text(f"train {_percent(self._record['train_accuracy'])}"))
            else:
                cells.append(Text(f"val {_percent(self._val_accuracy)}"))
        if self._phase is _TRAINING:
            cells.append(Text(f"{self._images_per_second():,.0f} images/s"))
        elif self._phase:
            seconds = self._clock() - self._phase_start
            cells.append(Text(self._phase + (f" {format_seconds(seconds)}" if seconds >= 1 else "")))
        if self._epochs and self._count:
            cells.append(Text(f"{format_seconds(self._seconds_left())} left", "cyan"))
        words = [cell for cell in cells if isinstance(cell, Text)]
        if self._console is not None and self._console.width < sum(word.cell_len + 2 for word in words) + _SHORTEST_BAR:
            return Text("  ").join(words)  # wrapped, without the bar: nothing is cut
        for cell in cells:
            line.add_column(no_wrap=True, ratio=1 if isinstance(cell, ProgressBar) else None)
        line.add_row(*cells)
        return line

    def _print(self, text: Text, *, is_note: bool = False) -> None:
        if not (self._shown or is_note):
            return
        if self._console is not None:
            self._console.print(text, soft_wrap=True)
            return
        self._file.write(f"{text.plain}\n")
        self._file.flush()
        if self._file.is_gone:
            self._next_sign = float("inf")


def format_seconds(seconds: float) -> str:
    """`0:07`, `12:34`, `2:51:00`; `-` for what is not known."""
    if seconds != seconds:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
