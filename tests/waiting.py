"""Waiting in tests of several processes."""

import threading
import time
from collections.abc import Callable
from typing import Any


def when(condition: Callable[[], Any], action: Callable[[], Any], seconds: float = 60) -> threading.Thread:
    """Calls `action` in a thread as soon as `condition` is true."""

    def wait() -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        action()  # also if it is too late: then the test fails and ends

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def until(condition: Callable[[], Any], ended: Callable[[], Any] = lambda: None, seconds: float = 120) -> None:
    """Waits for another process's doing. Fails after so many seconds, and once `ended` has an exit code."""
    end = time.monotonic() + seconds
    while not condition():
        code = ended()
        assert code is None, f"the process has ended with code {code}"
        assert time.monotonic() < end, f"it has not come in {seconds} s"
        time.sleep(0.01)
