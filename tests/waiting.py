"""Waiting in tests of several processes."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
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


def until(condition: Callable[[], Any], process: "subprocess.Popen[str] | None" = None, seconds: float = 120) -> None:
    """Waits for another process. Fails after so many seconds, and with what `process` printed if it has ended."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"it has not come in {seconds} s"
        time.sleep(0.01)


def until_epochs(process: "subprocess.Popen[str]", run: Path, count: int) -> None:
    """Waits until `process` has written `count` epochs of a run."""
    metrics = run / "metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= count, process)
