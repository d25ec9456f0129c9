"""Signals that ask a command to stop, caught while it works and given back afterwards."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""A person's Ctrl-C, a batch system's end, a terminal that is closed, and a batch system's warning before the end."""


@contextlib.contextmanager
def caught(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Calls `handler` for each of the signals until the context ends, which gives them back.

    A signal that the process ignores stays ignored if it is SIGHUP: `nohup` wants it so. Outside the main thread no
    signal can be caught, and nothing is done: whoever started the thread decides.

    Args:
        handler: called in the main thread with the signal's number and the frame that it interrupted.
        *numbers: the signals; `STOP` if there are none.
    """
    before = {}
    try:
        for number in numbers or STOP:
            earlier = signal.getsignal(number)
            if number != signal.SIGHUP or earlier != signal.SIG_IGN:
                signal.signal(number, handler)
                before[number] = earlier
    except ValueError:  # not in the main thread
        pass
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Stop:
    """Whether a signal has asked the command to stop.

    Attributes:
        number: the signal; 0 while there was none.
    """

    number = 0


@contextlib.contextmanager
def noted(*numbers: int) -> Iterator[Stop]:
    """Notes a signal for a loop to see. A second one acts as it did before: it ends the process at once.

    Args:
        *numbers: the signals; `STOP` if there are none.
    """
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        stop.number = number
        catching.close()

    with contextlib.ExitStack() as catching:
        catching.enter_context(caught(note, *numbers))
        yield stop


@contextlib.contextmanager
def as_interrupts(*numbers: int) -> Iterator[Stop]:
    """Makes a KeyboardInterrupt of each of the signals, as Ctrl-C is one already; `number` says which it was.

    Args:
        *numbers: the signals; all of `STOP` but SIGINT if there are none.
    """
    stop = Stop()
    stop.number = signal.SIGINT

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.number = number
        raise KeyboardInterrupt

    with caught(interrupt, *(numbers or STOP[1:])):
        yield stop
