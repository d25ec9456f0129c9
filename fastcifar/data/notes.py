"""What is told to the person at the keyboard and is no error."""

import difflib
import sys
from collections.abc import Iterable


def note(text: str) -> None:
    """Tell the person at the keyboard something that is not an error, on stderr."""
    print(f"fastcifar: {text}", file=sys.stderr, flush=True)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`` Did you mean X?`` where something known is near, else nothing."""
    match = difflib.get_close_matches(wrong, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
