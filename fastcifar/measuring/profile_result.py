"""What a profile found, as numbers."""

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
    """What was found.

    Attributes:
        config: settled.
        step_seconds: median of a step that nobody watched.
        breakdown: of the profiled steps.
        roofs, rows: what the device reached; the layers under it.
        environment: see `environment.collect`.
        path: the folder with what was written.
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
        return self.config.batch_size / self.step_seconds

    @property
    def floor_seconds(self) -> float:
        return sum(self.floors().values())

    def floors(self) -> dict[str, float]:
        """Seconds of the floor of a step's layers, by kind."""
        floors: dict[str, float] = {}
        for row in self.rows:
            floors[row.layer.kind] = floors.get(row.layer.kind, 0.0) + row.layer.count * row.floor_seconds
        return floors

    @property
    def alone_seconds(self) -> float | None:
        """All layers of a step, each by itself; None if they were not timed."""
        timed = [row.layer.count * row.seconds for row in self.rows if row.seconds is not None]
        return sum(timed) if timed else None


def as_dict(result: Profile) -> dict[str, Any]:
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
    """Such as `fused, bf16, batch 128, width 1`."""
    return f"{config.engine}, {config.precision}, batch {config.batch_size}, width {config.width_mult:g}"


def device_name(result: Profile) -> str:
    """The GPU; or the processor, with the number of threads."""
    name = device_model(result.environment) or platform.machine()
    threads = result.environment["threads"]["torch"]
    return name if result.environment["gpu"] is not None else f"{name}, {threads} thread{'s' * (threads != 1)}"


def slowest(found: Breakdown) -> list[tuple[str, str, float, float]]:
    """Kind, name, milliseconds and calls a step, the slowest first."""
    costs = [(kind, name, cost.ms, cost.calls) for (kind, name), cost in found.names.items()]
    return sorted(costs, key=lambda cost: -cost[2])
