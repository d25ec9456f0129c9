"""The drawings of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastcifar.report.document import Panel
from fastcifar.report.drawing import COLOURS, GRID, INK, PAPER, SOFT, WIDTH, draw
from fastcifar.report.predictions import Reliability
from fastcifar.report.wording import label, width
from fastcifar.stats import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_BARS = 500
"""Of one drawing."""


@dataclass(frozen=True)
class Curve:
    """One trial's line: (epoch, mean, lowest, highest over seeds); `published` is the report's last value."""

    trial: str
    colour: str
    points: Sequence[tuple[int, float, float, float]]
    is_train: bool
    published: float | None = None


def draw_curves(name: str, what: str, curves: Sequence[Curve], alt: str) -> Panel:
    """Loss or accuracy (`what`) over the epochs: validation solid, training dashed, a band over the seeds."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

    values = [value for curve in curves for point in curve.points for value in point[1:] if math.isfinite(value)]
    values += [curve.published for curve in curves if curve.published is not None]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title(what)
        axes.set_xlabel("epoch")
        for curve in curves:
            if not curve.points:
                continue
            epochs, means, lows, highs = zip(*curve.points, strict=True)
            marker = "o" if len(epochs) <= 30 else ""
            line = {"linestyle": (0, (4, 2)), "linewidth": 1.3} if curve.is_train else {"linewidth": 1.8}
            size = 2.5 if curve.is_train else 3.5
            axes.plot(epochs, means, color=curve.colour, marker=marker, markersize=size, **line)
            if lows != highs:
                axes.fill_between(epochs, lows, highs, color=curve.colour, alpha=0.25, linewidth=0)
            if curve.published is not None:
                shape = "s" if curve.is_train else "D"
                axes.plot(
                    epochs[-1], curve.published, shape, color=curve.colour, markerfacecolor=PAPER, markersize=6,
                    clip_on=False, zorder=5,
                )  # fmt: skip
        if what == "loss" and values and min(values) > 0 and max(values) / min(values) > 8:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif what == "accuracy":
            axes.set_ylim(0, min(1.02, 1.06 * max(values, default=1)))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
        handles = [
            Line2D([], [], color=colour, linewidth=2, label=label(trial, 48))
            for trial, colour in _named(curves).items()
        ]
        if any(curve.points for curve in curves if not curve.is_train):
            handles.append(Line2D([], [], color=INK, linewidth=1.8, label="validation"))
        handles.append(Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (4, 2)), label="training"))
        if any(curve.published is not None for curve in curves):
            for shape, kind in (("D", "validation"), ("s", "training")):
                handles.append(
                    Line2D(
                        [], [], color=INK, marker=shape, linestyle="", markerfacecolor=PAPER, label=f"report, {kind}"
                    )
                )
        columns = 3 if len(handles) in (3, 5, 6, 7) else 2
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9.5)

    return draw(name, alt, (WIDTH, 3.9), paint)


def _named(curves: Sequence[Curve]) -> dict[str, str]:
    return {curve.trial: curve.colour for curve in curves}


def draw_class_shares(name: str, shares: NDArray[np.float64], alt: str) -> Panel:
    """Each class's share of the training images, in per cent."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        classes = np.arange(len(shares))
        if len(shares) <= MOST_BARS:
            axes.bar(classes, 100 * shares, width=0.8, color=COLOURS["lr-0.05"][0])
        else:  # one outline: a bar each would be a page of megabytes
            axes.stairs(100 * shares, np.arange(len(shares) + 1) - 0.5, fill=True, color=COLOURS["lr-0.05"][0])
        axes.axhline(100 / len(shares), color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_xlabel("class, in order of name")
        axes.set_ylabel("% of the training images")
        axes.set_xlim(-1, len(shares))
        axes.grid(axis="x", visible=False)

    return draw(name, alt, (9.6, 2.9), paint, wide=True)


def draw_beta(name: str, alpha: float, lambdas: NDArray[np.float32], alt: str) -> Panel:
    """The density of Beta(alpha, alpha) over a histogram of drawn lambdas."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title(f"Beta({alpha:g}, {alpha:g})")
        axes.hist(lambdas, bins=40, range=(0, 1), density=True, color=COLOURS["lr-0.01"][0], alpha=0.45, label="drawn")
        x = np.linspace(0.002, 0.998, 400)
        axes.plot(x, beta_density(x, alpha), color=COLOURS["final"][0], linewidth=1.8, label="density")
        axes.set_xlabel("lambda")
        axes.set_ylabel("density")
        axes.set_ylim(0, max(3.0, 1.15 * float(np.histogram(lambdas, 40, (0, 1), density=True)[0].max())))
        axes.legend(loc="upper center")

    return draw(name, alt, (WIDTH, 3.2), paint)


