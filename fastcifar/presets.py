"""The presets: named configurations in configs/*.toml, each with what to expect of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastcifar.config import Config
from fastcifar.errors import UsageError
from fastcifar.layers import preset_path, presets_folder, read, resolve
from fastcifar.text import one_line

TRIALS = ("lr-0.05", "lr-0.5", "lr-0.01", "constant", "cosine", "wd-1e-4", "wd-5e-4", "final")
"""The presets of the report's eight trials, in its order."""

Metric = Literal["train_loss", "val_loss", "train_accuracy", "val_accuracy", "test_accuracy"]


class About(BaseModel):
    """What a preset says of itself. Losses and accuracies (0 to 1) are those of the last epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    summary: str = Field(description="one line: what it is")
    command: str = Field(description="runs it")
    time: str = Field(description="how long it takes, and where")
    source: str = Field(description="where the settings and the numbers to expect come from")
    report: dict[Metric, float] = Field(default={}, description="the report's numbers")
    reproductions: dict[Metric, Annotated[tuple[float, float], Field(strict=False)]] = Field(
        default={}, description="lowest and highest of the public reproductions, single seeds"
    )
    goal: dict[Metric, float] = Field(default={}, description="what a run must exceed")


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        name: the name of its file, without .toml.
        base: the preset that it derives from; None for the defaults.
        about: what it says of itself, and what to expect of it.
        own_settings: what it changes in its base.
        config: all settings.
    """

    name: str
    base: str | None
    about: About
    own_settings: Mapping[str, object]
    config: Config


def load_preset(name: str) -> Config:
    """The configuration of a preset.

    Raises:
        UsageError: there is no preset `name`; the message has the nearest one.
    """
    return find_preset(name).config


def find_preset(name: str) -> Preset:
    """A preset, with what it says of itself.

    Raises:
        UsageError: there is no preset `name`, or its file is damaged.
    """
    problems: list[str] = []
    path = preset_path(name, f"preset {one_line(name)}", problems)
    file = read(path, problems) if path else None
    if file is None:
        raise UsageError("\n".join(problems))
    config = resolve(name, None, [])
    try:
        about = About(**file.about)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"{file.where}: about.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError("\n".join(lines)) from error
    own = {key: getattr(config, key) for key in file.settings}
    return Preset(name, file.base, about, own, config)


def list_presets() -> list[Preset]:
    """All presets, each after the one it derives from."""
    presets = [find_preset(path.stem) for path in sorted(presets_folder().glob("*.toml"))]

    def below(base: str | None) -> Iterator[Preset]:
        for preset in presets:
            if preset.base == base:
                yield preset
                yield from below(preset.name)

    return list(below(None))
