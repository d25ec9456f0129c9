"""A study folder: which runs were asked for, and what has become of each.

    runs/study/
      study.json                  trials with their seeds, epochs, data digest; settings of all; what failed, and why
      runs/<trial>-s<seed>/       ordinary run folders, as `fastcifar train` makes them
      logs/<trial>-s<seed>.log    what each run printed
      report/                     the page

A study only grows: more trials or seeds may be asked for later, other settings may not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import fastcifar
from fastcifar.config import RESUMABLE, Config, find_preset, load_preset, resolve, trace
from fastcifar.errors import CheckpointError, FastcifarError, UsageError
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import CONFIG, METRICS_JSONL, SUMMARY

STUDY, LOCK, RUNS, LOGS, REPORT = "study.json", ".lock", "runs", "logs", "report"
FORMAT = 1

State = Literal["finished", "cut", "failed", "missing"]
"""`cut`: begun, and not finished (it may be running); `failed`: it ended with an error; `missing`: nothing on disk."""

TRIALS = ("lr-0.05", "lr-0.5", "lr-0.01", "constant", "cosine", "wd-1e-4", "wd-5e-4", "final")
"""The trials of the report, in its order."""
SEEDS = (0, 1, 2)
"""The default: the fewest that give an effect an interval."""
QUICK: Mapping[str, str] = {
    "data": "procedural", "val_size": "2000", "width_mult": "0.25", "batch_size": "64", "device": "cpu",
}  # fmt: skip
"""What `study quick` sets in every trial, beside the epochs; a setting of the user's own goes before it. On a GPU the
24 runs would spend their minutes in torch.compile."""
QUICK_EPOCHS = (3, 5)
"""Of the trials of 15 epochs, and of those of 300."""


@dataclass(frozen=True)
class PlannedRun:
    """One run that a study wants, finished or not.

    Attributes:
        trial: the preset.
        seed: the run's seed.
        path: its run folder, which exists unless `state` is `missing` (and then may be half made).
        epochs: how many it is to have.
        state: see `State`.
        epochs_done: how many lines its metrics have.
        reason: why it failed, in one line; empty otherwise.
    """

    trial: str
    seed: int
    path: Path
    epochs: int
    state: State = "missing"
    epochs_done: int = 0
    reason: str = ""

    @property
    def name(self) -> str:
        """`final-s0`: the name of its run folder and, with `.log`, of its log."""
        return f"{self.trial}-s{self.seed}"


@dataclass(frozen=True)
class Trial:
    """A preset in a study. `dataset_digest` names the content of the images."""

    seeds: tuple[int, ...]
    epochs: int
    dataset_digest: str


@dataclass
class Study:
    """What was asked for in the folder `path`. Accuracies of a `quick` or scaled study compare with no publication.

    Attributes:
        settings: what was given on the command line for all runs, as text by setting.
        trials: by name, in the order in which they are trained.
        failures: why a run failed, by its name, for those that did and have not been tried again.
    """

    path: Path
    quick: bool = False
    epochs_scale: float = 1.0
    settings: dict[str, str] = field(default_factory=dict)
    trials: dict[str, Trial] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

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
            if content["format"] != FORMAT:
                raise UsageError(f"{file} has format {content['format']}; this fastcifar reads format {FORMAT}.")
            trials = {
                name: Trial(tuple(map(int, t["seeds"])), int(t["epochs"]), str(t["dataset_digest"]))
                for name, t in content["trials"].items()
            }
            quick, scale = bool(content["quick"]), float(content["epochs_scale"])
            return cls(path, quick, scale, dict(content["settings"]), trials, dict(content["failures"]))
        except OSError as problem:
            raise CheckpointError(f"{file} cannot be read: {problem.strerror}.") from problem
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise CheckpointError(
                f"{file} is damaged ({problem!r}). The runs beside it are intact: remove it and give the command of "
                "the study again."
            ) from problem

    def write(self) -> None:
        """Writes study.json in one step, in place of an earlier one."""
        content: dict[str, Any] = {"format": FORMAT, "fastcifar": fastcifar.__version__, **asdict(self)}
        del content["path"]
        file, new = self.path / STUDY, self.path / f"{STUDY}.new"
        try:
            with open(new, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(content, indent=1) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(new, file)
        except OSError as problem:
            raise FastcifarError(f"{file} cannot be written: {problem.strerror or problem}.") from problem

    def overrides(self, trial: str) -> dict[str, str]:
        """What the runs of `trial` set beside their preset and seed, as text by setting."""
        preset = load_preset(trial)
        epochs, warmup = preset.epochs, preset.lr_warmup_epochs
        chosen: dict[str, str] = {}
        if self.quick:
            chosen = dict(QUICK)
            epochs = QUICK_EPOCHS[preset.epochs > 15]
            warmup *= epochs / preset.epochs
        if self.quick or self.epochs_scale != 1:
            epochs = max(1, round(epochs * self.epochs_scale))
            chosen["epochs"] = str(epochs)
            if warmup:
                chosen["lr_warmup_epochs"] = f"{min(warmup * self.epochs_scale, epochs):g}"
        return chosen | self.settings

    def config(self, trial: str, seed: int) -> Config:
        """The settings of one run, `auto` where the device decides. Errors: one UsageError for all problems."""
        return resolve(trial, None, [*self.overrides(trial).items(), ("seed", str(seed))])

    def planned(self) -> list[PlannedRun]:
        """Every run, as it is on disk now, in the order of training: the first seed of every trial, then the next."""
        seeds = sorted({seed for trial in self.trials.values() for seed in trial.seeds})
        pairs = [(name, seed) for seed in seeds for name, trial in self.trials.items() if seed in trial.seeds]
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
        elif run.name in self.failures:
            state, reason = "failed", self.failures[run.name]
        elif (run.path / CONFIG).is_file():
            state = "cut"
        return PlannedRun(trial, seed, run.path, run.epochs, state, done, reason)


def last_record(run: Path) -> dict[str, Any] | None:
    """The last whole line of a run's metrics, also while the run is being written; None where there is none."""
    for line in _lines_from_the_end(run / METRICS_JSONL):
        try:
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("epoch"), int):
                return record
        except ValueError:  # cut off by a crash, or being written
            continue
    return None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    try:
        yield from reversed(path.read_bytes().splitlines())
    except OSError:
        return


