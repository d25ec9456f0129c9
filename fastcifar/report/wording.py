"""Numbers and names in words, as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping

from fastcifar.report.document import NOTHING
from fastcifar.stats import Sample

METRIC_NAMES: Mapping[str, str] = {
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "train_accuracy": "training accuracy",
    "val_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
}

PERCENT = "\N{NO-BREAK SPACE}%"


def is_share(metric: str) -> bool:
    return metric.endswith("accuracy")


def number(value: float | None, metric: str, sign: str = "") -> str:
    """A loss with four decimals, an accuracy in per cent with two."""
    if value is None:
        return NOTHING
    return f"{100 * value:{sign}.2f}{PERCENT}" if is_share(metric) else f"{value:{sign}.4f}"


def span(limits: tuple[float, float] | None, metric: str, sign: str = "") -> str:
    if limits is None:
        return NOTHING
    low, high = (number(limit, metric, sign).removesuffix(PERCENT) for limit in limits)
    return f"{low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high}" + PERCENT * is_share(metric)


def mean_and_sd(sample: Sample | None, metric: str, sign: str = "") -> str:
    if sample is None:
        return NOTHING
    if sample.sd is None:
        return number(sample.mean, metric, sign)
    mean, sd = number(sample.mean, metric, sign), number(sample.sd, metric)
    return f"{mean.removesuffix(PERCENT)}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{sd}"


def words(name: str) -> str:
    """A class's name as people write it."""
    return name.replace("_", " ")
