"""Commands as real processes, forked from one that has imported torch, with a shim between them and their files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fastcifar

HERE = Path(__file__).resolve().parent
NOTHING, KILL_BEFORE, KILL_INSIDE, FAIL_ONCE, FAIL_FROM_THERE = range(5)  # shim.c: enum Action


@dataclass(frozen=True)
class Fault:
    """What the shim does to a process.

    Attributes:
        action: one of the constants above.
        at: the number of the call that it is done to, counted from 1.
        error: the system's error, for the two actions that fail.
    """

    action: int = NOTHING
    at: int = 0
    error: int = 0


@dataclass(frozen=True)
class Call:
    """A call that the shim has seen.

    Attributes:
        number: counted from 1.
        name: such as `write`. `create`, `empty`, `update` and `open` are four kinds of opening.
        path: what it was done to.
        other: the new name of what was renamed.
        value: the bytes of a write, the size of a truncated file, the flags of what has flags.
        content: what was written.
    """

    number: int
    name: str
    path: Path
    other: Path
    value: int
    content: bytes = b""

    @property
    def changes(self) -> bool:
        """Whether it changes what a crash may leave on the disk."""
        return self.name not in ("open", "read", "update")

    @property
    def takes_room(self) -> bool:
        """Whether a full disk may refuse it."""
        return self.name in ("create", "write", "mkdir", "rename", "fsync")

    @property
    def switches(self) -> bool:
        """Whether it puts a new checkpoint in place."""
        return self.name == "rename" and self.other.name == "checkpoint.json"


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; below 0 the number of the signal that killed it.
        out: what it printed.
        err: what it printed to stderr.
        calls: the calls that the shim saw, if it was asked to record them.
    """

    code: int
    out: str
    err: str
    calls: list[Call] = field(default_factory=list)

    def check(self, *codes: int) -> Ended:
        """Fails unless the command ended with one of the codes, and with words for people."""
        assert self.code in codes, (self.code, self.err)
        assert not re.search(r"Traceback|unexpected \w+:|fault of fastcifar", self.err + self.out), self.err
        return self


class Forge:
    """Runs commands. It is a context: the process that they are forked from ends with it.

    Args:
        folder: a new one, for the shim and for what the commands print.
        environment: variables of all commands.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._started = folder, 0
        self._printed: dict[int, tuple[Path, Path]] = {}
        if (compiler := shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")) is None:
            pytest.skip("no C compiler: the shim cannot be built")
        library = folder / "shim.so"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True)
        variables = {**os.environ, **environment, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        variables["PYTHONPATH"] = str(Path(fastcifar.__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, HERE / "forge.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        assert self._answer() == "ready"

    def __enter__(self) -> Forge:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        *command: object,
        root: Path | None = None,
        fault: Fault = Fault(),  # noqa: B008 (it is frozen)
        traced: bool = False,
        sabotage: Sequence[object] = ("nothing",),
        drawn: bool = False,
    ) -> Ended:
        """Runs a `fastcifar` command to its end.

        Args:
            *command: its words.
            root: the folder in which the shim sees calls; None switches it off.
            fault: what the shim does there.
            traced: whether the calls are recorded.
            sabotage: the name of a function of sabotage.py, and its arguments.
            drawn: whether the curves are drawn, which takes ten times as long as a tiny training.
        """
        trace = self._folder / "trace" if traced else None
        ended = self.wait(self.start(*command, root=root, fault=fault, trace=trace, sabotage=sabotage, drawn=drawn))
        ended.calls = read_trace(trace) if trace is not None else []
        return ended

    def start(
        self,
        *command: object,
        root: Path | None = None,
        fault: Fault = Fault(),  # noqa: B008 (it is frozen)
        trace: Path | None = None,
        sabotage: Sequence[object] = ("nothing",),
        drawn: bool = False,
    ) -> int:
        """Starts a command. The arguments are as for `run`; returns the process's number."""
        self._started += 1
        name, *arguments = sabotage
        out, err = (self._folder / f"{kind}{self._started}" for kind in ("out", "err"))
        request = {
            "command": list(map(str, command)),
            "out": str(out),
            "err": str(err),
            "root": str(root or ""),
            "fault": [fault.action, fault.at, fault.error],
            "trace": str(trace or ""),
            "sabotage": name,
            "arguments": arguments,
            "drawn": drawn,
        }
        process = int(self._answer(request))
        self._printed[process] = out, err
        return process

    def wait(self, process: int) -> Ended:
        """Waits for a command that was started."""
        code = int(self._answer({"wait_for": process}))
        out, err = (path.read_text(errors="replace") for path in self._printed[process])
        for path in self._printed.pop(process):
            path.unlink()
        return Ended(code, out, err)

    def _answer(self, request: dict[str, Any] | None = None) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        if request is not None:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def read_trace(path: Path) -> list[Call]:
    """The calls that the shim has recorded, with what was written."""
    calls = []
    with path.open("rb") as file:
        while line := file.readline():
            number, name, target, other, value = os.fsdecode(line.rstrip(b"\n")).split("\t")
            content = file.read(int(value)) if name == "write" else b""
            calls.append(Call(int(number), name, Path(target), Path(other), int(value), content))
    return calls
