"""The chart of an ablation: images/s of each cell and, in a second panel, what each factor is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastcifar.measuring.grid import Entry, Factor, costliest_first
from fastcifar.ui import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENGINE_COLOURS = {"eager": "#0072B2", "compiled": "#E69F00", "fused": "#009E73"}
"""Colours of Okabe and Ito, as in the learning curves."""


def draw_chart(
    entries: Sequence[Entry], factors: Sequence[Factor], fastest: Entry | None, title: str, path_stem: Path
) -> list[Path]:
    """Draws the chart as `path_stem`.svg and `path_stem`.png.

    Args:
        entries: the cells, the reference first; at least one was measured.
        factors: the attribution; if it is empty, there is one panel only.
        fastest: the cell that the attribution starts from; None without an attribution.
        title: the text above the chart.
        path_stem: the path of the pictures without its ending.

    Returns:
        The paths of the pictures.
    """

    measured = [factor for factor in costliest_first(factors) if factor.measured]
    style = {
        "axes.spines.left": False,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.grid.axis": "x",
        "axes.axisbelow": True,
        "grid.color": "#e8e8e8",
        "ytick.major.size": 0,
        "hatch.linewidth": 0.6,
    }
    with drawing.styled(style):
        rows = max(len(entries), len(measured))
        figure = drawing.new_figure(12 if measured else 7.5, 1.6 + 0.34 * rows)
        figure.suptitle(title, fontsize=12)
        panels = figure.subplots(1, 2 if measured else 1, width_ratios=[3, 2] if measured else None, squeeze=False)[0]
        _draw_cells(panels[0], entries)
        if fastest is not None and measured:
            _draw_factors(panels[1], measured, fastest)
        return drawing.save(figure, path_stem)


def _draw_cells(axes: Axes, entries: Sequence[Entry]) -> None:
    first = entries[0]
    most = max(entry.spread[1] for entry in entries if entry.measurements)
    for row, entry in enumerate(entries):
        if not entry.measurements:
            what = "failed" if entry.failed else "cannot run" if entry.problem else "not measured"
            axes.text(0.005 * most, row, what, va="center", color="#777777", style="italic")
            continue
        low, high = entry.spread
        stock = entry.values["tuned"] is False
        axes.barh(
            row,
            entry.rate,
            0.72,
            xerr=[[entry.rate - low], [high - entry.rate]],
            color=ENGINE_COLOURS[entry.values["engine"]],
            alpha=0.55 if stock else 1.0,
            hatch="////" if stock else None,
            edgecolor="white",
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#222222"},
        )
        speed_up = f"  {entry.rate / first.rate:.2f}x" if first.measurements and entry is not first else ""
        axes.annotate(
            f"{entry.rate:,.0f}{speed_up}", (high, row), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.22)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("images/s, median and range of windows")
    axes.set_title(f"training step, speed-up over {first.name}")


def _draw_factors(axes: Axes, factors: Sequence[Factor], fastest: Entry) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for row, factor in enumerate(factors):
        low, high = (rate / factor.of.rate - 1 for rate in factor.without.spread)
        axes.barh(
            row,
            -factor.cost,
            0.72,
            xerr=[[-factor.cost - low], [high + factor.cost]],
            color="#56B4E9",
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#222222"},
        )
        axes.annotate(
            f"{-factor.cost:+.1%}", (max(high, 0), row), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(factors)), [_label(factor, fastest) for factor in factors], fontsize=8.5)
    axes.invert_yaxis()
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.16 * (right - left))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("difference in images/s")
    axes.set_title(f"{fastest.name} with one thing changed")


def _label(factor: Factor, fastest: Entry) -> str:
    of = "" if factor.of is fastest else f" (of {factor.of.name})"
    return f"{factor.name}{of}\n{factor.change}"
