"""The style of the drawings, each an SVG in fixed colours on paper; `THEME` says what replaces them in the dark.

Text stays text (it can be searched, and is read with the fonts of whoever reads it).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastcifar.report.document import Panel
from fastcifar.ui.drawing import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


INK, SOFT, GRID, PAPER = "#1b1b1f", "#5c5c66", "#e6e6ea", "#fefefe"

COLOURS = {  # trial: in the light, in the dark
    "lr-0.05": ("#0072b2", "#4fa8e0"),
    "lr-0.5": ("#d55e00", "#f0824a"),
    "lr-0.01": ("#009e73", "#35c79b"),
    "constant": ("#6e6e78", "#b4b4be"),
    "cosine": ("#d08c00", "#f0b341"),
    "wd-1e-4": ("#3d9fd6", "#7cc6f2"),
    "wd-5e-4": ("#b8568f", "#e08cba"),
    "final": ("#332288", "#9a8cf0"),
    "final-alpha-0.5": ("#882255", "#e0709c"),
    "best": ("#117733", "#5fbf7a"),
    "speedrun": ("#8c4b2f", "#d08a66"),
}
"""After Okabe and Ito (2008) and Tol's muted scheme: those that meet in one drawing differ for any colour vision."""

_OTHERS = (("#7f7f2a", "#c8c864"), ("#2f8a80", "#5fc8bc"), ("#8c564b", "#cf9484"), ("#4b5a8c", "#97a8e0"))

THEME = {
    INK: ("ink", INK, "#e9e9ee"),
    SOFT: ("soft", SOFT, "#a5a5b0"),
    GRID: ("grid", GRID, "#32323a"),
    PAPER: ("drawing", "transparent", "transparent"),
    **{
        light: (f"series-{i}", light, dark)
        for i, (light, dark) in enumerate([*COLOURS.values(), *_OTHERS])
    },
}  # fmt: skip
"""A colour as drawn -> the page's variable, its value in the light, its value in the dark."""

WIDTH = 5.0  # inches of a panel: 480 pixels, which a phone shows at 70 %

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "image.interpolation": "none",
    "image.composite_image": False,
}


def colour_of(name: str) -> str:
    """The trial's colour in the light, the same in every drawing of every page."""
    if name in COLOURS:
        return COLOURS[name][0]
    return _OTHERS[sum(name.encode("utf-8", "surrogatepass")) % len(_OTHERS)][0]


def colours_of(count: int) -> list[str]:
    """Colours in the light for `count` trials of one's own, by their place: neighbours in a drawing differ."""
    every = [light for light, _ in (*COLOURS.values(), *_OTHERS)]
    return [every[place % len(every)] for place in range(count)]


def draw(
    name: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None], *, wide: bool = False
) -> Panel:
    """Makes a drawing.

    Args:
        name: of its file, without the ending.
        alt: what it shows, for who cannot see it.
        size: inches, across and down.
        paint: draws on the empty figure that it is given.
        wide: it is not to be shrunk to the width of a phone, but scrolled.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with styled(_STYLE):
        # Space at the sides: a reader's font may be wider than the one measured with.
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08))
        FigureCanvasSVG(figure)
        paint(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Panel(name, alt, _slimmed(text.getvalue()), wide)


def _slimmed(svg: str) -> str:
    """Without comments, metadata and the names that nothing refers to; numbers to a hundredth of a point."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<!DOCTYPE.*?>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"(?<=[ML ])(-?\d+\.\d{2})\d+", r"\1", svg)
    return re.sub(r"\n\s*\n+", "\n", svg).strip() + "\n"
