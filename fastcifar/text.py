"""Words for people: the nearest match, a line that holds anything, a path to be pasted, any text in any encoding."""

from __future__ import annotations

import codecs
import difflib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

ANY_STREAM = "fastcifar.readable"
"""The name of the error handler (`errors=` of a text stream) with which any text can be written in any encoding."""

_ASCII = {
    "±": "+/-",
    "…": "...",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "µ": "u",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "•": "*",
    "━": "-",
    "─": "-",
    "╸": "-",
    "╺": "-",
}
"""What stands for a character of ours where a stream cannot hold it."""

_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `words` that somebody who wrote `word` probably meant; small and capital letters are the same.

    Args:
        word: what was written.
        words: what could have been meant.
        cutoff: how alike the two must be, from 0 (anything) to 1 (equal).

    Returns:
        The most alike of `words`, or None where none is alike enough.
    """
    known: dict[str, str] = {}
    for candidate in words:
        known.setdefault(candidate.casefold(), candidate)
    matches = difflib.get_close_matches(word.casefold(), list(known), n=1, cutoff=cutoff)
    return known[matches[0]] if matches else None


def did_you_mean(word: str | None, before: str = "") -> str:
    """The end of a message that suggests `before` and `word`; empty where there is no word to suggest."""
    return f"; did you mean {before}{word}?" if word else ""


def one_line(text: str) -> str:
    """`text` as a problem's line can hold it, whatever is in it: if one character is escaped, backslashes are too."""
    shown = text if text.isprintable() else _as_bytes(text.encode("unicode_escape").decode())
    return shown if len(shown) <= 200 else f"{shown[:160]}... ({len(shown)} characters)"


def printable(text: str) -> str:
    r"""`text` fit for a terminal, a table and a UTF-8 file, on a line of its own.

    Args:
        text: any; bytes of a file name that are not UTF-8 stand in it as Python's surrogate escapes.

    Returns:
        The text with control characters, line breaks, marks that turn the direction of writing, and such bytes written
        as `\x1b`, `\n`, `\u202e`, `\xe9`.
    """
    return _UNFIT.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """As `printable`, but for tabs and line feeds, which stay."""
    return re.sub(r"[^\t\n]+", lambda line: printable(line[0]), text)


def _escaped(match: re.Match[str]) -> str:
    return _as_bytes(match[0].encode("unicode_escape").decode())


def is_utf8(text: str) -> bool:
    """Whether a UTF-8 file can hold `text`: the name of a file may have bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def quoted(path: str | Path) -> str:
    """`path` as a shell reads it, for a command that a message suggests."""
    text = str(path)
    if not text.isprintable():
        escaped = {"\\": "\\\\", "'": "\\'"}
        return "$'" + "".join(escaped.get(character) or printable(character) for character in text) + "'"
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _as_bytes(escaped: str) -> str:
    r"""`escaped` with `\xff` for `\udcff`: Python reads the byte ff of a name that is not UTF-8 as the latter."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", escaped)


def _readable(error: UnicodeError) -> tuple[str, int]:
    """The error handler `ANY_STREAM`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    words = []
    for character in error.object[error.start : error.end]:
        escaped = _as_bytes(character.encode("unicode_escape").decode())
        words.append(_ASCII.get(character, escaped))
    return "".join(words), error.end


codecs.register_error(ANY_STREAM, _readable)
