"""A line on stderr that can do no harm: whoever watches may be gone, and names may hold anything."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

from fastcifar.text import printable

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF, errno.ENODEV)
"""What the system says of a stream whose other end is gone: a closed terminal, `| head`."""


class Unfailing:
    """A stream for people that raises nothing into the work it tells of.

    What a closed stream (`2>&-`), a terminal that is gone or a full disk does not take is lost, and nobody hears of it:
    hours of training must not end with whoever watched them. Characters that the stream's encoding lacks are
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
            except (OSError, ValueError) as problem:
                self._drop(problem)
        return len(text)

    def flush(self) -> None:
        """Sends what was written on its way."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as problem:
                self._drop(problem)

    def _drop(self, problem: OSError | ValueError) -> None:
        """Forgets what could not be written. Ends all writing if the reader is gone, and does not just lack room."""
        stream = self._stream
        is_gone = isinstance(problem, (ValueError, BrokenPipeError)) or problem.errno in _GONE
        if is_gone:
            self._stream = None
        # What the stream still holds would fail again at the interpreter's end, which then exits with 120.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            assert stream is not None
            if stream.fileno() == 2:
                nowhere, before = os.open(os.devnull, os.O_WRONLY), os.dup(2)
                os.dup2(nowhere, 2)
                stream.flush()
                if not is_gone:
                    os.dup2(before, 2)
                os.close(nowhere)
                os.close(before)


def unfailing(stream: TextIO | Unfailing | None) -> Unfailing:
    """A stream as one that raises nothing; the stream itself, if it is one already."""
    return stream if isinstance(stream, Unfailing) else Unfailing(stream)


@contextlib.contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Makes sys.stderr a stream that raises nothing, for whatever is printed to it until the context ends.

    Where stderr was closed there is none, and `print(file=None)` would write to stdout, among the results.
    """
    before = sys.stderr
    sys.stderr = cast(TextIO, unfailing(before))
    try:
        yield
    finally:
        sys.stderr = before


def note(text: str, before: str = "note: ") -> None:
    """Tells the person at the keyboard what they should know but what stops nothing: a line on stderr.

    Args:
        text: the line, in which characters that a terminal would obey are written as escapes.
        before: what it begins with.
    """
    stream = unfailing(sys.stderr)
    stream.write(f"{before}{printable(text)}\n")
    stream.flush()
