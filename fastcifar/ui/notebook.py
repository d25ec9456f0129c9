"""A progress bar in a notebook: one line of HTML that is replaced in place, without widgets."""

from __future__ import annotations

import html
import sys
from typing import Any


def is_here() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, Colab), and not a terminal or a script."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class Bar:
    """A bar with words beside it, in the output of the cell that runs."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, done: float, words: str) -> None:
        """Shows the bar, or replaces the one that is shown.

        Args:
            done: 0 to 1.
            words: plain text.
        """
        from IPython.display import HTML, display  # type: ignore[import-not-found]

        text = HTML(
            f'<div style="font-family: monospace; white-space: pre"><progress value="{min(max(done, 0.0), 1.0):.4f}" '
            f'max="1" style="width: 20em; vertical-align: middle"></progress>  {html.escape(words)}</div>'
        )
        if self._handle is None:
            self._handle = display(text, display_id=True)
        else:
            self._handle.update(text)