def beta_density(x: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    log_norm = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    density: NDArray[np.float64] = np.exp((alpha - 1) * (np.log(x) + np.log1p(-x)) - log_norm)
    return density


def mixup_ceiling(alpha: float) -> float:
    """E[max(lambda, 1 - lambda)] for lambda ~ Beta(alpha, alpha): the highest lambda-weighted training accuracy."""
    log_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    return 0.5 + math.exp(-2 * alpha * math.log(2) - log_beta) / alpha


def draw_sheet(name: str, images: NDArray[np.uint8], labels: Sequence[str], alt: str, *, title: str = "") -> Panel:
    """Draws pictures in rows, each row with a label.

    Args:
        name: of the drawing's file.
        images: uint8 [rows, columns, S, S, 3 or 4]: red, green, blue and, as the fourth, opacity.
        labels: one for each row; a line feed breaks it.
        alt: what the drawing shows, in words.
        title: above the drawing.
    """
    rows, columns, size = images.shape[:3]
    gap = 3
    step = size + gap
    sheet = np.zeros((rows * step - gap, columns * step - gap, 4), np.uint8)  # transparent between the pictures
    for row in range(rows):
        for column in range(columns):
            part = sheet[row * step : row * step + size, column * step : column * step + size]
            part[..., 3] = 255
            part[..., : images.shape[-1]] = images[row, column]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(sheet)
        axes.set_anchor("E")
        axes.set_title(title)
        axes.set_yticks([row * step + size / 2 for row in range(rows)], labels)
        axes.tick_params(length=0)
        _bare(axes)

    longest = max(width(line) for text in labels for line in text.split("\n"))
    beside = WIDTH - 0.2 - 0.095 * longest  # inches left for the pictures by labels of this font
    return draw(name, alt, (WIDTH, 0.1 + 0.25 * bool(title) + beside * rows / columns), paint)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


@dataclass(frozen=True)
class Row:
    """A line of `draw_dots`: values of the seeds, and the range of the published numbers."""

    label: str
    colour: str
    sample: Sample
    published: tuple[float, float] | None = None


def draw_dots(name: str, rows: Sequence[Row], axis: str, alt: str, *, zero: bool = False) -> Panel:
    """Draws shares as percentages: a line for each row, a dot for each seed, the mean with its interval above the dots.

    Args:
        name: of the drawing's file.
        rows: the trials or steps.
        axis: what the axis across says.
        alt: what the drawing shows, in words.
        zero: marks the place of no effect.
    """
    from matplotlib.ticker import FuncFormatter

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        scale = 100
        if zero:
            axes.axvline(0, color=SOFT, linewidth=1)
        for place, row in enumerate(rows):
            if row.published is not None:
                low, high = (scale * value for value in row.published)
                axes.plot([low, high], [place, place], color=SOFT, alpha=0.35, linewidth=9, solid_capstyle="butt")
                axes.plot([(low + high) / 2], [place], "|", color=SOFT, alpha=0.6, markersize=9)
            values = [scale * value for value in row.sample.values]
            axes.plot(values, [place] * len(values), "o", color=row.colour, markersize=4, alpha=0.65)
            mean = scale * row.sample.mean
            if row.sample.interval is not None:
                low, high = (scale * value for value in row.sample.interval)
                axes.plot([low, high], [place + 0.22] * 2, color=row.colour, linewidth=2)
            axes.plot([mean], [place + 0.22], "D", color=row.colour, markersize=5.5)
        axes.set_yticks(range(len(rows)), [label(row.label, 48) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if zero else f"{value:g}"))
        axes.set_xlabel(axis)
        axes.grid(axis="y", visible=False)

    return draw(name, alt, (6.2, 1.0 + 0.36 * len(rows)), paint, wide=True)


def draw_history(name: str, values: Sequence[tuple[float | None, bool]], alt: str) -> Panel:
    """Draws the accuracies of a search's trials in their order, and the best so far.

    Args:
        name: of the drawing's file.
        values: for each trial its accuracy, 0 to 1, None where there is none, and whether the trial was finished.
        alt: what the drawing shows, in words.
    """
    from matplotlib.ticker import MaxNLocator

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        known = [(place, 100 * value, is_whole) for place, (value, is_whole) in enumerate(values) if value is not None]
        best: list[tuple[int, float]] = []
        for shape, wanted in (("o", True), ("x", False)):
            points = [(place, value) for place, value, is_whole in known if is_whole is wanted]
            if points:
                axes.plot(*zip(*points, strict=True), shape, color=COLOURS["lr-0.05"][0], markersize=4.5)
        for place, value, is_whole in known:
            if is_whole:
                best.append((place, max(value, best[-1][1] if best else value)))
        if best:
            axes.step(*zip(*best, strict=True), where="post", color=COLOURS["lr-0.5"][0], linewidth=1.8)
        axes.set_xlabel("trial")
        axes.set_ylabel("validation accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))

    return draw(name, alt, (WIDTH, 3.4), paint)


def draw_bars(name: str, shares: Mapping[str, float], axis: str, alt: str) -> Panel:
    """Draws a bar across for each share (0 to 1), the first on top."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(shares))
        axes.barh(places, [100 * share for share in shares.values()], height=0.6, color=COLOURS["lr-0.05"][0])
        axes.set_yticks(places, [label(name) for name in shares])
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(axis)

    return draw(name, alt, (WIDTH, 0.9 + 0.3 * len(shares)), paint)


def draw_class_bars(
    name: str,
    labels: Sequence[str],
    accuracies: NDArray[np.float64],
    colour: str,
    alt: str,
    *,
    dots: NDArray[np.float64] | None = None,
) -> Panel:
    """Draws a bar across for each class: the mean over the runs, with a line from the lowest to the highest run.

    Args:
        name: of the drawing's file.
        labels: K names.
        accuracies: float64 [runs, K], from 0 to 1, none of them NaN.
        colour: of the bars.
        alt: what the drawing shows, in words.
        dots: float64 [K], from 0 to 1: further marks.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places, means = np.arange(len(labels)), 100 * accuracies.mean(axis=0)
        axes.barh(places, means, height=0.72, color=colour)
        if len(accuracies) > 1:
            low, high = 100 * accuracies.min(axis=0), 100 * accuracies.max(axis=0)
            axes.hlines(places, low, high, color=INK, linewidth=1.2)
        if dots is not None:
            axes.plot(100 * dots, places, "D", color=INK, markerfacecolor=PAPER, markersize=5, clip_on=False)
        axes.set_yticks(places, labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("accuracy, %")

    return draw(name, alt, (WIDTH, 0.8 + 0.2 * len(labels)), paint)


def draw_confusion(
    name: str, share: NDArray[np.float64], blocks: Sequence[tuple[str, int]], colour: str, alt: str
) -> Panel:
    """Draws a confusion matrix: labels down, predictions across.

    Args:
        name: of the drawing's file.
        share: float64 [K, K], from 0 to 1: of each class's images.
        blocks: neighbouring classes that share a label: its text, and how many they are.
        colour: of a share of 1; less is paler.
        alt: what the drawing shows, in words.
    """
    red, green, blue = bytes.fromhex(colour[1:])

    def tinted(values: NDArray[np.float64]) -> NDArray[np.uint8]:
        pixels = np.empty((*values.shape, 4), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = red, green, blue
        pixels[..., 3] = np.round(255 * np.sqrt(values))
        return pixels

    def paint(figure: Figure) -> None:
        axes, bar = figure.subplots(1, 2, width_ratios=[40, 1])
        edges = np.cumsum([0, *(count for _, count in blocks)])
        axes.imshow(tinted(share))
        axes.set_yticks((edges[1:] + edges[:-1]) / 2 - 0.5, [name for name, _ in blocks], fontsize=9)
        axes.set_xticks((edges[1:] + edges[:-1]) / 2 - 0.5, [name for name, _ in blocks], fontsize=9, rotation=90)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for edge in edges:
            axes.axhline(edge - 0.5, color=GRID, linewidth=0.6)
            axes.axvline(edge - 0.5, color=GRID, linewidth=0.6)
        axes.set_ylabel("label")
        axes.set_xlabel("prediction")
        bar.imshow(tinted(np.linspace(1, 0, 100)[:, None]), aspect="auto", extent=(0, 1, 0, 100))
        bar.set_xticks([])
        bar.yaxis.tick_right()
        bar.set_title("%", loc="center")
        bar.grid(visible=False)

    return draw(name, alt, (8.6, 8.0), paint, wide=True)


def draw_reliability(name: str, title: str, reliability: Reliability, colour: str, alt: str) -> Panel:
    """Accuracy against confidence, bin by bin, over the share of the images in each bin."""

    def paint(figure: Figure) -> None:
        axes, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
        bins = len(reliability.count)
        centres = (np.arange(bins) + 0.5) / bins
        axes.set_title(title)
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 2)))
        some = reliability.count > 0
        axes.plot(
            reliability.confidence[some], reliability.accuracy[some], "o-", color=colour, linewidth=1.8, markersize=4
        )
        axes.set_ylabel("accuracy")
        axes.set_ylim(0, 1)
        axes.set_xlim(0, 1)
        below.bar(centres, 100 * reliability.count / reliability.count.sum(), width=0.9 / bins, color=colour, alpha=0.6)
        below.set_ylabel("% of images")
        below.set_xlabel("confidence")

    return draw(name, alt, (3.4, 3.8), paint)


def series(results: Mapping[str, float]) -> str:
    """`a 1.00 %, b 2.00 %`, for the text that stands for a drawing."""
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in results.items())
