"""Which runs a path stands for: a run, a study, or a folder that holds runs. `report` and `compare` ask here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastcifar.errors import UsageError
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import CONFIG
from fastcifar.run.planned import PlannedRun
from fastcifar.studies.folder import STUDY, Study

_DEEPEST = 3
"""How many folders down from a path a run is looked for: `runs` holds runs/<preset>/<time>."""


def find_runs(paths: Iterable[Path]) -> tuple[list[Path], list[PlannedRun]]:
    """The run folders that `paths` stand for, and the plan of those paths that are study folders.

    Args:
        paths: each a run folder; a study, which stands for those of its runs that have begun; or a folder, which
            stands for the runs in it. Of the runs in a folder only those that lie least deep count.

    Returns:
        The run folders in the order of `paths`, none twice, and what the studies among `paths` want.

    Raises:
        UsageError: there is no run at a path (the message names the nearest one), or none has begun.
        CheckpointError: a study.json is damaged.
    """
    runs: dict[Path, Path] = {}
    planned: list[PlannedRun] = []
    for path in paths:
        if (path / CONFIG).is_file():
            found = [path]
        elif (path / STUDY).is_file():
            wanted = Study.open(path).planned()
            planned += wanted
            found = [plan.path for plan in wanted if (plan.path / CONFIG).is_file()]
        elif not (found := _runs_in(path)):
            RunFolder.open(path)  # raises, and names the nearest run
        for run in found:
            runs.setdefault(run.resolve(), run)
    if not runs:
        raise UsageError("no run has begun yet: there is nothing to report on")
    return list(runs.values()), planned


def _runs_in(folder: Path) -> list[Path]:
    """The runs under `folder`, by name, at the least depth where there is one."""
    if not folder.is_dir():
        return []
    return next((found for depth in range(1, _DEEPEST + 1) if (found := _at_depth(folder, depth))), [])


def _at_depth(folder: Path, depth: int) -> list[Path]:
    return sorted(config.parent for config in folder.glob(f"{'*/' * depth}{CONFIG}") if config.is_file())
