"""A busy process. A measurement beside it shows what a shared machine does to a step.

Where two threads of a step share a core, one neighbour costs far more than its share of the cores.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# It ends by itself when its parent is gone: a parent that was killed ends no other process.
_LOOP = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextmanager
def busy_process() -> Iterator[int]:
    """Keeps one core busy, from the beginning of the context to its end.

    Yields:
        The number of the busy process.
    """
    with subprocess.Popen([sys.executable, "-c", _LOOP], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
            yield process.pid
        finally:
            process.kill()
