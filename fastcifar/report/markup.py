"""The marks in the texts of the document: `code`, **bold** and [link](#place).

Texts of the document come from two hands. This program's own words may hold marks. What somebody else wrote (the name
of a class, of a trial or of a file, a message, a command) goes through `plain` or `code`: no character of it is a mark
then, in HTML, in Markdown and in CSV.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_SPECIAL = r"\\`*_\[\]<>&|~$"
"""What HTML or Markdown may take for a mark."""
_MARK = re.compile(
    rf"""\\(?P<plain>[{_SPECIAL}])
      | `(?P<code>(?:\\[\\`]|[^`\\]|\\(?![\\`]))+)`
      | \*\*(?P<bold>(?:\\.|[^\\])+?)\*\*
      | \[(?P<label>(?:\\.|[^\]\\])+)\]\((?P<target>\#[\w.-]+)\)""",
    re.VERBOSE,
)
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of what follows them, also of words that are not part of the name."""


@dataclass(frozen=True)
class Piece:
    """A part of a text of the document.

    Attributes:
        kind: `text` (own words), `plain` (a character that is no mark), `code`, `bold` or `link`.
        text: what it holds. That of `bold` and `link` holds marks in turn.
        target: the place that a link leads to, with its `#`.
    """

    kind: Literal["text", "plain", "code", "bold", "link"]
    text: str
    target: str = ""


def pieces(text: str) -> Iterator[Piece]:
    """The parts of a text of the document, in their order."""
    end = 0
    for match in _MARK.finditer(text):
        if match.start() > end:
            yield Piece("text", text[end : match.start()])
        end = match.end()
        if (found := match["plain"]) is not None:
            yield Piece("plain", found)
        elif (found := match["code"]) is not None:
            yield Piece("code", re.sub(r"\\([\\`])", r"\1", found))
        elif (found := match["bold"]) is not None:
            yield Piece("bold", found)
        else:
            yield Piece("link", match["label"], match["target"])
    if end < len(text):
        yield Piece("text", text[end:])


def plain(text: str) -> str:
    """What somebody else wrote, for a text of the document."""
    return re.sub(rf"[{_SPECIAL}]", r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """What somebody else typed, set as code, for a text of the document."""
    return "`" + re.sub(r"[\\`]", r"\\\g<0>", printable(text)) + "`" if text else ""


def without_marks(text: str) -> str:
    """A text of the document as words alone."""
    return "".join(
        without_marks(piece.text) if piece.kind in ("bold", "link") else piece.text for piece in pieces(text)
    )


def printable(text: str) -> str:
    r"""`text` with escapes such as `\x07` in place of what cannot be shown or must not act.

    These are control characters, halves of characters (from file names that are not UTF-8) and what turns the direction
    of writing. A line feed or a tab becomes a space. A word that is written from right to left is set apart by
    invisible characters (Unicode's isolates), so that what follows it keeps its order.
    """
    spaced = re.sub(r"\s+", " ", text) if re.search(r"[^\S \xa0]", text) else text
    shown = "".join(_shown(character) for character in spaced)
    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in shown):
        return f"\u2068{shown}\u2069"
    return shown


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Cs", "Zl", "Zp") or character in _BIDIRECTIONAL or ord(character) & 0xFFFE == 0xFFFE:
        code_point = ord(character)
        return f"\\x{code_point:02x}" if code_point < 0x100 else f"\\u{code_point:04x}"
    return character
