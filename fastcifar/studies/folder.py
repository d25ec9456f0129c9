"""A study folder: which runs were asked for, and what has become of each.

    runs/study/
      study.json                  trials with their settings, seeds, epochs, data digest; settings of all; what failed
      settings/<file>.toml        the study's own copy of a settings file that trials start from
      runs/<trial>-s<seed>/       ordinary run folders, as `fastcifar train` makes them
      logs/<trial>-s<seed>.log    what each run printed; .failure.json beside it says why the run failed, if it did
      report/                     the page
      optuna.db                   what a search has tried (see `search`)

All trials are described alike: a name, a start (a preset or a settings file), and the settings that the trial has
beside its start. A preset of the report is a trial without settings of its own; the points of a grid share their start.
A study only grows: more trials or seeds may be asked for later, other settings may not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import fastcifar
from fastcifar import files, paths
from fastcifar.config import Config
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.layers import resolve
from fastcifar.run import failure
from fastcifar.run.names import CONFIG, METRICS_JSONL, SUMMARY
from fastcifar.run.planned import PlannedRun, State
from fastcifar.spelling import to_toml

STUDY, LOCK, RUNS, LOGS, REPORT, SETTINGS = "study.json", ".lock", "runs", "logs", "report", "settings"
OPTUNA = "optuna.db"

FORMAT = 2
"""In format 1 every trial was a preset, and had its name."""

QUICK: Mapping[str, str] = {
    "data": "procedural", "val_size": "2000", "width_mult": "0.25", "batch_size": "64", "device": "cpu",
}  # fmt: skip
"""What `study quick` sets in every trial, beside the epochs; a setting of the user's own goes before it. On a GPU the
24 runs would spend their minutes in torch.compile."""

QUICK_EPOCHS = (3, 5)
"""The epochs of `study quick`: of the trials that have 15 in full length, and of those that have 300."""


@dataclass(frozen=True)
class Trial:
    """What is trained, once with each seed.

    Attributes:
        start: what its settings start from: a preset, or `NAME.toml`, a settings file that the study has a copy of.
        settings: those of this trial alone, as text by setting.
        seeds: those of its runs, rising.
        epochs: of each run.
        dataset_digest: names the content of the images; empty until a study has loaded them.
    """

    start: str
    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    epochs: int
    dataset_digest: str = ""


@dataclass(frozen=True)
class SearchPlan:
    """What a search is to try. Its trials are named `START-t0`, `START-t1`, ... and get their settings when they begin.

    Attributes:
        start: as in `Trial`.
        space: for each setting that is searched, what it may be, as `space.parse` reads it.
        num_trials: how many trials there are to be.
    """

    start: str
    space: Mapping[str, str]
    num_trials: int

    @property
    def names(self) -> list[str]:
        """The names of the trials. The number in a name is the trial's number in Optuna's study."""
        return [f"{self.start.removesuffix('.toml')}-t{number}" for number in range(self.num_trials)]


@dataclass
class Study:
    """What was asked for. The accuracies of a `quick` or scaled study compare with no published ones.

    Attributes:
        path: the study's folder.
        quick: whether its runs are small and on procedural images.
        epochs_scale: what the epochs of each preset are multiplied by.
        settings: what was given on the command line for all runs, as text by setting; places are absolute.
        trials: by name, in the order in which they are trained.
        failures: why a run failed, by its name, for those that did and have not been tried again.
        pruned: why a search gave up a run, by its name.
        search: None for a study whose trials are all named beforehand.
        files: where the settings files lie that trials start from, by the trials' `start`.
    """

    path: Path
    quick: bool = False
    epochs_scale: float = 1.0
    settings: dict[str, str] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    pruned: dict[str, str] = field(default_factory=dict)
    search: SearchPlan | None = None
    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Study:
        """The study in the folder `path`.

        Raises:
            UsageError: there is none.
            CheckpointError: its study.json is damaged.
        """
        file = path / STUDY
        if not file.is_file():
            raise UsageError(f"there is no study in {path}: {file} was looked for.")
        try:
            content = json.loads(file.read_bytes())
            if content["format"] not in (1, FORMAT):
                raise UsageError(f"{file} has format {content['format']}; this fastcifar reads format {FORMAT}.")
            trials = {name: _trial(name, facts) for name, facts in content["trials"].items()}
            quick, scale = bool(content["quick"]), float(content["epochs_scale"])
            failures, pruned = dict(content["failures"]), dict(content.get("pruned", {}))
            study = cls(path, quick, scale, dict(content["settings"]), trials, failures, pruned)
            if (search := content.get("search")) is not None:
                space = {str(name): str(text) for name, text in search["space"].items()}
                study.search = SearchPlan(str(search["start"]), space, int(search["num_trials"]))
        except OSError as problem:
            raise CheckpointError(f"{file} cannot be read: {problem.strerror}.") from problem
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
            raise CheckpointError(
                f"{file} is damaged ({problem!r}). The runs beside it are intact: remove it and give the command of "
                "the study again."
            ) from problem

        for trial in trials.values():
            if trial.start.endswith(".toml"):
                study.files[trial.start] = path / SETTINGS / trial.start
        return study

    def write(self) -> None:
        """Writes study.json, in place of an earlier one, and copies the settings files that lie elsewhere."""
        for start, file in self.files.items():
            copy = self.path / SETTINGS / start
            if file != copy:
                copy.parent.mkdir(exist_ok=True)
                files.replace(copy, to_toml(self.start(start)).encode("utf-8", "surrogateescape"))
                self.files[start] = copy
        content: dict[str, Any] = {"format": FORMAT, "fastcifar": fastcifar.__version__, **asdict(self)}
        del content["path"], content["files"]
        files.replace(self.path / STUDY, (json.dumps(content, indent=1) + "\n").encode())

    def start(self, start: str) -> Config:
        """The settings of a start: a preset's, or those of a settings file, with its name as `preset`.

        Its places are absolute.

        Raises:
            UsageError: for all problems, a line each.
        """
        return self._resolved(start, [])

    def _resolved(self, start: str, overrides: Sequence[tuple[str, str]]) -> Config:
        if start in self.files:
            config = resolve(None, self.files[start], [("preset", start.removesuffix(".toml")), *overrides])
        else:
            config = resolve(start, None, overrides)
        return config.model_copy(update=absolute({"data": config.data, "init_from": config.init_from}))

    def overrides(self, trial: str) -> dict[str, str]:
        """What the runs of `trial` set beside their start and their seed, as text by setting."""
        start = self.start(self.trials[trial].start)
        epochs, warmup = start.epochs, start.lr_warmup_epochs
        chosen: dict[str, str] = {}
        if self.quick:
            chosen = dict(QUICK)
            epochs = QUICK_EPOCHS[start.epochs > 15]
            warmup *= epochs / start.epochs
        if self.quick or self.epochs_scale != 1:
            epochs = max(1, round(epochs * self.epochs_scale))
            chosen["epochs"] = str(epochs)
            if warmup:
                chosen["lr_warmup_epochs"] = f"{min(warmup * self.epochs_scale, epochs):g}"
        if self.search is not None:
            chosen["test"] = "false"
        return chosen | self.settings | dict(self.trials[trial].settings)

    def config(self, trial: str, seed: int) -> Config:
        """The settings of one run; `auto` where its device will decide.

        Args:
            trial: its name.
            seed: of the run.

        Raises:
            UsageError: for all problems, a line each.
        """
        return self._resolved(self.trials[trial].start, [*self.overrides(trial).items(), ("seed", str(seed))])

    def asked(self, trial: str) -> Config:
        """What was asked for in every run of `trial`: its settings, without those that a search chose.

        What a search chose may contradict itself, and no request is wrong for that.

        Args:
            trial: its name.

        Raises:
            UsageError: for all problems, a line each.
        """
        if self.search is None or trial not in self.search.names:
            return self.config(trial, 0)
        return replace(self, trials={trial: replace(self.trials[trial], settings={})}).config(trial, 0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all trials together, rising."""
        return tuple(sorted({seed for trial in self.trials.values() for seed in trial.seeds}))

    @property
    def axes(self) -> set[str]:
        """The settings that trials have of their own."""
        return {name for trial in self.trials.values() for name in trial.settings}

    def planned(self) -> list[PlannedRun]:
        """Every run, as it is on disk now, in the order of training: the first seed of every trial, then the next."""
        pairs = [(name, seed) for seed in self.seeds for name, trial in self.trials.items() if seed in trial.seeds]
        return [self._planned(name, seed) for name, seed in pairs]

    def log(self, run: PlannedRun) -> Path:
        """Where what `run` prints is kept."""
        return self.path / LOGS / f"{run.name}.log"

    def _planned(self, trial: str, seed: int) -> PlannedRun:
        run = PlannedRun(trial, seed, self.path / RUNS / f"{trial}-s{seed}", self.trials[trial].epochs)
        done = 0 if (last := last_record(run.path)) is None else int(last["epoch"])
        reason = ""
        state: State = "missing"
        if (run.path / SUMMARY).is_file():
            state = "finished"
        elif run.name in self.pruned:
            state, reason = "pruned", self.pruned[run.name]
        elif run.name in self.failures:
            state, reason = "failed", self.failures[run.name]
        elif (told := failure.read(run.path)) is not None:
            state, reason = "failed", told.reason
        elif (run.path / CONFIG).is_file():
            state = "cut"
        return PlannedRun(trial, seed, run.path, run.epochs, state, done, reason)