# ---- from a command to a plan ----


@dataclass(frozen=True)
class Request:
    """What a command asks for; None and nothing mean: as the study has it, or else the default.

    Attributes:
        trials: presets.
        quick: small and on procedural data.
        settings: for all runs, as pairs of setting and text.
        options: of the command, suggested beside the settings to who mistypes one.
    """

    trials: tuple[str, ...] = ()
    quick: bool = False
    seeds: tuple[int, ...] | None = None
    epochs_scale: float | None = None
    settings: Sequence[tuple[str, str]] = ()
    options: Sequence[str] = ()


def plan(out: Path, request: Request) -> tuple[Study, set[str]]:
    """The study that `out` is to hold, what it holds already included, and the names of the runs to train now.

    Raises:
        UsageError: for all problems, a line each.
    """
    before = Study.open(out) if (out / STUDY).is_file() else None
    if before is None:
        _check_folder(out)
    names, seeds = request.trials or TRIALS, request.seeds or SEEDS
    if before is not None:
        names = request.trials or tuple(before.trials)
        seeds = request.seeds or tuple(sorted({seed for trial in before.trials.values() for seed in trial.seeds}))
    names = tuple(dict.fromkeys(names))
    settings = _checked(names, request)

    scale = request.epochs_scale
    if before is None:
        study = Study(out, request.quick, 1.0 if scale is None else scale, settings)
    else:
        study = replace(
            before,
            quick=before.quick or request.quick,
            epochs_scale=before.epochs_scale if scale is None else scale,
            settings=before.settings | settings,
            trials=dict(before.trials),
        )
        _check_same(before, study)
    for name in names:
        have = study.trials.get(name, Trial((), 0, ""))
        try:
            epochs = study.config(name, 0).epochs
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        study.trials[name] = Trial(tuple(sorted({*have.seeds, *seeds})), epochs, have.dataset_digest)
    return study, {f"{name}-s{seed}" for name in names for seed in seeds}


