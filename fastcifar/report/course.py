"""What the original course report prints: its numbered tables and figures, and the numbers that no preset holds.

The report is "AI6103 Deep Learning: Homework Assignment" by Adnan Azmat (Nanyang Technological University). Losses and
accuracies of its trials, with the range of seven public reproductions of the same assignment, stand in the presets
(configs/*.toml, [about.report] and [about.reproductions]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastcifar.presets import Metric


@dataclass(frozen=True)
class ResultTable:
    """A table of losses or accuracies after the last epoch."""

    number: int
    caption: str
    trials: tuple[str, ...]
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class SettingsTable:
    """A table of what the trials were trained with: a row a trial, what it states by setting."""

    number: int
    caption: str
    rows: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Comparison:
    """A step of the report: `after` against `before`, and what was changed."""

    before: str
    after: str
    change: str


_LRS = ("lr-0.05", "lr-0.5", "lr-0.01")
_SCHEDULES = ("constant", "cosine")
_DECAYS = ("wd-1e-4", "wd-5e-4")
_LOSSES: tuple[Metric, ...] = ("train_loss", "val_loss")
_ACCURACIES: tuple[Metric, ...] = ("train_accuracy", "val_accuracy")

TABLE_1 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2009, 0.1984, 0.2023)}
"""Under the headings Red, Blue, Green; the values are those of red, green and blue."""

LR_SETTINGS = SettingsTable(
    2,
    "Parameter settings for the learning rate",
    {name: {"lr": lr, "epochs": 15} for name, lr in zip(_LRS, (0.05, 0.5, 0.01), strict=True)},
)
LR_LOSS = ResultTable(3, "Training and validation loss after 15 epochs", _LRS, _LOSSES)
LR_ACCURACY = ResultTable(4, "Training and validation accuracy after 15 epochs", _LRS, _ACCURACIES)
SCHEDULE_SETTINGS = SettingsTable(
    5,
    "Parameter settings for the learning-rate schedule",
    {
        "constant": {"lr": 0.05, "epochs": 300, "lr_schedule": "constant"},
        "cosine": {"lr": 0.05, "epochs": 300, "lr_schedule": "cosine"},
    },
)
SCHEDULE_LOSS = ResultTable(6, "Training and validation loss after 300 epochs", _SCHEDULES, _LOSSES)
SCHEDULE_ACCURACY = ResultTable(7, "Training and validation accuracy after 300 epochs", _SCHEDULES, _ACCURACIES)
DECAY_SETTINGS = SettingsTable(
    8,
    "Parameter settings for weight decay",
    {
        name: {"lr": 0.05, "epochs": 300, "lr_schedule": "cosine", "weight_decay": decay}
        for name, decay in zip(_DECAYS, (1e-4, 5e-4), strict=True)
    },
)
DECAY_LOSS = ResultTable(9, "Training and validation loss after 300 epochs", _DECAYS, _LOSSES)
DECAY_ACCURACY = ResultTable(10, "Training and validation accuracy after 300 epochs", _DECAYS, _ACCURACIES)
MIXUP_SETTINGS = SettingsTable(
    11,
    "Parameter settings for MixUp",  # the report repeats "for weight-decay" here
    {"final": {"lr": 0.05, "epochs": 300, "lr_schedule": "cosine", "weight_decay": 5e-4, "mixup_alpha": 0.2}},
)
SUMMARY = ResultTable(
    12,
    "Summary of model performance",
    ("final",),
    ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "test_accuracy"),
)

COMPARISONS = (
    Comparison("lr-0.05", "lr-0.5", "learning rate 0.5 in place of 0.05"),
    Comparison("lr-0.05", "lr-0.01", "learning rate 0.01 in place of 0.05"),
    Comparison("lr-0.01", "lr-0.5", "learning rate 0.5 in place of 0.01"),
    Comparison("constant", "cosine", "cosine schedule in place of a constant learning rate"),
    Comparison("cosine", "wd-1e-4", "weight decay 1e-4 in place of none"),
    Comparison("cosine", "wd-5e-4", "weight decay 5e-4 in place of none"),
    Comparison("wd-1e-4", "wd-5e-4", "weight decay 5e-4 in place of 1e-4"),
    Comparison("wd-5e-4", "final", "MixUp (alpha 0.2) in place of none"),
)
"""Every comparison that the report draws a conclusion from."""

FIGURE_8_ALPHA = 0.5
"""The MixUp alpha in the caption of the report's figure 8; table 11 says 0.2."""

REPRODUCED_MIXUP_TRAIN_ACCURACY = 0.862
"""Lambda-weighted training accuracy of `final` in the public reproductions."""
