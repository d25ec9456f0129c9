"""The tables of a profile for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastcifar.measuring.kernels import (
    IDLE,
    KINDS,
    PYTHON,
    UNCLASSIFIED,
    Breakdown,
)
from fastcifar.measuring.profile_result import Profile, Table, describe, device_name, slowest
from fastcifar.measuring.roofline import (
    Row,
)
from fastcifar.ui.tables import justified


def headline(result: Profile) -> list[str]:
    """The result in a few lines."""
    found, floor, step = result.breakdown, result.floor_seconds, result.step_seconds
    roofs, precision = result.roofs, result.config.precision
    what = "kernels" if found.on_device else "ops"
    alone = result.alone_seconds
    return [
        f"{describe(result.config)}; {device_name(result)}, torch {torch.__version__}",
        "",
        f"a step        {step * 1e3:.2f} ms, {result.images_per_second:,.0f} images/s",
        f"its floor     {floor * 1e3:.2f} ms: {floor / step:.1%} of the possible speed is reached",
        *([f"layers alone  {alone * 1e3:.2f} ms, each by itself, on what it has just seen"] if alone else []),
        f"profiled      {found.num_steps} steps, {found.step_ms:.2f} ms and {found.calls:.0f} {what} each",
        f"this device   copies {roofs.memory / 1e9:,.0f} GB/s in memory, {roofs.cache / 1e9:,.0f} GB/s in cache; "
        f"{precision} products {roofs.flops_per_second / 1e12:,.2f} TFLOP/s",
    ]


def tables(result: Profile) -> list[Table]:
    """The table of kinds, the table of names, and the table of layers."""
    return [kinds_table(result), names_table(result.breakdown), layers_table(result.rows)]


def footnote(rows: Sequence[Row]) -> list[str]:
    """A remark on layers whose time is shown as below their floor; no line where none is."""
    if not any(row.times_floor is not None and round(row.times_floor, 1) < 1 for row in rows):
        return []
    return [
        "x floor below 1: the copies and products behind the floor were measured while",
        "other programs ran; measure again on a quiet machine",
    ]


def kinds_table(result: Profile) -> Table:
    """For each kind its time in the profiled steps, and the floor of its layers.

    On CUDA the time may be of fewer ops than the floor, because a kernel may do only a part of a layer.
    """
    found, floors = result.breakdown, result.floors()
    rows = []
    for kind, cost in sorted(found.kinds.items(), key=lambda item: -item[1].ms):
        if cost.ms or cost.calls:
            floor = floors.get(kind)
            against = [f"{floor * 1e3:.2f}", ratio(cost.ms / floor / 1e3)] if floor else ["", ""]
            share = f"{cost.ms / found.step_ms:.1%}"
            rows.append([kind, f"{cost.ms:.2f}", share, f"{cost.calls:.0f}", *against, KINDS[kind]])
    return justified(["where the time goes", "ms", "share", "calls", "floor ms", "x floor", ""], rows, {1, 2, 3, 4, 5})


def names_table(found: Breakdown, most: int = 10) -> Table:
    """The slowest names, and all names that the table of kinds does not know.

    Args:
        found: the time by name.
        most: how many of the slowest names are shown.
    """
    costs = [cost for cost in slowest(found) if cost[0] not in (PYTHON, IDLE)]
    shown = costs[:most] + [cost for cost in costs[most:] if cost[0] == UNCLASSIFIED]
    rows = [[_cut(name), f"{ms:.2f}", f"{calls:.0f}", kind] for kind, name, ms, calls in shown]
    return justified(["slowest by name", "ms", "calls", "kind"], rows, {1, 2})


def ratio(value: float | None) -> str:
    """A ratio as text, with one decimal below 100; `-` for None."""
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _cut(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def layers_table(rows: Sequence[Row]) -> Table:
    """A line for each layer, with forward / backward. The milliseconds are of one of the places with its shape."""
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(row.layer.name, []).append(row)

    def both(values: Sequence[str]) -> str:
        return " / ".join(values)

    table = []
    for name, directions in by_layer.items():
        measured = [r for r in directions if r.seconds is not None]
        table.append(
            [
                f"{name}{f' (x{directions[0].layer.count})' if directions[0].layer.count > 1 else ''}",
                both([f"{r.work.bytes / 1e6:.1f}" for r in directions]),
                both([f"{r.work.flops / 1e6:,.0f}" for r in directions]),
                both([f"{r.floor_seconds * 1e3:.3f}" for r in directions]),
                both([f"{(r.seconds or 0) * 1e3:.3f}" for r in measured]) or "-",
                both([ratio(r.times_floor) for r in measured]) or "-",
                both(["memory" if r.memory_bound else "compute" for r in directions[:1]]),
            ]
        )
    header = ["layer", "MB", "MFLOP", "floor ms", "measured ms", "x floor", "bound"]
    return justified(header, table, {1, 2, 3, 4, 5})
