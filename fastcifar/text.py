"""Words for people: the nearest match, a line that holds anything, a path that can be pasted."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path


def nearest(word: str, words: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of `words` that somebody who wrote `word` probably meant.

    Args:
        word: what was written.
        words: what could have been meant.
        cutoff: how alike the two must be, from 0 (anything) to 1 (equal).

    Returns:
        The most alike of `words`, or None where none is alike enough.
    """
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str | None, before: str = "") -> str:
    """The end of a message that suggests `before` and `word`; empty where there is no word to suggest."""
    return f"; did you mean {before}{word}?" if word else ""


def one_line(text: str) -> str:
    """`text` as a problem's line can hold it, whatever is in it."""
    shown = printable(text)
    return shown if len(shown) <= 200 else f"{shown[:160]}... ({len(shown)} characters)"


def printable(text: str) -> str:
    """`text` with escapes in place of what cannot be printed on a line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def quoted(path: str | Path) -> str:
    """`path` as a shell reads it, for a command that a message suggests."""
    return shlex.quote(str(path))
