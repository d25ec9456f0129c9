"""`fastcifar study`: every trial with several seeds, each run a process of its own, and the report at the end.

A run that crashes, diverges or is killed ends alone: the study goes on and says so at the end. The same command goes on
with a study that was cut: finished runs are never repeated, the others continue from their checkpoints. Whoever kills
the study itself leaves its runs going; the next study waits for them instead of training them twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import FrameType

import filelock

import fastcifar
from fastcifar import signals
from fastcifar.config import RESUMABLE
from fastcifar.errors import DataError, FastcifarError, InterruptedRunError, UsageError, stopped_code
from fastcifar.run import failure
from fastcifar.run.environment import usable_cores
from fastcifar.run.names import CONFIG, ENVIRONMENT, LOCK, METRICS_CSV, METRICS_JSONL
from fastcifar.run.planned import PlannedRun
from fastcifar.studies.folder import LOGS, REPORT, RUNS, Study
from fastcifar.studies.plan import Request, check_runs, plan
from fastcifar.studies.progress import Progress
from fastcifar.text import quoted

QUICK_JOBS = 4
"""The most that `study quick` runs side by side by default: each process holds a copy of PyTorch."""
JOBS_VARIABLE = "FASTCIFAR_STUDY_JOBS"
"""Tells a run's environment.json how many runs shared the machine."""
POLL_SECONDS = 0.2
"""Between two looks at the runs in training."""
PROGRAM = (sys.executable, "-m", "fastcifar")

_STOPPED = {stopped_code(number): number.name for number in signals.STOP}
"""Exit code of a run that a signal stopped after its state was saved -> the signal's name."""


@dataclass(frozen=True)
class Result:
    """What a study has come to.

    Attributes:
        study: what was asked for.
        runs: every planned run as it is now.
        failed: those that were to be trained now and failed.
        page: the report; None where no run has finished.
    """

    study: Study
    runs: list[PlannedRun]
    failed: list[PlannedRun]
    page: Path | None


def conduct(out: Path, request: Request, jobs: int | None = None) -> Result:
    """Trains what `request` asks for in the study folder `out`, `jobs` runs side by side, and writes the report.

    Args:
        out: the study folder, new or that of an earlier study, which goes on.
        request: what is asked for.
        jobs: how many runs train side by side; None leaves it to the machine.

    Raises:
        UsageError: the request is wrong, contradicts the study in `out`, or another study is at work there; or the
            place of the page holds a page that is not ours.
        DataError: the images cannot be had.
        InterruptedRunError: on one of `signals.STOP`, after every run has saved its state and ended.
    """
    from fastcifar.report.ownership import check_folder

    study, wanted = plan(out, request)
    digests = _digests(study, wanted)
    with _locked(out):
        study, wanted = plan(out, request)  # again: another study may have worked here meanwhile
        for name, digest in digests.items():
            study.trials[name] = replace(study.trials[name], dataset_digest=digest)
        runs = [run for run in study.planned() if run.name in wanted]
        check_runs(study)
        check_folder(out / REPORT)  # before days of training
        for folder in (RUNS, LOGS):
            (out / folder).mkdir(exist_ok=True)
        study.failures = {name: why for name, why in study.failures.items() if name not in wanted}
        study.write()
        with Progress(study, runs) as progress:
            _train_all(study, runs, _places(study, jobs), progress)
            planned = study.planned()
            failed = [run for run in planned if run.state == "failed" and run.name in wanted]
            finished = [run.path for run in planned if run.state == "finished"]
            if not finished:
                return Result(study, planned, failed, None)
            progress.phase("writing the report")
            from fastcifar.report.writing import write_report

            paths = finished + [run.path for run in planned if run.state != "finished" and run.epochs_done]
            data = study.settings.get("data")
            try:
                page = write_report(paths, out / REPORT, planned=planned, data=data, note=progress.note)
            except FastcifarError as problem:
                where = f"fastcifar report {quoted(out)} --out DIR"
                problem.args = (f"{problem}\nThe runs of the study are intact: {where} writes the page",)
                raise
            return Result(study, planned, failed, page)


