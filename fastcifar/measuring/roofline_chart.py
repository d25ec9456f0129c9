"""The roofline chart: the speed of each layer, below the speeds that the device can reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.measuring.kernels import (
    COLOURS,
)
from fastcifar.measuring.roofline import Row
from fastcifar.measuring.roofs import Roofs
from fastcifar.ui import drawing


def draw_roofline(rows: Sequence[Row], roofs: Roofs, path_stem: Path, title: str, most: int = 10) -> list[Path]:
    """Draws the chart as `path_stem`.svg and `path_stem`.png: operations per second over operations per byte.

    The area of a point is its share of the time. The rows that lose most time are numbered, and named at the side.

    Args:
        rows: only the measured rows are drawn.
        roofs: the speeds of the device.
        path_stem: the path of the pictures without its ending.
        title: the text above the chart.
        most: how many rows are numbered.

    Returns:
        The paths of the pictures.
    """
    from matplotlib.ticker import EngFormatter

    points = [_Point(row, row.work.intensity, row.work.flops / row.seconds) for row in rows if row.seconds]
    total = sum(point.seconds for point in points)
    with drawing.styled():
        figure = drawing.new_figure(12, 6.2)
        axes, side = figure.subplots(1, 2, width_ratios=[5, 2])
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xscale="log", yscale="log", xlabel="FLOP a byte that must be read or written", ylabel="FLOP/s reached")
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(color="#ececec")
        axes.set_axisbelow(True)
        knee = roofs.flops_per_second / roofs.cache
        axes.set_xlim(min([knee / 8, *(p.x / 1.6 for p in points)]), max([knee * 8, *(p.x * 1.6 for p in points)]))
        axes.set_ylim(min(p.y for p in points) / 2.5, max([roofs.flops_per_second, *(p.y for p in points)]) * 2)
        for p in sorted(points, key=lambda p: -p.seconds):
            colour = COLOURS[p.row.layer.kind]
            face = "none" if p.row.direction == "backward" else colour
            axes.scatter(p.x, p.y, s=_area(p, total), facecolors=face, edgecolors=colour, lw=1.5)
        worst = sorted(points, key=lambda p: -p.lost)[:most]
        _name(side, worst)
        _legend(side, [p.row.layer.kind for p in points])
        figure.draw_without_rendering()  # places the axes: the next two calls need distances on paper
        _number(axes, worst, total)
        _draw_roofs(axes, roofs)
        return drawing.save(figure, path_stem)


@dataclass(frozen=True)
class _Point:
    """A point of the chart.

    Attributes:
        row: what it stands for.
        x: operations per byte.
        y: operations per second.
    """

    row: Row
    x: float
    y: float

    @property
    def seconds(self) -> float:
        """The seconds of all places of the layer in a step."""
        return self.row.layer.count * (self.row.seconds or 0.0)

    @property
    def lost(self) -> float:
        """The seconds above the floor, for all places of the layer in a step."""
        return self.seconds - self.row.floor_in_step


def _area(point: _Point, total: float) -> float:
    """The area of a point's circle, the square of its diameter in points, where a step takes `total` seconds."""
    return 16 + 1200 * point.seconds / total


def _on_white() -> dict[str, Any]:
    """What keeps a text readable where it lies on points: a white border."""
    from matplotlib.patheffects import withStroke

    return {"path_effects": [withStroke(linewidth=2.5, foreground="white")], "zorder": 4}


def _number(axes: Any, points: Sequence[_Point], total: float) -> None:
    """Writes the number of each point beside its circle; the numbers of neighbours stand one below the other."""
    to_points = 72 / axes.get_figure().dpi
    places = {n: axes.transData.transform((p.x, p.y)) * to_points for n, p in enumerate(points, 1)}
    written: list[tuple[float, float]] = []
    for number in sorted(places, key=lambda n: -places[n][1]):
        (x, y), p = places[number], points[number - 1]
        at = min([y + 3, *(other - 11 for near, other in written if abs(near - x) < 25)])
        written.append((x, at))
        axes.annotate(
            str(number),
            (p.x, p.y),
            xytext=(max(17.0, 7 + math.sqrt(_area(p, total)) / 2), at - y),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=COLOURS[p.row.layer.kind],
            arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkA": 1, "shrinkB": 3},
            **_on_white(),
        )


def _name(side: Any, points: Sequence[_Point]) -> None:
    side.axis("off")
    side.text(0, 1, "most time over the floor", transform=side.transAxes, va="top", fontweight="bold", fontsize=9)
    for number, p in enumerate(points, 1):
        layer, row = p.row.layer, p.row
        times = f" (x{layer.count})" if layer.count > 1 else ""
        side.text(
            0,
            1 - 0.06 * number,
            f"{number}  {layer.name}{times}, {row.direction}\n"
            f"    {p.seconds * 1e3:.2f} ms, {row.times_floor or 0:.1f} times the floor",
            transform=side.transAxes,
            va="top",
            fontsize=8,
            color=COLOURS[layer.kind],
            linespacing=1.3,
        )


def _draw_roofs(axes: Any, roofs: Roofs) -> None:
    low, high = axes.get_xlim()
    peak, grey = roofs.flops_per_second, "#555555"
    for rate, name, dashes in ((roofs.memory, "memory", "-"), (roofs.cache, "cache", "--")):
        ends = [low / 100, peak / rate]
        axes.plot(ends, [x * rate for x in ends], dashes, color=grey, lw=1.2, zorder=1)
        (x0, y0), (x1, y1) = axes.transData.transform([(x, x * rate) for x in ends])
        at = 1.08 * max(low, axes.get_ylim()[0] / rate)  # near the left end of its visible part
        axes.text(
            at,
            at * rate * 1.12,
            f"copy, {name}: {rate / 1e9:,.0f} GB/s",
            rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
            rotation_mode="anchor",
            color=grey,
            fontsize=9,
            clip_on=True,
            **_on_white(),
        )
    axes.plot([peak / roofs.cache, high * 100], [peak, peak], color=grey, lw=1.2, zorder=1)
    # At the left end: points near this roof lie far right.
    name = f"matrix product: {peak / 1e12:,.2f} TFLOP/s"
    axes.text(peak / roofs.cache, peak * 1.08, name, color=grey, fontsize=9, **_on_white())


def _legend(axes: Any, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    def dot(colour: str, label: str, face: str) -> Line2D:
        return Line2D([], [], ls="", marker="o", color=colour, markerfacecolor=face, label=label)

    handles = [dot(COLOURS[kind], kind, COLOURS[kind]) for kind in dict.fromkeys(kinds)]
    handles += [dot("#333333", "forward", "#333333"), dot("#333333", "backward", "none")]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 0), frameon=False, fontsize=9, ncols=2)
