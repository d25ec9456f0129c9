"""Numbers and names in words, as the page writes them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Collection, Mapping

from fastcifar.report.document import NOTHING
from fastcifar.report.markup import plain, printable
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
    """A class's name as people write it, as characters that can be shown. In a text of the document use `named`."""
    return printable(name.replace("_", " "))


def named(name: str) -> str:
    """A class's name as people write it, for a text of the document."""
    return plain(name.replace("_", " "))


def label(name: str, most: int = 32) -> str:
    """`words`, with the middle left out where a drawing has no room for it.

    Args:
        name: of a class or a trial.
        most: how wide it may be, in letters. An ideograph is as wide as two.
    """
    shown = words(name)
    if width(shown) <= most:
        return shown
    head = _fitting(shown, (most - 1) * 2 // 3)
    return f"{head}…{_fitting(shown[::-1], most - 1 - width(head))[::-1]}"


def width(text: str) -> int:
    """How many letters wide `text` is."""
    wide, none = ("W", "F"), ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(c) in none else 2 if unicodedata.east_asian_width(c) in wide else 1 for c in text
    )


def _fitting(text: str, most: int) -> str:
    """The beginning of `text` that is at most `most` letters wide."""
    end = 0
    while end < len(text) and width(text[: end + 1]) <= most:
        end += 1
    return text[:end]


def file_name(text: str, taken: Collection[str] = ()) -> str:
    """`text` as a part of a file's name: ASCII, short, and none of `taken`."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:60] or "unnamed"
    tries = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(name for name in tries if name not in taken)
