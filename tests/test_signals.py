"""Signals that ask to stop are caught and told apart, and their handlers are restored."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from fastcifar import signals


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """Restores the default handlers: pytest may run as a shell's background job, which ignores some signals."""
    before = {number: signal.getsignal(number) for number in signals.STOP}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in signals.STOP[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.STOP, ids=lambda number: number.name)
def test_the_first_is_noted_and_the_second_acts(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in signals.STOP]
    with signals.noted() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), number)
        assert stop.number == number
        assert [signal.getsignal(n) for n in signals.STOP] == before
    assert [signal.getsignal(n) for n in signals.STOP] == before


def test_nohup_stays_deaf_to_a_closed_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.noted() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", signals.STOP, ids=lambda number: number.name)
def test_each_may_be_an_interrupt(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), signals.as_interrupts() as stop:
        os.kill(os.getpid(), number)
    assert stop.number == number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_error_gives_them_back() -> None:
    before = [signal.getsignal(n) for n in signals.STOP]
    with pytest.raises(KeyError), signals.noted():
        raise KeyError
    assert [signal.getsignal(n) for n in signals.STOP] == before


def test_another_thread_catches_nothing() -> None:
    seen = []

    def work() -> None:
        with signals.noted() as stop, signals.as_interrupts():
            seen.append(stop.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_closed_terminal_ends_the_second_time() -> None:
    script = """
        import os, signal
        from fastcifar import signals
        with signals.noted() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            print("saved", stop.number, flush=True)
            os.kill(os.getpid(), signal.SIGHUP)
            print("never")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGHUP, f"saved {signal.SIGHUP:d}\n")
