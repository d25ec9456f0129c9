"""The results of an ablation, and the file of JSON lines that keeps them while it runs."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcifar.measuring.cell import NUM_CLASSES, NUM_IMAGES
from fastcifar.measuring.grid import Entry, Factor
from fastcifar.measuring.layers import list_layers
from fastcifar.measuring.roofline import Row, rows_of
from fastcifar.measuring.roofs import Roofs
from fastcifar.run.facts import device_model
from fastcifar.spelling import format_value
from fastcifar.target import Target

NUM_WINDOWS = 3
"""The number of windows that each process measures."""
JSONL, CSV, TEXT, CHART = "ablation.jsonl", "ablation.csv", "ablation.txt", "ablation"


@dataclass
class Ablation:
    """The results of `ablate`.

    Attributes:
        path: the folder of the results.
        entries: the cells of the grid, the reference first.
        repeats: as for `ablate`.
        window_seconds: as for `ablate`.
        environment: what `environment.collect` returns, the command, and the settings of the first cell.
        neighbour: as for `ablate`.
        given: the names of the settings that were asked for, for all cells alike.
        extra: cells that only the attribution measures.
        factors: the attribution; empty if there is none.
        fastest: the cell that the attribution starts from: the fastest cell of the first round. None before it.
        signal_number: the number of the signal that stopped the ablation; 0 if none did.
        roofs: the best speeds of the device, by the precision of the product.
    """

    path: Path
    entries: list[Entry]
    repeats: int
    window_seconds: float
    environment: dict[str, Any]
    neighbour: bool = False
    given: list[str] = field(default_factory=list)
    extra: list[Entry] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    fastest: Entry | None = None
    signal_number: int = 0
    roofs: dict[str, Roofs] = field(default_factory=dict)

    @property
    def all_entries(self) -> list[Entry]:
        """The cells of the grid and the extra cells of the attribution."""
        return [*self.entries, *self.extra]

    @property
    def failed(self) -> list[Entry]:
        """The cells whose measurement failed."""
        return [entry for entry in self.all_entries if entry.failed]

    @property
    def missing(self) -> list[str]:
        """The cells that were measured less often than asked for, such as `fused bf16 (1 of 3)`."""
        todo = [entry for entry in self.all_entries if entry.runs and len(entry.measurements) < self.repeats]
        return [f"{entry.name} ({len(entry.measurements)} of {self.repeats})" for entry in todo]


class Results:
    """Writes ablation.jsonl line by line, and gives each cell a cache of its own for compiled code, removed at the end.

    So the first process of a cell always compiles anew, and its later processes find the cell's cache.

    Args:
        path: the folder of the results.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path / JSONL, "w", encoding="utf-8")
        self._caches = tempfile.TemporaryDirectory(prefix="fastcifar-ablate-", ignore_cleanup_errors=True)
        self._cache_of: dict[int, Path] = {}

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._caches.cleanup()

    def write(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Writes a line.

        Args:
            kind: what the line is about: `environment`, `measurement`, `failure`, `cell` or `factor`.
            facts: values that JSON can hold, by name.
        """
        self._file.write(json.dumps({"kind": kind, **facts}) + "\n")
        self._file.flush()

    def cache_of(self, entry: Entry) -> dict[str, str]:
        """The variables that make torch.compile use the entry's own cache; none if the user has chosen a cache."""
        folder = self._cache_of.setdefault(id(entry), Path(self._caches.name, str(len(self._cache_of))))
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
        return {} if caches.keys() & os.environ.keys() else caches


def method_of(ablation: Ablation) -> dict[str, Any]:
    """How the cells are measured, by name."""
    return {
        "repeats": ablation.repeats,
        "num_windows": NUM_WINDOWS,
        "window_seconds": ablation.window_seconds,
        "num_images": NUM_IMAGES,
        "neighbour": ablation.neighbour,
    }


def facts_of(ablation: Ablation) -> dict[str, Any]:
    """The facts about machine, program and settings that make each row of the CSV file understandable by itself."""
    e = ablation.environment
    source = e.get("source") or {}
    return {
        **{name: e["settings"][name] for name in dict.fromkeys(["width_mult", *ablation.given])},
        "device": device_model(e),
        "threads": (e.get("threads") or {}).get("torch"),
        "torch": e.get("torch"),
        "fastcifar": e.get("fastcifar"),
        "commit": source.get("commit"),
        "date": e.get("date"),
    }


def settings_line(ablation: Ablation) -> str:
    """What all cells of the grid have in common, such as `batch 128, width 0.25, mixup_alpha=0.2`."""
    settings = ablation.environment["settings"]
    sizes = {entry.values["batch_size"] for entry in ablation.entries}
    parts = [f"batch {size}" for size in sizes if len(sizes) == 1] + [f"width {settings['width_mult']:g}"]
    return ", ".join([*parts, *(f"{n}={format_value(settings[n])}" for n in ablation.given if n != "width_mult")])


def machine_line(ablation: Ablation) -> str:
    """The device, the number of threads and torch's version, as one line."""
    facts = facts_of(ablation)
    return f"{facts['device']}, {facts['threads']} thread{'s' * (facts['threads'] != 1)}, torch {facts['torch']}"


def summary_of(ablation: Ablation, entry: Entry) -> dict[str, Any]:
    """Summarises a cell.

    Args:
        ablation: the results that the entry belongs to.
        entry: the cell.

    Returns:
        The results of the cell, by name; None for each value that was not measured.
    """
    measured = bool(entry.measurements)
    low, high = entry.spread if measured else (None, None)
    first = ablation.entries[0]
    warm_up = [m.warm_up_seconds for m in entry.measurements]
    rows = floors_of(ablation, entry)
    device_memory = [m.device_memory_gib for m in entry.measurements if m.device_memory_gib is not None]
    return {
        "cell": entry.name,
        **entry.values,
        **beside(entry),
        "in_grid": entry in ablation.entries,
        "images_per_second": entry.rate if measured else None,
        "slowest_window": low,
        "fastest_window": high,
        "num_windows": len(entry.windows),
        "num_left_out": entry.num_left_out,
        "num_processes": len(entry.measurements),
        "beside_neighbour": entry.beside_neighbour,
        "speed_up": entry.rate / first.rate if measured and first.measurements else None,
        "step_seconds": entry.cell.config.batch_size / entry.rate if measured and entry.cell else None,
        "floor_seconds": sum(row.floor_in_step for row in rows) if rows else None,
        "memory_bound_floor_seconds": sum(row.floor_in_step for row in rows if row.memory_bound) if rows else None,
        "run_seconds_computed": run_seconds(entry) if measured else None,
        "compile_seconds": warm_up[0] if measured else None,
        "compile_seconds_again": statistics.median(warm_up[1:]) if warm_up[1:] else None,
        "host_memory_gib": max(m.host_memory_gib for m in entry.measurements) if measured else None,
        "device_memory_gib": max(device_memory, default=None),
        "failed": entry.failed,
        "problem": entry.problem,
    }


def beside(entry: Entry) -> dict[str, Any]:
    """The properties of a cell that are not settings."""
    return {"augmentation": entry.cell and entry.cell.augmentation, "launched": entry.cell and entry.cell.launched}


def floors_of(ablation: Ablation, entry: Entry) -> list[Row]:
    """The cell's layers with their least times at the speeds of the device; none if these were not measured."""
    if entry.cell is None or (roofs := ablation.roofs.get(entry.cell.config.precision)) is None:
        return []
    return rows_of(list_layers(Target(entry.cell.config), NUM_CLASSES), roofs)


def run_seconds(entry: Entry) -> float:
    """The seconds that the epochs of a run with the cell's settings would take, computed from images/s.

    Those on small images count as whole ones: a cell takes steps on whole images only.
    """
    assert entry.cell is not None
    return entry.cell.config.epochs * NUM_IMAGES / entry.rate


def as_dict(ablation: Ablation) -> dict[str, Any]:
    """The environment, the cells and the factors, as values that JSON can hold."""
    return {
        "environment": ablation.environment | method_of(ablation),
        "cells": [summary_of(ablation, entry) for entry in ablation.all_entries],
        "factors": [factor_summary(factor) for factor in ablation.factors],
    }


def factor_summary(factor: Factor) -> dict[str, Any]:
    """The results of a factor, by name."""
    return {
        "factor": factor.name,
        "change": factor.change,
        "without": factor.without.name,
        "of": factor.of.name,
        "cost": factor.cost if factor.measured else None,
        "problem": factor.without.problem,
    }
