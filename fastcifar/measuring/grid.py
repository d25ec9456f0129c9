"""The cells of an ablation: a grid of settings, and cells that differ from the fastest cell in one factor."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastcifar import ops
from fastcifar.config import Config
from fastcifar.errors import UsageError
from fastcifar.layers import from_dict, resolve, resolve_layers
from fastcifar.loaders import augmentation_of
from fastcifar.measuring.cell import NUM_IMAGES, Cell, Measurement
from fastcifar.spelling import parse_value
from fastcifar.target import Target, fast_precisions, find_device

AXES = ("engine", "precision", "loader", "memory_format", "batch_size", "tuned", "compile_mode")
"""The settings that may have several values: the axes of the grid."""

_OF_ENGINE = {"compile_mode": "compiled"}
"""Axes that concern one engine only, and the engine. Cells of other engines have no values on these axes."""

UNUSED = ("data", "mirror", "val_size", "split_seed", "eval_batch_size", "eval_every", "checkpoint_seconds")
"""Settings that are refused here, because an ablation reads no data, and evaluates and saves nothing."""

QUIET = 0.05
"""A window counts if other programs use no more than this share of the cores."""

RESIDENT = ("resident", "device")
"""The values of `loader` and `images_on` with which the device makes the batches."""


@dataclass
class Entry:
    """A cell of the ablation with its results.

    Attributes:
        name: such as `fused bf16, batch 256`.
        values: the cell's value on each axis.
        cell: what is measured; None if the settings contradict each other.
        problem: why the cell was not measured, or not as often as asked for; empty if there is no problem.
        failed: whether the problem is a failure. If not, this machine cannot run the cell.
        measurements: one for each process.
    """

    name: str
    values: dict[str, Any]
    cell: Cell | None = None
    problem: str = ""
    failed: bool = False
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether the cell can be measured."""
        return self.cell is not None and not self.problem

    @property
    def windows(self) -> list[float]:
        """Images a second of the windows that count: all quiet windows or, if none was quiet, all windows."""
        return [rate for rate, others in self._windows if others <= QUIET] or [rate for rate, _ in self._windows]

    @property
    def num_left_out(self) -> int:
        """The number of windows that do not count because other programs used the cores."""
        return len(self._windows) - len(self.windows)

    @property
    def disturbed(self) -> bool:
        """Whether no window was quiet."""
        return bool(self._windows) and min(others for _, others in self._windows) > QUIET

    @property
    def _windows(self) -> list[tuple[float, float]]:
        """Images a second of each window, and the other programs' share of the cores; 0 if not known."""
        pairs = [zip(m.images_per_second, m.others or itertools.repeat(0.0), strict=False) for m in self.measurements]
        return [pair for windows in pairs for pair in windows]

    @property
    def rate(self) -> float:
        """Images a second: the median of the windows that count; NaN without measurements."""
        return statistics.median(self.windows) if self.measurements else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """Images a second of the slowest and of the fastest window that counts."""
        return min(self.windows), max(self.windows)

    @property
    def beside_neighbour(self) -> float | None:
        """The share of images/s that is left beside one busy process, 0 to 1; None if that was not measured."""
        beside = [rate for measurement in self.measurements for rate in measurement.beside_neighbour]
        return statistics.median(beside) / self.rate if beside else None


@dataclass
class Factor:
    """One choice of the fastest cell, and the cell without that choice.

    Attributes:
        name: the choice, such as `engine`.
        change: the choice and what replaces it, such as `fused -> eager`.
        without: the cell without the choice.
        of: the cell that `without` is compared with. It is the fastest cell, except for the memory format of a fused
            cell: the fused engine has no other format, so that two eager cells are compared.
    """

    name: str
    change: str
    without: Entry
    of: Entry

    @property
    def measured(self) -> bool:
        """Whether both cells have measurements."""
        return bool(self.without.measurements and self.of.measurements)

    @property
    def cost(self) -> float:
        """The share of images/s that is lost without the choice; negative if the cell without it is faster.

        NaN if one of the two cells was not measured.
        """
        return 1 - self.without.rate / self.of.rate


