"""Settings with several values: which trials they make, and what these are called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Literal, get_origin

from fastcifar.config import NAMES, RESUMABLE, Config
from fastcifar.spelling import format_value, parse_value
from fastcifar.studies.folder import Trial


def spread(
    settings: Sequence[tuple[str, str]], known: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Parts settings with one value from those with several, the axes of a grid.

    Args:
        settings: pairs of setting and text; commas are between values.
        known: settings that are an axis even with one value: those that the study's trials differ in already.

    Returns:
        The texts of the settings with one value, and the values of each axis, none twice, as `format_value` writes
        them.
    """
    common: dict[str, str] = {}
    axes: dict[str, list[str]] = {}
    for key, text in settings:
        name = key.replace("-", "_")
        if name in _axes() and ("," in text or name in known):
            axes[name] = list(dict.fromkeys(_written(name, part.strip()) for part in text.split(",")))
        else:
            common[name] = text
    return common, axes


def _axes() -> list[str]:
    """The settings that make another run, and whose values hold no comma."""
    names = [name for name in NAMES if name not in ("seed", *RESUMABLE)]
    types = {name: Config.model_fields[name].annotation for name in names}
    return [name for name in names if types[name] in (int, float, bool) or get_origin(types[name]) is Literal]


def _written(name: str, text: str) -> str:
    value = parse_value(name, text)
    return value if isinstance(value, str) else format_value(value)


def grid(start: str, axes: Mapping[str, Sequence[str]]) -> dict[str, Trial]:
    """The trials that start from `start`, one for each combination of values; their names say the values.

    Args:
        start: as in `Trial`.
        axes: the values by setting. Without any, there is one trial, with the name of its start.
    """
    trials = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = "-".join([start.removesuffix(".toml"), *(f"{key}={value}" for key, value in chosen.items())])
        trials[name] = Trial(start, chosen, (), 0)
    return trials


def trial_name(file: str) -> str:
    """The name of the trial that a settings file is: that of the file, in characters that a run's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(file).stem).strip("._-")[:64] or "own"
