"""What people are told: notes on stderr, the nearest known name, and names made fit to be shown."""

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress

from fastcifar import text

_LONGEST_MESSAGE = 4000  # characters
_MOST_COMPARED = 5000  # names that a mistyped one is compared with


def note(said: str) -> None:
    """Tell the person at the keyboard something that is not an error, on stderr.

    Args:
        said: One or more lines. What would act on a terminal is escaped.
    """
    if sys.stderr is not None:  # closed by the shell: 2>&-
        with suppress(OSError):
            print(f"fastcifar: {message(said)}", file=sys.stderr, flush=True)


def message(said: str) -> str:
    """Escape a message like a name, but for its line breaks, and cut it where nobody would read on.

    Args:
        said: The message.

    Returns:
        At most some 4,000 characters that are fit for a terminal.
    """
    escaped = text.printable_lines(said)
    return escaped if len(escaped) <= _LONGEST_MESSAGE else f"{escaped[:_LONGEST_MESSAGE]} ..."


def listed(names: Sequence[str], most: int = 8, nothing: str = "nothing") -> str:
    """The first names of a list, each cut to 60 characters, and how many more there are.

    Args:
        names: What is listed.
        most: How many names are shown.
        nothing: What an empty list reads as.

    Returns:
        Such as ``a, b and 7 more``.
    """
    shown = ", ".join(text.printable(name if len(name) <= 60 else f"{name[:57]}...") for name in names[:most])
    return (shown or nothing) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def nearest(wrong: str, known: Iterable[str]) -> str:
    """A hint at what was meant.

    Args:
        wrong: The name that is not known.
        known: The names that are.

    Returns:
        `` Did you mean 'X'?`` where a known name is near (case, hyphens and underscores do not count), else nothing.
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
