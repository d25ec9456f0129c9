"""Pictures by matplotlib without pyplot: no window, no state of the process, the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "fastcifar",  # and no date in `save`: the same numbers give the same bytes
    "text.parse_math": False,  # a name with a dollar is a name
}
"""What all pictures have in common. Text is written as it stands, so an axis must not ask for mathematics: give a
logarithmic one a formatter of its own."""


@contextlib.contextmanager
def styled(style: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draws in this project's style until the context ends.

    Characters that no font here has are drawn as boxes, and a name that leaves no room for the picture is drawn all the
    same, without a warning of matplotlib's.

    Args:
        style: settings of matplotlib that go over `STYLE`.
    """
    from matplotlib import rc_context

    with rc_context({**STYLE, **(style or {})}), warnings.catch_warnings():
        for harmless in ("Glyph .* missing from", "constrained_layout not applied"):
            warnings.filterwarnings("ignore", harmless, UserWarning)
        yield


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure.

    Args:
        width: inches.
        height: inches.
        layout: `constrained` lays its parts out so that no label is cut off; None leaves them where they are put.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path_stem: Path) -> list[Path]:
    """Writes a figure to `path_stem`.svg and `path_stem`.png.

    Args:
        figure: drawn inside `styled`, which is still open.
        path_stem: where the pictures go, without the ending.

    Returns:
        The two paths.
    """
    paths = [Path(f"{path_stem}{ending}") for ending in (".svg", ".png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.set_layout_engine("none")  # keeps the layout, which took longer than drawing
    figure.savefig(paths[1], dpi=120)
    return paths
