"""How PyTorch's threads on the CPU wait for each other: spinning, or asleep where other programs use their cores.

A thread that spins uses up its share of a core that another program wants too, and has none left when there is work.
Measured on two cores (docs/log.md): beside one busy process 198 images/s asleep and 164 spinning, without one 315 and
338.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path

from fastcifar.run.environment import usable_cores
from fastcifar.ui.notes import note

POLICY = "OMP_WAIT_POLICY"
GPU = Path("/dev/nvidiactl")
"""Is there where an NVIDIA driver is."""
_LOOK_SECONDS = 0.1  # ten ticks a core


def choose(device: str) -> None:
    """Makes the threads of PyTorch sleep while they wait, if other programs leave them too few cores; says so.

    OpenMP reads the choice as PyTorch is imported: afterwards this does nothing. It does nothing either where the user
    has chosen, or where a GPU trains.

    Args:
        device: where to train: `auto`, `cpu`, `cuda` or `cuda:N`.
    """
    if "torch" in sys.modules or not {POLICY, "GOMP_SPINCOUNT"}.isdisjoint(os.environ):
        return
    if device != "cpu" and (device != "auto" or GPU.exists()):
        return
    cores = allowed_cores()
    others = busy_cores(cores)
    if others is None:
        return
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdecimal() else max(1, int(usable_cores() or 1))
    if others + threads < len(cores) + 0.5:
        return
    os.environ[POLICY] = "PASSIVE"
    note(
        f"other programs use {others:.1f} of {len(cores)} cores: threads sleep while they wait ({POLICY}=PASSIVE)",
        "fastcifar: ",
    )


def allowed_cores() -> set[int]:
    """The numbers of the cores that this process may run on; empty where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def busy_cores(cores: Collection[int], seconds: float = _LOOK_SECONDS) -> float | None:
    """How many of some cores others keep busy now, without programs that are nice; None if it is not known.

    Args:
        cores: the numbers of the cores.
        seconds: how long to look. This process sleeps meanwhile.
    """
    before = _busy_ticks(cores)
    time.sleep(seconds)
    after = _busy_ticks(cores)
    if before is None or after is None:
        return None
    return max(0.0, (after - before) / os.sysconf("SC_CLK_TCK") / seconds)


def _busy_ticks(cores: Collection[int]) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return busy_ticks(Path("/proc/stat").read_text(), cores)
    return None


def busy_ticks(stat: str, cores: Collection[int]) -> int:
    """The ticks since the machine's start in which some cores worked, not counting the work of nice programs.

    Args:
        stat: the text of /proc/stat: for each core user, nice, system, idle, iowait, irq, softirq and more.
        cores: the numbers of the cores.

    Raises:
        ValueError: the text has no line for any of the cores.
    """
    rows = [line.split() for line in stat.splitlines() if line.startswith("cpu") and line[3:4].isdecimal()]
    ticks = [sum(int(row[i]) for i in (1, 3, 6, 7)) for row in rows if int(row[0][3:]) in cores and len(row) > 7]
    if not ticks:
        raise ValueError("/proc/stat has none of these cores")
    return sum(ticks)
