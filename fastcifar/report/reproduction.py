"""The report from front to back: each of its tables and figures, ours beside theirs."""

from __future__ import annotations

from collections.abc import Sequence

from fastcifar.data.dataset import Dataset
from fastcifar.report import course
from fastcifar.report.curves import curves_figure
from fastcifar.report.document import Block, Heading
from fastcifar.report.images import data_chapter
from fastcifar.report.mixup import mixup_chapter
from fastcifar.report.result_tables import result_table, settings_table
from fastcifar.report.results import Results, Trial


def report_chapters(results: Results, dataset: Dataset | None, problem: str) -> list[Block]:
    """Tables 1 to 12 and figures 1 and 4 to 10, in the report's order."""

    def trials(names: Sequence[str]) -> list[Trial | None]:
        return [results.trial(name) for name in names]

    o = course
    return [
        *data_chapter(results, dataset, problem),
        Heading(2, "Learning rate", "learning-rate"),
        settings_table(o.LR_SETTINGS, results),
        result_table(o.LR_LOSS, results),
        result_table(o.LR_ACCURACY, results),
        curves_figure(5, "figure-05", "Loss and accuracy with three learning rates", trials(o.LR_LOSS.trials)),
        Heading(2, "Learning-rate schedule", "schedule"),
        settings_table(o.SCHEDULE_SETTINGS, results),
        result_table(o.SCHEDULE_LOSS, results),
        result_table(o.SCHEDULE_ACCURACY, results),
        curves_figure(
            6, "figure-06", "Loss and accuracy without and with cosine annealing", trials(o.SCHEDULE_LOSS.trials)
        ),
        Heading(2, "Weight decay", "weight-decay"),
        settings_table(o.DECAY_SETTINGS, results),
        result_table(o.DECAY_LOSS, results),
        result_table(o.DECAY_ACCURACY, results),
        curves_figure(7, "figure-07", "Loss and accuracy with two weight decays", trials(o.DECAY_LOSS.trials)),
        *mixup_chapter(results, dataset),
        Heading(2, "Final result", "final-result"),
        result_table(o.SUMMARY, results),
    ]