def _checked(names: Sequence[str], request: Request) -> dict[str, str]:
    """The settings of the request by name. Raises UsageError for all that is wrong with it, a line each."""
    problems = []
    settings = {key.replace("-", "_"): text for key, text in request.settings}
    for key, instead in {"seed": "--seeds", "preset": "the trials' names, without --preset"}.items():
        if settings.pop(key, None) is not None:
            problems.append(f"command line: --{key}: a study takes {instead}")
    if request.epochs_scale is not None and "epochs" in settings:
        problems.append("command line: --epochs and --epochs-scale: give one of the two")
    good = []
    for name in names:
        try:
            good.append(find_preset(name).name)
        except UsageError as error:
            problems.append(str(error).replace("preset", "trial", 1))
    try:
        if good:  # a setting that is wrong in itself is wrong in every trial
            pairs = [(key, text) for key, text in request.settings if key.replace("-", "_") in settings]
            trace(max(good, key=lambda name: load_preset(name).epochs), None, pairs, request.options)
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return settings


def _check_folder(out: Path) -> None:
    """Refuses a folder with anything but what a study leaves behind that has lost its study.json."""
    try:
        strange = sorted({entry.name for entry in out.iterdir()} - {RUNS, LOGS, REPORT, LOCK, f"{STUDY}.new"})
    except FileNotFoundError:
        return
    except OSError as problem:
        raise UsageError(f"--out {out} cannot be used: {problem.strerror}.") from problem
    if strange:
        raise UsageError(
            f"--out {out} holds no study but {', '.join(strange[:3])}{' ...' * (len(strange) > 3)}; give a new or "
            "empty folder, or that of an earlier study, which goes on."
        )


def _check_same(before: Study, now: Study) -> None:
    """Refuses settings that would change the runs of a study."""
    found: dict[str, list[str]] = {}
    for name in before.trials:
        for line in _differences(before.config(name, 0), now.config(name, 0)):
            found.setdefault(line, []).append(name)
    if found:
        lines = [f"{line}   ({', '.join(names)})" for line, names in found.items()]
        raise UsageError(
            "\n".join([f"{now.path} holds a study with other settings, and a study keeps its settings:", *lines])
            + "\nGive another folder with --out, or leave these out to go on as before."
        )


def _differences(have: Config, wanted: Config) -> list[str]:
    """The settings in which a run would be another one. What is `auto` is settled when a run begins."""
    pairs = {
        name: (getattr(have, name), getattr(wanted, name)) for name in Config.model_fields if name not in RESUMABLE
    }
    return [
        f"{name} = {wants} asked, {has} there"
        for name, (has, wants) in pairs.items()
        if "auto" not in (has, wants) and has != wants
    ]


def check_runs(study: Study) -> None:
    """Refuses run folders that hold something else than the study wants, as after a change of a preset."""
    for run in study.planned():
        if (run.path / CONFIG).is_file():
            try:
                folder = RunFolder.open(run.path, note=lambda _: None)
            except CheckpointError:  # damaged: it will fail alone, and say why
                continue
            found = _differences(folder.config, study.config(run.trial, run.seed))
            if folder.dataset_digest != study.trials[run.trial].dataset_digest:
                found.append("its images are others")
            if found:
                raise UsageError(
                    f"{run.path} is not the run that the study wants: {'; '.join(found)}. Move it away, or give "
                    "another folder with --out."
                )
