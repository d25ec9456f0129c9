"""The least time each layer could take on this device, beside the time it takes.

The floor is the longer of two times: the layer's bytes at the speed of a copy of as many, and its operations at the
speed of a large matrix product. Both speeds are measured in the same run, as the best of many.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastcifar.measuring.layers import Layer, Work
from fastcifar.measuring.roofs import Roofs


@dataclass(frozen=True)
class Row:
    """One direction of a layer: its least work, floor and time, each for one of `layer.count`."""

    layer: Layer
    direction: str
    work: Work
    floor_seconds: float
    memory_bound: bool
    seconds: float | None

    @property
    def times_floor(self) -> float | None:
        return None if self.seconds is None else self.seconds / self.floor_seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer.name,
            "kind": self.layer.kind,
            "count": self.layer.count,
            "direction": self.direction,
            "bytes": self.work.bytes,
            "flops": self.work.flops,
            "floor_seconds": self.floor_seconds,
            "bound": "memory" if self.memory_bound else "compute",
            "seconds": self.seconds,
            "times_floor": self.times_floor,
        }


def rows_of(layers: Sequence[Layer], roofs: Roofs, times: Sequence[Sequence[float] | None]) -> list[Row]:
    """A row for each direction of each layer; `times` as `time_layer` gives them, None where not measured."""
    rows = []
    for layer, seconds in zip(layers, times, strict=True):
        for (direction, work), taken in itertools.zip_longest(layer.directions(), seconds or ()):
            rows.append(Row(layer, direction, work, roofs.seconds(work), roofs.is_memory_bound(work), taken))
    return rows