def _digests(study: Study, wanted: set[str]) -> dict[str, str]:
    """The digest of the images of each trial with runs to train. A download or decoding is done here, once."""
    from fastcifar.data import sources

    digests: dict[str, str] = {}
    loaded: dict[tuple[str, str], str] = {}
    for name in dict.fromkeys(run.trial for run in study.planned() if run.name in wanted and _needs_images(study, run)):
        config = study.config(name, 0)
        key = (config.data, config.mirror)
        if key not in loaded:
            loaded[key] = sources.load(config.data, mirror=config.mirror).digest
        digests[name], known = loaded[key], study.trials[name].dataset_digest
        if known not in ("", digests[name]):
            raise DataError(
                f"{study.path} was begun with other images: their digest is {known[:12]}, that of {config.data!r} is "
                f"{digests[name][:12]}; name the same data with --data"
            )
    return digests


def _needs_images(study: Study, run: PlannedRun) -> bool:
    return run.state != "finished" or not study.trials[run.trial].dataset_digest


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Makes the folder, and keeps every other study out of it."""
    lock = filelock.FileLock(out / LOCK, thread_local=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        (out / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    except filelock.Timeout:
        owner = (out / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "another process"
        raise UsageError(
            f"{out} is in use: a study is at work there ({owner}). Wait until it ends or stop it; for more at a time, "
            "give it --jobs N."
        ) from None
    except OSError as problem:
        raise UsageError(f"--out {out} cannot be used: {problem.strerror}.") from problem
    try:
        yield
    finally:
        lock.release()


# ---- the machine ----


def _places(study: Study, jobs: int | None) -> list[str]:
    """A device for each of the runs that train side by side. An empty text leaves the device to the settings."""
    device = study.config(next(iter(study.trials)), 0).device
    gpus = _num_gpus() if device in ("auto", "cuda") else 0
    if jobs is None:
        jobs = gpus or (min(QUICK_JOBS, int(usable_cores() or 1)) if study.quick else 1)
    return [f"cuda:{i % gpus}" if gpus > 1 else "" for i in range(max(jobs, 1))]


def _num_gpus() -> int:
    try:
        ctypes.CDLL("libcuda.so.1")  # the driver: without it there is no need to wait for the import of torch
    except OSError:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _environment(jobs: int) -> dict[str, str]:
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


# ---- runs as processes ----


def command(study: Study, run: PlannedRun, device: str = "") -> list[str]:
    """The arguments after `fastcifar` that begin a run, or that go on with it.

    Args:
        study: says the settings.
        run: the run.
        device: where it is to train; empty where the settings say it.
    """
    chosen = study.overrides(run.trial) | ({"device": device} if device else {})
    if (run.path / CONFIG).is_file():
        chosen = {"device": "auto"} | {key: text for key, text in chosen.items() if key in RESUMABLE}
        words = ["train", "--resume", str(run.path)]
    else:
        start = study.trials[run.trial].start
        begin = ["--config", str(study.files[start])] if start in study.files else ["--preset", start]
        words = ["train", *begin, "--seed", str(run.seed), "--out", str(run.path)]
    return words + [f"--{key.replace('_', '-')}={text}" for key, text in chosen.items()]


@dataclass
class _Job:
    """A run in training.

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
        return not _in_use(self.run.path) if self.process is None else self.process.poll() is not None

    @property
    def code(self) -> int:
        """The exit code; below 0 it is a signal's number. 0 where the process is not ours."""
        return 0 if self.process is None else int(self.process.returncode)

    def reason(self) -> str:
        """Why it failed, in one line: the signal that ended it, or what its record says (see `run.failure`)."""
        if self.code < 0:
            return f"killed by {_signal_name(-self.code)}"
        if self.code in _STOPPED:
            return f"stopped by {_STOPPED[self.code]}"
        if (told := failure.read(self.record)) is not None:
            return told.reason
        return f"exit code {self.code}: it left no record of the reason, but its log may tell"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _in_use(path: Path) -> bool:
    """Whether a process is writing to the run in `path`."""
    if not path.is_dir():
        return False
    lock = filelock.FileLock(path / LOCK)
    try:
        with lock.acquire(blocking=False):
            return False
    except filelock.Timeout:
        return True


