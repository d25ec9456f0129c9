"""A run of a study as a process of this machine: how it is started, stopped, and what ended it."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import filelock

import fastcifar
from fastcifar import signals
from fastcifar.config import RESUMABLE
from fastcifar.errors import UsageError, stopped_code
from fastcifar.run import failure
from fastcifar.run.environment import usable_cores
from fastcifar.run.names import CONFIG, ENVIRONMENT, LOCK, METRICS_CSV, METRICS_JSONL
from fastcifar.run.planned import PlannedRun
from fastcifar.studies.folder import Study

QUICK_JOBS = 4
"""The most that `study quick` runs side by side by default: each process holds a copy of PyTorch."""
JOBS_VARIABLE = "FASTCIFAR_STUDY_JOBS"
"""Tells a run's environment.json how many runs shared the machine."""
PROGRAM = (sys.executable, "-m", "fastcifar")

STOPPED = {stopped_code(number): number.name for number in signals.STOP}
"""Exit code of a run that a signal stopped after its state was saved -> the signal's name."""


def environment(jobs: int) -> dict[str, str]:
    """The environment variables of a run that trains beside `jobs` - 1 others.

    It gets its share of the processor's cores, unless the user has set the number of threads.
    """
    here = Path(fastcifar.__file__).resolve().parent.parent
    path = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # this code, whatever lies in the folder
    variables.pop(JOBS_VARIABLE, None)
    if jobs > 1:
        variables[JOBS_VARIABLE] = str(jobs)
        variables.setdefault("OMP_NUM_THREADS", str(max(1, int((usable_cores() or 1) // jobs))))
        variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would take from their neighbours
    return variables


def command(study: Study, run: PlannedRun, device: str = "") -> list[str]:
    """The arguments after `fastcifar` that begin a run, or that go on with it.

    Args:
        study: says the settings.
        run: the run.
        device: where it is to train; empty where the settings say it.
    """
    chosen = study.overrides(run.trial) | ({"device": device} if device else {})
    if (run.path / CONFIG).is_file():
        asked = study.config(run.trial, run.seed).device  # the run itself keeps the device that it had
        chosen = {"device": asked} | {key: text for key, text in chosen.items() if key in RESUMABLE}
        words = ["train", "--resume", str(run.path)]
    else:
        start = study.trials[run.trial].start
        begin = ["--config", str(study.files[start])] if start in study.files else ["--preset", start]
        words = ["train", *begin, "--seed", str(run.seed), "--out", str(run.path)]
    return words + [f"--{key.replace('_', '-')}={text}" for key, text in chosen.items()]


class Job(Protocol):
    """A run in training, wherever that is."""

    @property
    def run(self) -> PlannedRun:
        """What was planned."""

    @property
    def record(self) -> Path:
        """Where the command line of the run says why it failed."""

    @property
    def is_foreign(self) -> bool:
        """Whether an earlier study, killed since, started it: only the run folder says what becomes of it."""

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it; if it could, it saved its state before."""

    def ended(self) -> bool:
        """Whether the run trains no more."""

    def stop(self, *, kill: bool = False) -> None:
        """Lets the run save its state and end; with `kill`, ends it at once."""

    def reason(self) -> str:
        """Why it failed, in one line."""


class Machine(Protocol):
    """Where the runs of a study train."""

    @property
    def num_places(self) -> int:
        """How many runs train side by side."""

    def start(self, study: Study, run: PlannedRun, place: int) -> Job:
        """Starts a run, or waits for the process that trains it already.

        Args:
            study: says the settings.
            run: the run.
            place: from 0, less than `num_places`; no other run is there.

        Raises:
            UsageError: the run's folder holds something else.
            OSError: it cannot be started.
        """


@dataclass
class LocalJob:
    """A run that trains in a process of this machine.

    Attributes:
        run: what was planned.
        log: the file that holds what it prints.
        process: None where an earlier study started it and was killed since. The run's lock then says when it ends.
    """

    run: PlannedRun
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def record(self) -> Path:
        """Where the command line of the run says why it failed."""
        return self.log.with_suffix(".failure.json")

    def ended(self) -> bool:
        """Whether the run trains no more."""
        return not in_use(self.run.path) if self.process is None else self.process.poll() is not None

    @property
    def code(self) -> int:
        """The exit code; below 0 it is a signal's number. 0 where the process is not ours."""
        return 0 if self.process is None else int(self.process.returncode)

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it; if it could, it saved its state before."""
        return self.code < 0 or self.code in STOPPED

    @property
    def is_foreign(self) -> bool:
        """Whether an earlier study, killed since, started the process."""
        return self.process is None

    def stop(self, *, kill: bool = False) -> None:
        """Lets the run save its state and end; with `kill`, ends it at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def reason(self) -> str:
        """Why it failed, in one line: the signal that ended it, or what its record says (see `run.failure`)."""
        if self.code < 0:
            return f"killed by {signal_name(-self.code)}"
        if self.code in STOPPED:
            return f"stopped by {STOPPED[self.code]}"
        if (told := failure.read(self.record)) is not None:
            return told.reason
        return f"exit code {self.code}: it left no record of the reason, but its log may tell"


def signal_name(number: int) -> str:
    """`SIGTERM`, or `signal 99` for a number without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def in_use(path: Path) -> bool:
    """Whether a process is writing to the run in `path`."""
    if not path.is_dir():
        return False
    lock = filelock.FileLock(path / LOCK)
    try:
        with lock.acquire(blocking=False):
            return False
    except filelock.Timeout:
        return True


def start_process(study: Study, run: PlannedRun, device: str, jobs: int) -> LocalJob:
    """Starts a run on this machine, or waits for the process that trains it already.

    Args:
        study: says the settings.
        run: the run.
        device: where it is to train; empty where the settings say it.
        jobs: how many runs train on this machine side by side.

    Raises:
        UsageError: the run's folder holds something else.
        OSError: the process cannot be started.
    """
    job = LocalJob(run, study.log(run))
    if in_use(run.path):
        return job
    if not (run.path / CONFIG).is_file():
        clear(run.path)
    words = command(study, run, device)
    with open(job.log, "ab") as log:
        begun = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
        log.write(os.fsencode(f"--- {begun}: fastcifar {shlex.join(words)}\n"))
        log.flush()
        # In a session of its own: Ctrl-C reaches the study, which passes it on once; a second would cut the save.
        job.process = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(jobs) | {failure.VARIABLE: str(job.record)},
            start_new_session=True,
        )
    return job


def clear(path: Path) -> None:
    """Removes what a process leaves that was killed while it made its run folder, and nothing else."""
    if path.is_dir():
        made = {ENVIRONMENT, METRICS_JSONL, METRICS_CSV, LOCK, failure.FAILURE}
        if not {entry.name.removesuffix(".new") for entry in path.iterdir()} <= {*made, CONFIG}:
            raise UsageError(f"{path} holds no run and is not empty: move it away")
        shutil.rmtree(path)


class Local:
    """This machine.

    Args:
        study: its first trial says which devices it may use.
        num_runs: how many runs there are to train.
        jobs: how many train side by side; None: one a GPU, one on a CPU, or one a core for `quick`, at most four.
    """

    def __init__(self, study: Study, num_runs: int, jobs: int | None) -> None:
        device = study.asked(next(iter(study.trials))).device
        gpus = _num_gpus() if device in ("auto", "cuda") else 0
        if jobs is None:
            jobs = gpus or (min(QUICK_JOBS, int(usable_cores() or 1)) if study.quick else 1)
        self._devices = [f"cuda:{i % gpus}" if gpus > 1 else "" for i in range(min(jobs, max(num_runs, 1)))]

    @property
    def num_places(self) -> int:
        """How many runs train side by side."""
        return len(self._devices)

    def start(self, study: Study, run: PlannedRun, place: int) -> LocalJob:
        """As `Machine.start`."""
        return start_process(study, run, self._devices[place], self.num_places)


def _num_gpus() -> int:
    try:
        ctypes.CDLL("libcuda.so.1")  # the driver: without it there is no need to wait for the import of torch
    except OSError:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