def plan(settings: Sequence[tuple[str, str]], options: Sequence[str] = ()) -> list[Entry]:
    """The cells of a grid of settings.

    Without `engine` in the settings, the grid has all engines; without `precision`, it has all precisions that are fast
    on the device. If another axis has several values, the grid has instead the one engine and the one precision that a
    run would take by default. On the CPU, without `tuned` in the settings, the first cell is untuned PyTorch: eager,
    fp32.

    Args:
        settings: pairs of a setting's name and its text. On an axis the text may be a list with commas.
        options: names of command-line options, which are suggested beside the settings if a name is mistyped.

    Returns:
        An entry for each cell. The first one is the reference that speed-ups refer to.

    Raises:
        UsageError: settings are wrong; the message has a line for each problem.
    """
    axes, fixed = _axes(settings, options)
    device = find_device(resolve(None, None, fixed).device)
    listed = [name for name, texts in axes.items() if len(texts) > 1 and name not in ("engine", "precision")]
    axes.setdefault("engine", ["auto"] if listed else ["eager", "compiled", "fused"])
    axes.setdefault("precision", ["auto"] if listed else fast_precisions(device))
    for name, engine in _OF_ENGINE.items():
        if name in listed and engine not in axes["engine"]:
            raise UsageError(
                f"command line: --{name.replace('_', '-')}: only for engine = {engine}: name it in --engine"
            )
    names = [name for name in AXES if name in axes]
    combinations = [dict(zip(names, texts, strict=True)) for texts in itertools.product(*(axes[n] for n in names))]
    if device.type == "cpu" and "tuned" not in axes:
        stock = {"engine": "eager", "precision": "fp32", "memory_format": "channels_last", "tuned": "false"}
        combinations.insert(0, combinations[0] | stock)
    entries: dict[tuple[object, ...], Entry] = {}
    for values in combinations:
        kept = {k: v for k, v in values.items() if _OF_ENGINE.get(k, values["engine"]) == values["engine"]}
        entry = _entry(kept, fixed, device)
        entries.setdefault(tuple(entry.values.values()), entry)
    _name(list(entries.values()))
    return list(entries.values())


def _axes(
    settings: Sequence[tuple[str, str]], options: Sequence[str]
) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """The texts of each axis in `settings`, and the other settings. Each text of an axis is checked by itself."""
    axes: dict[str, list[str]] = {}
    fixed, problems = [], []
    for key, text in settings:
        name = key.replace("-", "_")
        if name in UNUSED:
            problems.append(
                f"command line: --{key} {text}: nothing to set here: {NUM_IMAGES:,} images of random bytes are trained "
                "on, and nothing is evaluated or saved"
            )
        elif name in AXES:
            axes[name] = list(dict.fromkeys(part.strip() for part in text.split(",")))
        else:
            fixed.append((key, text))
    for name, texts in axes.items():
        problems += _problems([[(name.replace("_", "-"), text)] for text in texts], options)
    problems += _problems([fixed], options)
    if problems:
        raise UsageError("\n".join(problems))
    return axes, fixed


def _problems(groups: Iterable[Sequence[tuple[str, str]]], options: Sequence[str]) -> list[str]:
    found = []
    for pairs in groups:
        try:
            resolve_layers(None, None, pairs, options)
        except UsageError as error:
            found.append(str(error))
    return found


def _entry(values: Mapping[str, str], fixed: Sequence[tuple[str, str]], device: torch.device) -> Entry:
    """The entry of the cell with these settings; if they contradict each other, an entry without a cell."""
    try:
        return _entry_of(Cell(Target.of(resolve(None, None, [*fixed, *values.items()])).config), device)
    except UsageError as error:
        given = {name: parse_value(name, text) for name, text in values.items()}
        defaults = {name: Config.model_fields[name].default for name in AXES}
        return Entry("", defaults | given, problem=str(error).removeprefix("command line: "))


def _entry_of(cell: Cell, device: torch.device) -> Entry:
    config = cell.config
    entry = Entry("", {name: getattr(config, name) for name in AXES}, cell)
    if config.engine == "fused" and not ops.available(device.type):
        entry.problem = ops.why_unavailable(device.type)
    return entry


_WORDS: Mapping[str, Callable[[Any], str]] = {
    "loader": str,
    "memory_format": str,
    "batch_size": lambda value: f"batch {value}",
    "compile_mode": str,
}


