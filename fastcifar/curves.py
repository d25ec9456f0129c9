"""Loss, accuracy and learning rate over the epochs of a run, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": "#0072B2", "val": "#D55E00", "lr": "#444444"}
"""From Okabe and Ito, Color Universal Design (2008): told apart with any colour vision, and by lightness in print."""

_LOG_FROM = 8.0  # highest loss over lowest, from which a linear axis flattens the end of the curves
_MARKERS_UP_TO = 30  # points; also makes a single one visible


def draw_curves(records: Sequence[Mapping[str, Any]], path_stem: Path, title: str) -> list[Path]:
    """Draws `path_stem`.svg and `path_stem`.png from a run's epochs and returns their paths.

    Args:
        records: at least one, with the keys of `run.EPOCH_KEYS`. What is None or not finite is left out.
        path_stem: where the pictures go, without the ending.
        title: stands above the picture.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not records:
        raise ValueError("there is no epoch to draw")
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "grid.color": "#e8e8e8",
        "svg.hashsalt": "fastcifar",  # and no date below: the same epochs give the same bytes
    }
    with rc_context(style):
        figure = Figure(figsize=(12, 4.2), layout="constrained")  # without pyplot: no global state, no window
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=13)
        loss, accuracy, lr = figure.subplots(1, 3, width_ratios=[5, 5, 3])
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            axes.set_title(name)
            _plot(axes, [(kind, _points(records, f"{kind}_{name}")) for kind in ("train", "val")], name)
        lr.set_title("learning rate")
        _plot(lr, [("lr", _points(records, "lr"))], "lr")
        epochs = [record["epoch"] for record in records]
        for axes in (loss, accuracy, lr):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            room = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
            axes.set_xlim(epochs[0] - room, epochs[-1] + room)
        paths = [Path(f"{path_stem}{ending}") for ending in (".svg", ".png")]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=120)
    return paths


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(r["epoch"], r[key]) for r in records if r.get(key) is not None and math.isfinite(r[key])]


def _plot(axes: Axes, curves: list[tuple[str, list[tuple[int, float]]]], quantity: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    curves = [(kind, points) for kind, points in curves if points]
    values = [value for _, points in curves for _, value in points]
    for kind, points in curves:
        marker = "o" if len(points) <= _MARKERS_UP_TO else ""
        axes.plot(*zip(*points, strict=True), color=COLOURS[kind], linewidth=1.6, marker=marker, markersize=3.5)
    if not values:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color="#777777")
        return
    if quantity == "loss" and min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, max(values) * 1.05 or 1)
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _label_ends(axes, curves, {"loss": ".4f", "accuracy": ".2%", "lr": ".3g"}[quantity])


def _label_ends(axes: Axes, curves: list[tuple[str, list[tuple[int, float]]]], form: str) -> None:
    """Writes each curve's name and last value at its end, in its colour; moves labels apart that would overlap."""
    apart = 26  # points: two lines of text
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # gives the axes their place, from which the distance in points follows
    scale = figure.dpi / 72
    ends = sorted((axes.transData.transform(points[-1])[1] / scale, kind, points[-1]) for kind, points in curves)
    shifts = [0.0] * len(ends)
    if len(ends) == 2 and ends[1][0] - ends[0][0] < apart:
        missing = (apart - (ends[1][0] - ends[0][0])) / 2
        shifts = [-missing, missing]
    for (_, kind, (epoch, value)), shift in zip(ends, shifts, strict=True):
        axes.annotate(
            format(value, form) if kind == "lr" else f"{kind}\n{value:{form}}",
            (epoch, value),
            xytext=(9, shift),
            textcoords="offset points",
            va="center",
            color=COLOURS[kind],
            fontweight="bold",
            annotation_clip=False,
        )
