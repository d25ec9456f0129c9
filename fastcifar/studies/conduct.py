"""`fastcifar study`: every trial with several seeds, each run a process of its own, and the report at the end.

A run that crashes, diverges or is killed ends alone: the study goes on and says so at the end. The same command goes on
with a study that was cut: finished runs are never repeated, the others continue from their checkpoints. Whoever kills
the study itself leaves its runs going; the next study waits for them instead of training them twice.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import filelock

from fastcifar import signals
from fastcifar.errors import CheckpointError, DataError, FastcifarError, InterruptedRunError, NonFiniteError, UsageError
from fastcifar.run import failure
from fastcifar.run.folder import RunFolder
from fastcifar.run.planned import PlannedRun
from fastcifar.studies.folder import LOCK, LOGS, REPORT, RUNS, STUDY, Study
from fastcifar.studies.jobs import Job, Local, Machine, in_use, signal_name
from fastcifar.studies.on_ray import Cluster, import_ray
from fastcifar.studies.plan import Request, check_runs, plan
from fastcifar.studies.progress import Progress
from fastcifar.studies.search import Search, import_optuna
from fastcifar.text import quoted

POLL_SECONDS = 0.2
"""Between two looks at the runs in training."""


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

    def read(self) -> tuple[dict[str, RunFolder], dict[str, str]]:
        """The finished runs whose settings, metrics and summary can be read, and why the others cannot, by name."""
        readable, damaged = {}, {}
        for run in self.runs:
            if run.state == "finished":
                try:
                    folder = RunFolder.open(run.path)
                    folder.summary()
                    readable[run.name] = folder
                except CheckpointError as problem:
                    damaged[run.name] = str(problem)
        return readable, damaged


def conduct(out: Path, request: Request, jobs: int | None = None, ray: str = "") -> Result:
    """Trains what `request` asks for in the study folder `out`, `jobs` runs side by side, and writes the report.

    Args:
        out: the study folder, new or that of an earlier study, which goes on.
        request: what is asked for.
        jobs: how many runs train side by side; None leaves it to the machine.
        ray: the address of a Ray cluster, as `on_ray.Cluster` takes it, whose nodes train the runs; empty: this machine
            does.

    Raises:
        UsageError: the request is wrong, contradicts the study in `out`, or another study is at work there; or the
            place of the page holds a page that is not ours.
        DataError: the images cannot be had.
        InterruptedRunError: on one of `signals.STOP`, after every run has saved its state and ended.
    """
    from fastcifar.report.ownership import check_folder

    study, wanted = plan(out, request)
    if study.search is not None:
        import_optuna()  # before anything is downloaded or written
    if ray:
        import_ray()
    digests = _digests(study, wanted)
    with _locked(out):
        goes_on = (out / STUDY).is_file() and not (request.trials or request.search or request.num_trials)
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
        search = None if study.search is None else Search(study)
        if search is not None:
            search.catch_up()
        machine: Machine = (
            Cluster(study, ray, jobs) if ray else Local(study, sum(not run.is_over for run in runs), jobs)
        )
        with Progress(study, runs) as progress:
            if goes_on and study.search is None:
                progress.line(f"no trial is named: it goes on with its {len(study.trials)}; name others to add them")
            _Training(study, runs, machine, progress, search)()
            planned = study.planned()
            failed = [run for run in planned if run.state == "failed" and run.name in wanted]
            finished = [run.path for run in planned if run.state == "finished"]
            if not finished:
                return Result(study, planned, failed, None)
            progress.phase("writing the report")
            from fastcifar.report.writing import write_report

            paths = finished + [run.path for run in planned if not run.is_over and run.epochs_done]
            data = study.settings.get("data")
            try:
                told = None if search is None else search.told()
                page = write_report(paths, out / REPORT, planned=planned, data=data, search=told, note=progress.note)
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
        config = study.asked(name)
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
    return not run.is_over or not study.trials[run.trial].dataset_digest


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


# ---- the runs ----


class _Training:
    """Trains runs in their order, as many at a time as the machine has places, until all have finished or failed.

    Args:
        study: what was asked for; its failures and given-up runs are added to.
        runs: those to train; finished ones among them are left out.
        machine: where they train.
        progress: is told what becomes of them.
        search: chooses settings and gives up runs; None for a study whose trials are all known.
    """

    def __init__(
        self, study: Study, runs: Sequence[PlannedRun], machine: Machine, progress: Progress, search: Search | None
    ) -> None:
        self._study, self._machine, self._progress, self._search = study, machine, progress, search
        self._waiting = deque(run for run in runs if not run.is_over)
        self._jobs: dict[int, Job] = {}
        self._killed: set[str] = set()
        self._stop = _Signals()

    def __call__(self) -> None:
        """Trains them.

        Raises:
            InterruptedRunError: on one of `signals.STOP`, after every run has saved its state and ended.
        """
        study, stop = self._study, self._stop
        with signals.caught(stop.note):
            try:
                while self._jobs or (self._waiting and not stop.number):
                    self._start()
                    self._progress.update([job.run for job in self._jobs.values()])
                    time.sleep(POLL_SECONDS)
                    if stop.is_new():
                        for job in self._jobs.values():
                            job.stop(kill=stop.is_urgent)
                        self._progress.line(f"{signal_name(stop.number)}: the runs save their state and end")
                    self._look()
            finally:  # reached with jobs only if the study itself fails
                for job in self._jobs.values():
                    job.stop()
        if stop.number:
            done = sum(run.state == "finished" for run in study.planned())
            raise InterruptedRunError(
                f"stopped by {signal_name(stop.number)}: {done} of {len(study.planned())} runs are finished, the "
                f"others saved; go on with: fastcifar study --out {quoted(study.path)}",
                stop.number,
            )

    def _start(self) -> None:
        for place in range(self._machine.num_places):
            if place in self._jobs or not self._waiting or self._stop.number:
                continue
            run = self._waiting.popleft()
            try:
                if self._search is not None and (contradiction := self._search.choose(run)):
                    self._give_up(run, contradiction)
                    continue
                self._jobs[place] = job = self._machine.start(self._study, run, place)
                if job.is_foreign:
                    self._progress.line(f"{run.name}: another process is training it already, and is waited for")
            except (OSError, UsageError) as problem:
                self._fail(run, str(problem))

    def _look(self) -> None:
        """Gives up what is hopeless, and takes note of the runs that have ended."""
        for job in self._jobs.values():
            hopeless = self._search is not None and self._search.is_hopeless(job.run)
            if hopeless and job.run.name not in self._study.pruned and not job.ended():
                self._study.pruned[job.run.name] = "given up: its validation accuracy is below that of other trials"
                self._study.write()
                job.stop()
        for place, job in list(self._jobs.items()):
            if job.ended() or (self._stop.number and job.is_foreign):
                del self._jobs[place]
                self._end(job)

    def _end(self, job: Job) -> None:
        run = next(run for run in self._study.planned() if run.name == job.run.name)
        diverged = failure.read(job.record) if self._search is not None else None
        if run.state == "finished":
            with contextlib.suppress(OSError):
                job.record.unlink(missing_ok=True)
            self._progress.finished(run)
            self._tell(run)
        elif run.state == "pruned":
            self._progress.ended(run, "is " + run.reason)
            self._tell(run)
        elif self._stop.number:
            return
        elif job.is_foreign or in_use(run.path):  # another process has it, or had until now
            self._waiting.appendleft(run)
        elif job.was_killed and run.name not in self._killed:
            self._killed.add(run.name)
            self._waiting.appendleft(run)
            self._progress.line(f"{run.name}: {job.reason()}; it goes on from its last checkpoint")
        elif diverged is not None and diverged.kind == NonFiniteError.__name__:  # a result: such settings are no good
            self._give_up(run, diverged.reason)
        else:
            self._fail(run, job.reason() + ", twice" * (run.name in self._killed and job.was_killed))

    def _give_up(self, run: PlannedRun, reason: str) -> None:
        self._study.pruned[run.name] = reason
        self._study.write()
        self._progress.ended(run, f"is given up: {reason}")
        self._tell(replace(run, state="pruned"))

    def _tell(self, run: PlannedRun) -> None:
        if self._search is not None:
            self._search.tell(run)

    def _fail(self, run: PlannedRun, reason: str) -> None:
        self._study.failures[run.name] = reason
        with contextlib.suppress(FastcifarError):  # a full disk: the runs must not suffer
            self._study.write()
        self._progress.ended(run, f"failed: {reason}")


class _Signals:
    """The signals that the study got. The first one of a person who waits lets the runs save, the third kills them."""

    def __init__(self) -> None:
        self.number = self._count = self._seen = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.number, self._count = number, self._count + 1

    @property
    def is_urgent(self) -> bool:
        return self._count >= 3

    def is_new(self) -> bool:
        """Whether a signal came since the last call."""
        seen, self._seen = self._seen, self._count
        return seen != self._count
