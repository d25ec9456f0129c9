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


@dataclass(frozen=True)
class Floor:
    """The least time that a step could take on this device.

    Attributes:
        seconds: the sum over all layers.
        memory_bound_seconds: the sum over those whose bytes take longer than their operations.
    """

    seconds: float
    memory_bound_seconds: float

    @classmethod
    def of(cls, layers: Sequence[Layer], roofs: Roofs) -> Floor:
        """The floor of a step.

        Args:
            layers: the layers of the step.
            roofs: the speeds of this device.
        """
        works = [(layer.count, work) for layer in layers for _, work in layer.directions()]
        bound = [count * roofs.seconds(work) for count, work in works if roofs.is_memory_bound(work)]
        return cls(sum(count * roofs.seconds(work) for count, work in works), sum(bound))


def rows_of(layers: Sequence[Layer], roofs: Roofs, times: Sequence[Sequence[float] | None]) -> list[Row]:
    """A row for each direction of each layer.

    Args:
        layers: the layers.
        roofs: the speeds of this device.
        times: for each layer what `time_layer` returns; None if it was not timed.
    """
    rows = []
    for layer, seconds in zip(layers, times, strict=True):
        for (direction, work), taken in itertools.zip_longest(layer.directions(), seconds or ()):
            rows.append(Row(layer, direction, work, roofs.seconds(work), roofs.is_memory_bound(work), taken))
    return rows