def _start(study: Study, run: PlannedRun, device: str, jobs: int) -> _Job:
    job = _Job(run, study.log(run))
    if _in_use(run.path):
        return job
    if not (run.path / CONFIG).is_file():
        _clear(run.path)
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
            env=_environment(jobs) | {failure.VARIABLE: str(job.record)},
            start_new_session=True,
        )
    return job


def _clear(path: Path) -> None:
    """Removes what a process leaves that was killed while it made its run folder, and nothing else."""
    if path.is_dir():
        made = {ENVIRONMENT, METRICS_JSONL, METRICS_CSV, LOCK, failure.FAILURE}
        if not {entry.name.removesuffix(".new") for entry in path.iterdir()} <= {*made, CONFIG}:
            raise UsageError(f"{path} holds no run and is not empty: move it away")
        shutil.rmtree(path)


def _train_all(study: Study, runs: Sequence[PlannedRun], places: Sequence[str], progress: Progress) -> None:
    """Trains `runs` in their order, one in each of `places` at a time, until all have finished or failed."""
    waiting = deque(run for run in runs if run.state != "finished")
    places = places[: max(len(waiting), 1)]
    jobs: dict[int, _Job] = {}
    killed: set[str] = set()

    def fail(run: PlannedRun, reason: str) -> None:
        study.failures[run.name] = reason
        with contextlib.suppress(FastcifarError):  # a full disk: the runs must not suffer
            study.write()
        progress.failed(run, reason)

    with _signals() as stop:
        try:
            while jobs or (waiting and not stop.number):
                for place in range(len(places)):
                    if place in jobs or not waiting or stop.number:
                        continue
                    run = waiting.popleft()
                    try:
                        jobs[place] = job = _start(study, run, places[place], len(places))
                        if job.process is None:
                            progress.line(f"{run.name}: another process is training it already, and is waited for")
                    except (OSError, UsageError) as problem:
                        fail(run, str(problem))
                progress.update([job.run for job in jobs.values()])
                time.sleep(POLL_SECONDS)
                if stop.pass_on(job.process for job in jobs.values()):
                    progress.line(f"{_signal_name(stop.number)}: the runs save their state and end")
                for place in [i for i, job in jobs.items() if job.ended() or (stop.number and job.process is None)]:
                    job = jobs.pop(place)
                    run = next(r for r in study.planned() if r.name == job.run.name)
                    if run.state == "finished":
                        with contextlib.suppress(OSError):
                            job.record.unlink(missing_ok=True)
                        progress.finished(run)
                    elif stop.number:
                        continue
                    elif job.process is None or _in_use(run.path):  # another process has it, or had until now
                        waiting.appendleft(run)
                    elif (job.code < 0 or job.code in _STOPPED) and run.name not in killed:
                        killed.add(run.name)
                        waiting.appendleft(run)
                        progress.line(f"{run.name}: {job.reason()}; it goes on from its last checkpoint")
                    else:
                        fail(run, job.reason() + ", twice" * (run.name in killed and job.code < 0))
        finally:  # reached with jobs only if the study itself fails
            for job in jobs.values():
                if job.process is not None:
                    job.process.terminate()
    if stop.number:
        done = sum(run.state == "finished" for run in study.planned())
        raise InterruptedRunError(
            f"stopped by {_signal_name(stop.number)}: {done} of {len(study.planned())} runs are finished, the others "
            f"saved; go on with: fastcifar study --out {quoted(study.path)}",
            stop.number,
        )


class _Signals:
    """The signals that the study got. The first one of a person who waits lets the runs save, the third kills them."""

    def __init__(self) -> None:
        self.number = self._count = self._passed_on = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.number, self._count = number, self._count + 1

    def pass_on(self, processes: Iterable[subprocess.Popen[bytes] | None]) -> bool:
        """Gives a new signal to the runs; whether there was one."""
        if self._passed_on == self._count:
            return False
        self._passed_on = self._count
        for process in processes:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM if self._count < 3 else signal.SIGKILL)
        return True


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    stop = _Signals()
    with signals.caught(stop.note):
        yield stop
