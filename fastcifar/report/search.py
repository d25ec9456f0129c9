"""The chapter of a search: its history, which settings matter, and the best trials."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastcifar.report import figures
from fastcifar.report.document import NOTHING, Block, Figure, Heading, Paragraph, Table
from fastcifar.report.markup import code, plain
from fastcifar.report.provenance import shortened_word
from fastcifar.report.wording import number

NUM_BEST = 10
"""Trials in the table; the CSV has all."""


@dataclass(frozen=True)
class SearchTrial:
    """A trial that the search has tried.

    Attributes:
        name: of the trial in the study.
        state: of its run, as in `PlannedRun`.
        value: its validation accuracy, 0 to 1; of a trial that was given up, that of its last epoch. None before one.
        epochs_done: how many epochs it has trained.
        settings: what was chosen, by setting.
        reason: why it was given up or failed; empty otherwise.
    """

    name: str
    state: str
    value: float | None
    epochs_done: int
    settings: Mapping[str, object]
    reason: str = ""


@dataclass(frozen=True)
class Searched:
    """What a search has come to.

    Attributes:
        start: what its trials start from: a preset, or the path of a settings file.
        settings: those of all trials beside their start, as text by setting.
        space: what each setting may be, as it was given.
        trials: in the order in which they began.
        importances: how much of the differences in accuracy each setting explains, 0 to 1; empty where nobody can say.
        by: what chose the settings.
        quick: whether its runs are small and on procedural images.
        epochs_scale: what the epochs of its trials are multiplied by.
    """

    start: str
    settings: Mapping[str, str]
    space: Mapping[str, str]
    trials: Sequence[SearchTrial]
    importances: Mapping[str, float]
    by: str
    quick: bool = False
    epochs_scale: float = 1.0

    @property
    def finished(self) -> list[SearchTrial]:
        """The finished trials, the best first."""
        found = [trial for trial in self.trials if trial.state == "finished" and trial.value is not None]
        return sorted(found, key=lambda trial: -(trial.value or 0.0))


def search_blocks(search: Searched) -> list[Block]:
    """The chapter: history, importance, and the best trials with the command that confirms the first of them."""
    given_up = sum(trial.state == "pruned" for trial in search.trials)
    space = ", ".join(code(f"{name} = {text}") for name, text in search.space.items())
    blocks: list[Block] = [
        Heading(2, "The search", "search"),
        Paragraph(
            f"{search.by} chose {space} by validation accuracy, and gave up {given_up} of {len(search.trials)} trials "
            "early. The test images were never looked at. Each trial is one run: the highest of many accuracies is too "
            "high, so the best settings are to be confirmed with several seeds."
        ),
    ]
    if best := search.finished:
        settings = {**search.settings, **best[0].settings}
        words = ["quick"] * search.quick + [search.start]
        words += ["--epochs-scale", str(search.epochs_scale)] * (search.epochs_scale != 1)
        words += [word for name, value in settings.items() for word in _option(name, value)]
        words += ["--seeds", "5", "--out", f"runs/{best[0].name}"]  # the usual folder may hold other settings
        command = shlex.join(["fastcifar", "study", *map(shortened_word, words)])
        value = number(best[0].value, "val_accuracy")
        blocks.append(Paragraph(f"Best: **{plain(best[0].name)}**, {value}. To confirm it: {code(command)}"))
    values = [(trial.value, trial.state == "finished") for trial in search.trials]
    told = f"best {number(best[0].value, 'val_accuracy')}" if best else "no finished trial"
    alt = f"Validation accuracy of {len(values)} trials in the order in which they began: {told}"
    caption = "**History.** A dot a trial, a cross one that was given up, the line the best so far."
    blocks.append(Figure("history", caption, [figures.draw_history("history", values, alt)]))
    if search.importances:
        told = figures.series(search.importances)
        caption = (
            "**Importance** of each setting for validation accuracy (Optuna's estimate from the finished trials; with "
            "few of them it says little)."
        )
        drawing = figures.draw_bars("importance", search.importances, "importance, %", f"Importance: {told}")
        blocks.append(Figure("importance", caption, [drawing]))
    return [*blocks, _table(search)]


def _option(name: str, value: object) -> list[str]:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return [f"--{name.replace('_', '-')}", text]


def _table(search: Searched) -> Table:
    def cells(trial: SearchTrial) -> list[str]:
        chosen = [trial.settings.get(name) for name in search.space]
        shown = [f"{value:.4g}" if isinstance(value, float) else plain(str(value)) for value in chosen]
        return [plain(trial.name), *shown, number(trial.value, "val_accuracy")]

    rows = [cells(trial) for trial in search.finished[:NUM_BEST]] or [[NOTHING] * (len(search.space) + 2)]
    data = [
        {"trial": trial.name, "state": trial.state, **trial.settings, "epochs": trial.epochs_done}
        | {"val_accuracy": trial.value, "reason": trial.reason}
        for trial in search.trials
    ]
    caption = "**The best trials**; the CSV has every trial"
    columns = ["trial", *map(code, search.space), "validation accuracy"]
    return Table("search", caption, columns, rows, data, stacked=False)
