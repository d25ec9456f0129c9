"""Which runs a path stands for: a run, a study, or a folder that holds runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastcifar.errors import UsageError
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import CONFIG
from fastcifar.run.planned import PlannedRun
from fastcifar.study.folder import STUDY, Study


def find_runs(paths: Iterable[Path]) -> tuple[list[Path], list[PlannedRun]]:
    """The run folders that `paths` name, and the plan of those that are study folders.

    A path may be a run, a study, or a folder that holds runs. Errors: UsageError.
    """
    runs: list[Path] = []
    planned: list[PlannedRun] = []
    for path in paths:
        if (path / CONFIG).is_file():
            runs.append(path)
        elif (path / STUDY).is_file():
            wanted = Study.open(path).planned()
            planned += wanted
            runs += [plan.path for plan in wanted if plan.epochs_done or plan.state == "finished"]
        elif path.is_dir() and (inside := sorted(config.parent for config in path.glob(f"*/{CONFIG}"))):
            runs += inside
        else:
            RunFolder.open(path)  # raises, and names the nearest run
    if not runs:
        raise UsageError("no run has begun yet: there is nothing to report on")
    return runs, planned
