"""The floor of each layer, which is the least time that it could take on this device, beside the time that it takes.

The floor is the longer of two times: copying as many bytes as the layer reads and writes, and doing its operations at
the speed of a large matrix product. Both speeds are measured in the same run; the best of many measurements counts.
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
    """One direction of a layer. All values are for one of its `layer.count` places.

    Attributes:
        layer: the layer.
        direction: `forward` or `backward`.
        work: the least work.
        floor_seconds: the least time, in seconds.
        memory_bound: whether the bytes take longer than the operations.
        seconds: the measured time; None if it was not measured.
    """

    layer: Layer
    direction: str
    work: Work
    floor_seconds: float
    memory_bound: bool
    seconds: float | None

    @property
    def floor_in_step(self) -> float:
        """The least time for all places of the layer in a step, in seconds."""
        return self.layer.count * self.floor_seconds

    @property
    def times_floor(self) -> float | None:
        """The measured time divided by the floor; None if it was not measured."""
        return None if self.seconds is None else self.seconds / self.floor_seconds

    def as_dict(self) -> dict[str, Any]:
        """The row of layers.csv."""
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


def rows_of(layers: Sequence[Layer], roofs: Roofs, times: Sequence[Sequence[float] | None] | None = None) -> list[Row]:
    """A row for each direction of each layer.

    Args:
        layers: the layers.
        roofs: the speeds of this device.
        times: for each layer what `time_layer` returns, or None if it was not timed; None if no layer was.
    """
    rows = []
    for layer, seconds in zip(layers, times or [None] * len(layers), strict=True):
        for (direction, work), taken in itertools.zip_longest(layer.directions(), seconds or ()):
            rows.append(Row(layer, direction, work, roofs.seconds(work), roofs.is_memory_bound(work), taken))
    return rows
