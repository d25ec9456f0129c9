"""What a search may choose: `lr=log:0.01..1,batch_size=64|128,mixup_alpha=0..0.5`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastcifar.config import Config, about
from fastcifar.errors import UsageError
from fastcifar.layers import parse_overrides
from fastcifar.spelling import allowed, nearest_setting
from fastcifar.text import did_you_mean, one_line

_EXPECTED = "expected LOW..HIGH, log:LOW..HIGH, or values such as A|B|C"
_GROUPS = ("augmentation", "model", "optimisation")
_FIXED = ("seed", "epochs")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        is_log: whether each factor is as likely as any other, and not each difference.
        is_integer: whether the setting is an integer.
    """

    low: float
    high: float
    is_log: bool
    is_integer: bool


@dataclass(frozen=True)
class Choice:
    """One of several values, as text."""

    values: tuple[str, ...]


def space_of(text: str) -> dict[str, str]:
    """The settings that a search may choose, each with what it may be.

    Args:
        text: `SETTING=VALUES`, separated by commas.

    Raises:
        UsageError: for all that is wrong, a line each.
    """
    problems: list[str] = []
    space: dict[str, str] = {}
    for part in text.split(","):
        key, equals, values = (word.strip() for word in part.partition("="))
        name = key.replace("-", "_")
        entry = f"--search {one_line(part.strip())}"
        if not equals:
            problems.append(f"{entry}: expected SETTING=VALUES, such as lr=log:0.01..1")
        elif name not in Config.model_fields:
            problems.append(f"{entry}: there is no such setting{did_you_mean(nearest_setting(name))}")
        elif name in space:
            problems.append(f"{entry}: {name} is there twice")
        elif name in _FIXED or about(name)["group"] not in _GROUPS:
            problems.append(f"{entry}: a search chooses how a model is trained, and {name} is the same for all trials")
        else:
            space[name] = values
            problems += _problems(entry, name, values)
    if problems:
        raise UsageError("\n".join(problems))
    return space


def parse(space: Mapping[str, str]) -> dict[str, Range | Choice]:
    """What `space_of` has accepted, as numbers and values."""
    return {name: _values(name, text) for name, text in space.items()}


def _values(name: str, text: str) -> Range | Choice:
    """Raises ValueError where `text` is neither a range nor a choice."""
    if "|" in text:
        return Choice(tuple(dict.fromkeys(value.strip() for value in text.split("|"))))
    low, dots, high = text.removeprefix("log:").partition("..")
    if not dots:
        raise ValueError
    is_integer = Config.model_fields[name].annotation is int
    convert = int if is_integer else float
    return Range(convert(low), convert(high), text.startswith("log:"), is_integer)


def _problems(entry: str, name: str, text: str) -> list[str]:
    try:
        found = _values(name, text)
    except ValueError:
        return [f"{entry}: {_EXPECTED}"]
    ends: tuple[str, ...]
    if isinstance(found, Choice):
        ends = found.values
    else:
        if Config.model_fields[name].annotation not in (int, float):
            return [f"{entry}: {name} is no number: {_EXPECTED.partition(', or ')[2]}"]
        if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high):
            return [f"{entry}: the first number must be below the second one"]
        if found.is_log and found.low <= 0:
            return [f"{entry}: a logarithmic range begins above 0"]
        ends = (repr(found.low), repr(found.high))
    problems = []
    for value in ends:
        try:
            parse_overrides([(name, value)], [name])
        except UsageError:
            problems.append(f"{entry}: {name} = {one_line(value)}: expected {allowed(name)}")
    return problems