def absolute(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings whose places, `data` and `init_from`, do not depend on the working folder, as a run records them.

    Args:
        settings: text by setting.

    Raises:
        UsageError: `init_from` is no path.
        DataError: `data` is neither a data set's name nor a path.
    """
    from fastcifar.data import sources

    places = dict(settings)
    if "data" in places:
        places["data"] = sources.absolute(places["data"])
    if "init_from" in places:
        places["init_from"] = paths.absolute("init_from", places["init_from"])
    return places


def _trial(name: str, facts: Mapping[str, Any]) -> Trial:
    """A trial as study.json holds it."""
    settings = {str(key): str(text) for key, text in facts.get("settings", {}).items()}
    seeds = tuple(map(int, facts["seeds"]))
    return Trial(str(facts.get("start", name)), settings, seeds, int(facts["epochs"]), str(facts["dataset_digest"]))


def last_record(run: Path) -> dict[str, Any] | None:
    """The last whole line of a run's metrics, also while the run is being written; None where there is none."""
    return next(records_from_the_end(run), None)


def records_from_the_end(run: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a run's metrics, the last one first, also while the run is being written."""
    for line in _lines_from_the_end(run / METRICS_JSONL):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut off by a crash, or being written
            continue
        if isinstance(record, dict) and isinstance(record.get("epoch"), int):
            yield record


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    try:
        if path.is_file():  # and no pipe, which would be waited for
            yield from reversed(path.read_bytes().splitlines())
    except OSError:
        return
