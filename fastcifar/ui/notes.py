"""A line on stderr that can do no harm: whoever watches may be gone, and names may hold anything."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from fastcifar.text import printable


class Unfailing:
    """A stream for people that raises nothing into the work it tells of.

    A stream that was closed (`2>&-`), a terminal that is gone and a full disk take nothing more, and nobody hears of
    it: hours of training must not end with whoever watched them. Characters that the stream's encoding lacks are
    written as escapes.

    Args:
        stream: where to write; None where there is no such stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def is_gone(self) -> bool:
        """Whether nothing that is written arrives any more."""
        return self._stream is None

    @property
    def encoding(self) -> str:
        """Of the stream; rich asks for it, and draws with what it has."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The stream's descriptor.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise OSError("there is no stream")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Writes `text`, if there is still somebody to read it."""
        if self._stream is not None:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    encoding = self.encoding
                    self._stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Sends what was written on its way."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        """Ends all writing. What the stream still holds must not fail again when the interpreter flushes it."""
        stream, self._stream = self._stream, None
        try:
            if stream is sys.stderr or stream is sys.__stderr__:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        except OSError:
            pass


def note(text: str, before: str = "note: ") -> None:
    """Tells the person at the keyboard what they should know but what stops nothing: a line on stderr.

    Args:
        text: the line, in which characters that a terminal would obey are written as escapes.
        before: what it begins with.
    """
    stream = Unfailing(sys.stderr)
    stream.write(f"{before}{printable(text)}\n")
    stream.flush()
