"""Texts for the user: notes on stderr, the nearest known name, and lists of names."""

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress

from fastcifar import text

_LONGEST_MESSAGE = 4000  # characters
_MOST_COMPARED = 5000  # how many known names a mistyped name is compared with


def note(said: str) -> None:
    """Prints a remark that is not an error to stderr.

    Args:
        said: one or more lines. Control characters are escaped.
    """
    if sys.stderr is not None:  # closed by the shell: 2>&-
        with suppress(OSError):
            print(f"fastcifar: {message(said)}", file=sys.stderr, flush=True)


def message(said: str) -> str:
    """Escapes the control characters of a message, except line breaks, and cuts a very long message.

    Args:
        said: the message.

    Returns:
        Printable text of about 4,000 characters at most.
    """
    escaped = text.printable_lines(said)
    return escaped if len(escaped) <= _LONGEST_MESSAGE else f"{escaped[:_LONGEST_MESSAGE]} ..."


def listed(names: Sequence[str], most: int = 8, nothing: str = "nothing") -> str:
    """The first names of a list, each cut to 60 characters, and the number of the rest.

    Args:
        names: the list.
        most: how many names are shown.
        nothing: the text for an empty list.

    Returns:
        A text such as `a, b and 7 more`.
    """
    shown = ", ".join(text.printable(name if len(name) <= 60 else f"{name[:57]}...") for name in names[:most])
    return (shown or nothing) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def nearest(wrong: str, known: Iterable[str]) -> str:
    """A hint at the name that was meant.

    Args:
        wrong: the name that is not known.
        known: the known names.

    Returns:
        `Did you mean 'X'?` after a space, if a known name is similar; otherwise an empty text. Upper and lower case,
        hyphens and underscores make no difference.
    """
    names = [name for name, _ in zip(known, range(_MOST_COMPARED), strict=False)]
    by_plain = {_plain(name): name for name in reversed(names)}
    plain = _plain(wrong)
    match = by_plain.get(plain) if plain else None
    if match is None:
        match = text.nearest(wrong, names)
    if match is None and (close := text.nearest(plain, by_plain)) is not None:
        match = by_plain[close]
    return f" Did you mean {text.printable(match)!r}?" if match is not None else ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
