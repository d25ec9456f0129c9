"""The runs of a study on a Ray cluster: Ray says where and when each run trains, and tries again where a node is lost.

A run is a Ray task that starts the same process as on one machine. The study folder must be in a file system that all
nodes share, at the same path: settings, checkpoints, metrics and locks are there, and nothing passes through Ray but
the name of a run and how it ended. If a worker of Ray is lost, Ray runs the task again, on any node. The run then goes
on from its last checkpoint or, where its process has survived the worker, the task waits for it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcifar.errors import FastcifarError, UsageError
from fastcifar.run.planned import PlannedRun
from fastcifar.studies.folder import Study
from fastcifar.studies.jobs import in_use, start_process

TRIES = 5
"""How often Ray runs a task again whose worker was lost."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """How the process of a run ended on its node.

    Attributes:
        was_killed: whether a signal ended it; if it could, it saved its state before.
        reason: why it failed; empty where it finished.
    """

    was_killed: bool
    reason: str


@dataclass(frozen=True)
class Place:
    """What a task takes over from the program that conducts the study.

    Attributes:
        study: the study folder.
        working_folder: to which relative paths in settings refer.
        variables: the environment variables of fastcifar.
        runs_a_node: how many runs train on a node side by side.
    """

    study: Path
    working_folder: Path
    variables: Mapping[str, str]
    runs_a_node: int


def train(place: Place, name: str) -> Outcome:
    """The task: trains the run `name` of a study on this node."""
    if place.working_folder.is_dir():
        os.chdir(place.working_folder)
    os.environ.update(place.variables)
    path = place.study
    study = Study.open(path)
    run = next(run for run in study.planned() if run.name == name)
    while in_use(run.path):  # the process of an earlier try of this task, whose worker was lost
        time.sleep(_POLL_SECONDS)
    run = next(run for run in study.planned() if run.name == name)
    if run.is_over:
        return Outcome(False, "")
    job = start_process(study, run, "", place.runs_a_node)
    try:
        while not job.ended():
            time.sleep(_POLL_SECONDS)
    except BaseException:  # Ray cancels the task with a KeyboardInterrupt
        job.stop()
        while not job.ended():
            time.sleep(_POLL_SECONDS)
    return Outcome(job.was_killed, "" if job.code == 0 else job.reason())


@dataclass
class RayJob:
    """A run that trains somewhere on the cluster, or waits for a place there.

    Attributes:
        run: what was planned.
        record: where the command line of the run says why it failed.
        task: Ray's reference to the outcome.
    """

    run: PlannedRun
    record: Path
    task: Any
    is_foreign: bool = field(default=False, init=False)

    def ended(self) -> bool:
        """Whether the run trains no more."""
        ready, _ = import_ray().wait([self.task], timeout=0)
        return bool(ready)

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it; if it could, it saved its state before."""
        return self._outcome().was_killed

    def stop(self, *, kill: bool = False) -> None:
        """Lets the run save its state and end; with `kill`, ends its worker at once."""
        import_ray().cancel(self.task, force=kill)

    def reason(self) -> str:
        """Why it failed, in one line."""
        return self._outcome().reason

    def _outcome(self) -> Outcome:
        ray = import_ray()
        try:
            outcome = ray.get(self.task)
            assert isinstance(outcome, Outcome)
            return outcome
        except ray.exceptions.TaskCancelledError:
            return Outcome(True, "stopped before it had a place")
        except ray.exceptions.RayError as problem:
            return Outcome(False, f"lost by Ray, {1 + TRIES} times: {str(problem).splitlines()[0]}")


class Cluster:
    """A Ray cluster.

    Args:
        study: its first trial says which devices it may use.
        address: `auto` for the cluster that this machine belongs to, `local` for one that is started here, or
            `HOST:PORT`.
        jobs: how many runs train side by side on the whole cluster; None: one a GPU or, without GPUs, one a CPU.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at `address`.
    """

    def __init__(self, study: Study, address: str, jobs: int | None) -> None:
        ray = import_ray()
        if not ray.is_initialized():
            before = signal.getsignal(signal.SIGTERM)
            try:
                more = {"include_dashboard": False} if address == "local" else {}
                ray.init(address=address, log_to_driver=False, logging_level="warning", **more)
            except (ConnectionError, ValueError, RuntimeError) as problem:
                said = (str(problem).splitlines() or [""])[0]
                raise UsageError(
                    f"--ray {address}: there is no Ray cluster: {said} (`ray start --head` starts one; --ray local "
                    "does for this machine)"
                ) from problem
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray has set one, which ends this process with exit code 15
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        device = study.asked(next(iter(study.trials))).device
        kind = "GPU" if device != "cpu" and any(node.get("GPU") for node in nodes) else "CPU"
        counts = [float(node.get(kind, 0)) for node in nodes]
        self.num_places = jobs or max(1, int(sum(counts)))
        share = sum(counts) / self.num_places
        most = 1.0 if kind == "GPU" else max(counts)  # a run has one GPU, or the processors of one node
        amount = min(most, float(int(share)) if share >= 1 else share)  # Ray wants whole numbers above 1
        variables = {name: text for name, text in os.environ.items() if name.startswith("FASTCIFAR_")}
        runs_a_node = max(1, int(max(counts) / amount))
        self._place = Place(study.path.absolute(), Path.cwd(), variables, runs_a_node)
        needs = {"num_gpus": amount} if kind == "GPU" else {"num_cpus": amount}
        self._task = ray.remote(max_retries=TRIES, scheduling_strategy="SPREAD", **needs)(train)

    def start(self, study: Study, run: PlannedRun, place: int) -> RayJob:
        """As `Machine.start`."""
        record = study.log(run).with_suffix(".failure.json")
        try:
            task = self._task.remote(self._place, run.name)
        except import_ray().exceptions.RayError as problem:
            raise FastcifarError(f"the Ray cluster is gone: {problem}") from problem
        return RayJob(run, record, task)


def import_ray() -> Any:
    """Imports Ray, which is an extra.

    Raises:
        UsageError: it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray asks for it, in a warning
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"--ray needs a package that is not installed, {error.name}: pip install 'fastcifar[ray]'"
        ) from None
    return ray
