"""Loss, accuracy and learning rate over the epochs of a run, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.ui import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": "#0072B2", "val": "#D55E00", "lr": "#444444"}
"""From Okabe and Ito, Color Universal Design (2008). Anybody can tell them apart, and in grey print they differ too."""

Curves = dict[str, list[tuple[int, float]]]
"""`train`, `val` or `lr` -> (epoch, value)."""

_LOG_FROM = 8.0  # highest loss over lowest; above it a linear axis would flatten the end of the curves
_MARKERS_UP_TO = 30  # points of a curve; a single point is visible only by its marker


def draw_curves(records: Sequence[Mapping[str, Any]], path_stem: Path, title: str) -> list[Path]:
    """Draws `path_stem`.svg and `path_stem`.png from a run's epochs.

    Args:
        records: at least one, with the keys of `names.EPOCH_KEYS`. What is None or not finite is left out.
        path_stem: where the pictures go, without the ending.
        title: stands above the picture.

    Returns:
        The two paths.

    Raises:
        ValueError: there is no record.
    """
    from matplotlib.ticker import MaxNLocator

    if not records:
        raise ValueError("there is no epoch to draw")
    style = {"axes.titlesize": 11, "axes.titlelocation": "left", "axes.grid": True, "grid.color": "#e8e8e8"}
    with drawing.styled(style):
        # Places in inches, because matplotlib's own layout takes ten times as long as drawing: the end of each run.
        width, height = 12.0, 4.2
        figure = drawing.new_figure(width, height, layout=None)
        figure.suptitle(title, fontsize=13)
        loss, accuracy, lr = (
            figure.add_axes((left / width, 0.55 / height, wide / width, 3.0 / height))
            for left, wide in ((0.65, 3.35), (5.25, 3.3), (9.75, 1.6))
        )
        panels = [
            (loss, "loss", _curves(records, train="train_loss", val="val_loss"), ".4f"),
            (accuracy, "accuracy", _curves(records, train="train_accuracy", val="val_accuracy"), ".2%"),
            (lr, "learning rate", _curves(records, lr="lr"), ".3g"),
        ]
        for axes, name, curves, _ in panels:
            axes.set_title(name)
            _plot(axes, name, curves)
        epochs = [record["epoch"] for record in records]
        for axes in (loss, accuracy, lr):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(3 if axes is lr else 6, integer=True, min_n_ticks=1))
            room = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
            axes.set_xlim(epochs[0] - room, epochs[-1] + room)
        for axes, _, curves, form in panels:
            _label_ends(axes, curves, form)
        return drawing.save(figure, path_stem)


def _curves(records: Sequence[Mapping[str, Any]], **keys: str) -> Curves:
    """The curves that have a point, each under its name.

    Args:
        records: the epochs.
        **keys: for each curve the key of its values.
    """
    curves = {
        kind: [(r["epoch"], r[key]) for r in records if r.get(key) is not None and math.isfinite(r[key])]
        for kind, key in keys.items()
    }
    return {kind: points for kind, points in curves.items() if points}


def _plot(axes: Axes, name: str, curves: Curves) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    if not curves:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color="#777777")
        return
    for kind, points in curves.items():
        marker = "o" if len(points) <= _MARKERS_UP_TO else ""
        axes.plot(*zip(*points, strict=True), color=COLOURS[kind], linewidth=1.6, marker=marker, markersize=3.5)
    values = [value for points in curves.values() for _, value in points]
    if name == "loss" and min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, max(values) * 1.05 or 1)
    if name == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


_WIDEST_LR = 6
"""Characters that there is room for beside the curve of the learning rate."""


def _label_ends(axes: Axes, curves: Curves, form: str) -> None:
    """Writes each curve's name and last value at its end, in its colour. Two labels that would overlap move apart."""
    apart = 28  # points: two lines of text
    axes.get_ylim()  # matplotlib settles the limits, on which `transData` depends, when they are asked for
    to_points = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    ends = sorted((axes.transData.transform(points[-1])[1] * to_points, kind) for kind, points in curves.items())
    overlap = max(0.0, apart - (ends[1][0] - ends[0][0])) if len(ends) == 2 else 0.0
    for (_, kind), shift in zip(ends, (-overlap / 2, overlap / 2), strict=False):
        epoch, value = curves[kind][-1]
        shown = format(value, form if abs(value) < 10 else ".5g")  # never wider than its room, like the next line
        shown = format(value, ".1g") if kind == "lr" and len(shown) > _WIDEST_LR else shown
        axes.annotate(
            shown if kind == "lr" else f"{kind}\n{shown}",
            (epoch, value),
            xytext=(9, shift),
            textcoords="offset points",
            va="center",
            color=COLOURS[kind],
            fontweight="bold",
            annotation_clip=False,
        )