def _name(entries: Sequence[Entry]) -> None:
    """Names each entry by its engine, its precision, and its values on the other axes on which entries differ."""
    for entry in entries:
        values = entry.values
        stock = values["tuned"] is False and values["engine"] != "fused"
        parts = [f"{'stock ' * stock}{values['engine']} {values['precision']}"]
        for axis, word in _WORDS.items():
            if (
                len({e.values[axis] for e in entries}) > 1
                and _OF_ENGINE.get(axis, values["engine"]) == values["engine"]
            ):
                parts.append(word(values[axis]))
        if values["tuned"] is False and not stock:
            parts.append("untuned")
        entry.name = ", ".join(parts)


def factors_of(fastest: Entry, entries: Sequence[Entry], device: torch.device) -> list[Factor]:
    """The choices of the fastest cell that can be undone, each with the cell without it.

    Args:
        fastest: the fastest entry.
        entries: the entries of the grid. A cell that is among them is not made again.
        device: the device of all cells.

    Returns:
        A factor for each choice.
    """
    assert fastest.cell is not None
    config = fastest.cell.config
    known = {entry.cell: entry for entry in entries if entry.cell is not None}

    def entry(what: str, updates: dict[str, Any], **beside: Any) -> Entry:
        try:
            changed = Target.of(from_dict(config.model_dump() | updates, "ablate")).config
            new = _entry_of(Cell(changed, **beside), device)
        except UsageError as error:
            new = Entry("", fastest.values | updates, problem=str(error).removeprefix("ablate: "))
        gone = [_WORDS[axis](fastest.values[axis]) for axis in updates if axis in _WORDS]
        parts = [part for part in fastest.name.split(", ")[1:] if part not in gone]
        new.name = ", ".join([f"{new.values['engine']} {new.values['precision']}", *parts, *([what] if what else [])])
        return known.setdefault(new.cell, new) if new.cell is not None else new

    found = []
    eager = {"engine": "eager", "compile_mode": "default"}
    without_engine = entry("", eager)
    if config.engine != "eager":
        found.append(Factor("engine", f"{config.engine} -> eager", without_engine, fastest))
    if config.compile_mode != "default" and config.engine == "compiled":
        default = entry("default", {"compile_mode": "default"})
        found.append(Factor("compile mode", f"{config.compile_mode} -> default", default, fastest))
    if device.type == "cuda" and (config.loader, config.images_on) == RESIDENT:
        launched = entry("launched", {}, launched=True)
        found.append(Factor("CUDA graph", "one a step -> launched op by op", launched, fastest))
    if config.precision != "fp32":
        found.append(Factor("precision", f"{config.precision} -> fp32", entry("", {"precision": "fp32"}), fastest))
    if config.loader != "torchvision":
        torchvision = entry("torchvision", {"loader": "torchvision", "images_on": "device"})
        found.append(Factor("loader", f"{config.loader} -> torchvision", torchvision, fastest))
    if (config.loader, config.images_on) == RESIDENT and (how := augmentation_of(config.engine, device)) != "eager":
        op_by_op = entry("augmented op by op", {}, augmentation="eager")
        found.append(Factor("augmentation", f"{how} -> op by op", op_by_op, fastest))
    if config.memory_format == "channels_last":
        contiguous = {"memory_format": "contiguous"}
        if config.engine == "fused":  # it has channels_last only, so that two eager cells are compared
            without = entry("contiguous", eager | contiguous)
            found.append(Factor("memory format", "channels_last -> contiguous", without, without_engine))
        else:
            without = entry("contiguous", contiguous)
            found.append(Factor("memory format", "channels_last -> contiguous", without, fastest))
    if config.tuned and device.type == "cpu":
        found.append(Factor("tuned", "true -> false", entry("untuned", {"tuned": False}), fastest))
    if (half := config.batch_size // 2) >= 1:
        halved = entry(f"batch {half}", {"batch_size": half})
        found.append(Factor("batch size", f"{config.batch_size} -> {half}", halved, fastest))
    return found


def costliest_first(factors: Iterable[Factor]) -> list[Factor]:
    """The factors in order of cost, the costliest first; factors that were not measured come last."""
    return sorted(factors, key=lambda factor: -factor.cost if factor.measured else float("inf"))
