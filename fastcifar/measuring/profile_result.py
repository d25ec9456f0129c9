"""The result of a profile, as numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.config import Config
from fastcifar.measuring.kernels import (
    Breakdown,
)
from fastcifar.measuring.roofline import Row
from fastcifar.measuring.roofs import Roofs
from fastcifar.run.facts import device_model

STEPS_AN_EPOCH = 16
Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


@dataclass(frozen=True)
class Profile:
    """The result of a profile.

    Attributes:
        config: the settings, settled.
        step_seconds: the median seconds of a step without the profiler.
        breakdown: the time of the profiled steps by kind and by name.
        roofs: the speeds that this device reached at best.
        rows: the layers with their floors and times.
        environment: what `environment.collect` returns.
        path: the folder of the result.
    """

    config: Config
    step_seconds: float
    breakdown: Breakdown
    roofs: Roofs
    rows: list[Row]
    environment: Mapping[str, Any]
    path: Path

    @property
    def images_per_second(self) -> float:
        """The rate of the steps without the profiler."""
        return self.config.batch_size / self.step_seconds

    @property
    def floor_seconds(self) -> float:
        """The least seconds of a step on this device."""
        return sum(self.floors().values())

    def floors(self) -> dict[str, float]:
        """The least seconds of a step's layers on this device, by kind."""
        floors: dict[str, float] = {}
        for row in self.rows:
            floors[row.layer.kind] = floors.get(row.layer.kind, 0.0) + row.floor_in_step
        return floors

    @property
    def alone_seconds(self) -> float | None:
        """The sum of the seconds of a step's layers, each timed by itself; None if they were not timed."""
        timed = [row.layer.count * row.seconds for row in self.rows if row.seconds is not None]
        return sum(timed) if timed else None


def as_dict(result: Profile) -> dict[str, Any]:
    """The content of profile.json."""
    found = result.breakdown
    return {
        "config": result.config.model_dump(mode="json"),
        "environment": dict(result.environment),
        "images_per_second": result.images_per_second,
        "step_seconds": result.step_seconds,
        "floor_seconds": result.floor_seconds,
        "layers_alone_seconds": result.alone_seconds,
        "profiled": {
            "steps": found.num_steps,
            "step_ms": found.step_ms,
            "calls": found.calls,
            "on_device": found.on_device,
            "kinds": {kind: {"ms": cost.ms, "calls": cost.calls} for kind, cost in found.kinds.items()},
        },
        "roofs": {"copies": [list(c) for c in result.roofs.copies], "flops_per_second": result.roofs.flops_per_second},
        "layers": [row.as_dict() for row in result.rows],
    }


def describe(config: Config) -> str:
    """The config in a few words, such as `fused, bf16, batch 128, width 1`."""
    return f"{config.engine}, {config.precision}, batch {config.batch_size}, width {config.width_mult:g}"


def device_name(result: Profile) -> str:
    """The name of the GPU or, on the CPU, of the processor with the number of threads."""
    name = device_model(result.environment) or platform.machine()
    threads = result.environment["threads"]["torch"]
    return name if result.environment["gpu"] is not None else f"{name}, {threads} thread{'s' * (threads != 1)}"


def slowest(found: Breakdown) -> list[tuple[str, str, float, float]]:
    """Kind, name, milliseconds of a step and calls of a step, the slowest name first."""
    costs = [(kind, name, cost.ms, cost.calls) for (kind, name), cost in found.names.items()]
    return sorted(costs, key=lambda cost: -cost[2])
