"""A process that answers questions, in lines of JSON; and the time and memory that processes have used (Linux).

Measurements in processes of their own cannot change the allocator or the compiler of each other. If the process
crashes or is killed, its death is the answer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.run.affinity import busy_ticks
from fastcifar.run.clock import times_in


@dataclass(frozen=True)
class Death:
    """How a process ended before it answered.

    Attributes:
        kind: the name of the signal that ended the process, or `exit`.
        message: how the process ended, in words, with the last line that it wrote to stderr.
    """

    kind: str
    message: str


class Process:
    """A process that runs `serve`. It is a context; when the context ends, the process is killed.

    Args:
        command: the program and its arguments.
        environment: environment variables for the process, added to the ones that this process has.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):  # the process did not read all of it
            self._process.stdin.close()
        self._process.stdout.close()
        self._stderr.close()

    def ask(self, question: Mapping[str, Any], *, last: bool = False) -> dict[str, Any] | Death:
        """Sends a question and waits for its answer.

        Args:
            question: values that JSON can hold, by name.
            last: whether this is the last question. Then the end of the process is waited for.

        Returns:
            The answer or, if the process ended without one, how it ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; its exit code says more
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
        if last:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
        line = stdout.readline()  # not read(): the process's children may keep the pipe open
        if last:
            self._process.wait()
        try:
            answer: dict[str, Any] = json.loads(line)
            return answer
        except ValueError:
            self._process.wait()
            return self._death()

    def _death(self) -> Death:
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        said, code = f": {lines[-1]}" if lines else "", self._process.returncode
        if code >= 0:
            return Death("exit", f"the measuring process ended with exit code {code}{said}")
        name = signal.Signals(-code).name
        hint = " (the system ends a process so when memory runs out)" if name == "SIGKILL" else ""
        return Death(name, f"the measuring process was ended by {name}{hint}{said}")


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers the questions on stdin, one after the other, on stdout. All other output goes to stderr.

    Args:
        answer: question -> answer, both of values that JSON can hold.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)  # other prints must not look like answers
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=stdout, flush=True)


def peak_memory_gib() -> float:
    """The peak memory of this process. On Linux, getrusage would count the parent process's memory too."""
    try:
        match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def seconds_of(pid: int, proc: Path = Path("/proc")) -> float:
    """The processor seconds of a process and of its descendants that still run.

    Args:
        pid: the process.
        proc: where Linux describes its processes.
    """
    times = times_in(proc)
    return sum(times[process][1] for process in _family(pid, times)) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int, proc: Path = Path("/proc")) -> int:
    """The bytes of memory that a process and its descendants use; memory that several share counts once.

    Args:
        pid: the process.
        proc: where Linux describes its processes.
    """
    kib = 0
    for process in _family(pid, times_in(proc)):
        with contextlib.suppress(OSError):  # it has ended
            kib += int((proc / str(process) / "smaps_rollup").read_text().partition("\nPss:")[2].split()[0])
    return kib * 1024


def seconds_of_others(cores: Collection[int], proc: Path = Path("/proc")) -> float:
    """The seconds since boot for which all other programs, and other virtual machines, have used some cores.

    Args:
        cores: the numbers of the cores; this process and its descendants use no others.
        proc: where Linux describes its processes.

    Returns:
        The seconds, without the time of this process and its descendants; NaN where the system does not tell.
    """
    try:
        ticks = busy_ticks((proc / "stat").read_text(), cores, with_nice=True, with_stolen=True)
        times = times_in(proc)
    except (OSError, ValueError):
        return math.nan
    ours = sum(times[process][1] for process in _family(os.getpid(), times))
    return (ticks - ours) / os.sysconf("SC_CLK_TCK")


def share_of_cores(seconds: float, elapsed: float, num_cores: int) -> float:
    """The share, 0 to 1, of the time of some cores that `seconds` of work are; NaN where `seconds` is.

    Args:
        seconds: of work on the cores, such as `seconds_of_others` tells; what it rounds may make it too small or large.
        elapsed: the seconds in which it was done.
        num_cores: the number of cores.
    """
    return min(max(seconds / (elapsed * num_cores), 0.0), 1.0)  # both give the first one where it is NaN


def _family(pid: int, times: Mapping[int, tuple[int, int]]) -> Iterable[int]:
    """The process and its descendants that still run."""
    family = found = {pid} & times.keys()
    while found:
        found = {process for process, (parent, _) in times.items() if parent in found} - family
        family |= found
    return family
