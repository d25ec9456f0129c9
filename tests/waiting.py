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
