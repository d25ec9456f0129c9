"""From a command to a plan: which runs a study is to hold, and which of them are to be trained now."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastcifar.config import RESUMABLE, Config, has_default_normalization
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.layers import preset_names, resolve, resolve_layers
from fastcifar.paths import given
from fastcifar.presets import TRIALS, find_preset
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import CONFIG
from fastcifar.studies.folder import (
    LOCK,
    LOGS,
    OPTUNA,
    REPORT,
    RUNS,
    SETTINGS,
    STUDY,
    SearchPlan,
    Study,
    Trial,
    absolute,
)
from fastcifar.studies.grid import grid, spread, trial_name
from fastcifar.studies.space import space_of
from fastcifar.text import did_you_mean, nearest, one_line

SEEDS = (0, 1, 2)
"""The default: the fewest that give an effect an interval."""

NUM_TRIALS = 40
"""Of a search, if nothing else is said."""

LONGEST_NAME = 200
"""Characters of a trial's name: the files of its runs have names with a little more."""

_OURS = {RUNS, LOGS, REPORT, SETTINGS, LOCK, OPTUNA, f"{STUDY}.new"}
"""What a study leaves behind that has lost its study.json."""


@dataclass(frozen=True)
class Request:
    """What a command asks for; None and nothing mean: as the study has it, or else the default.

    Attributes:
        trials: presets, settings files (`*.toml`), and trials that the study has already.
        quick: small and on procedural data.
        seeds: None means: those that a trial has; for a new trial, those of all trials together.
        settings: for all runs, as pairs of setting and text. Several values, separated by commas, make a grid.
        options: of the command, suggested beside the settings to who mistypes one.
        search: what settings a search may choose, as `space.parse` reads it; empty: nothing is searched.
        num_trials: how many trials the search is to have in all.
    """

    trials: tuple[str, ...] = ()
    quick: bool = False
    seeds: tuple[int, ...] | None = None
    epochs_scale: float | None = None
    settings: Sequence[tuple[str, str]] = ()
    options: Sequence[str] = ()
    search: str = ""
    num_trials: int | None = None


_ABOUT_QUICK = (
    "; `quick` is here a mode (small models on procedural images), not the preset: to vary that, name a settings file "
    'with the line base = "quick"'
)


def default_folder(request: Request) -> Path:
    """Where the study goes that `request` asks for: the same folder for the same trials and the same axes of a grid."""
    own = [word for word in request.trials if _is_file(word)]
    axes = list(spread(request.settings)[1])
    parts = ["search" if request.search else "study", *["quick"] * request.quick]
    if own or axes or request.search:
        parts += [trial_name(word) if _is_file(word) else word for word in request.trials][:3] + axes
    return Path("runs") / "-".join(parts)


def plan(out: Path, request: Request) -> tuple[Study, set[str]]:
    """The study that `out` is to hold, what it holds already included, and the names of the runs to train now.

    Raises:
        UsageError: for all problems, a line each.
        DataError: `data` is neither a data set's name nor a path.
    """
    before = Study.open(out) if (out / STUDY).is_file() else None
    if before is None:
        _check_folder(out)
    study = Study(out) if before is None else replace(before, trials=dict(before.trials), files=dict(before.files))
    wanted, common = _wanted(study, request)
    usual = study.seeds or (SEEDS[:1] if study.search else SEEDS)
    study.quick = study.quick or request.quick
    study.epochs_scale = study.epochs_scale if request.epochs_scale is None else request.epochs_scale
    study.settings = study.settings | absolute(common)
    if before is not None:
        _check_same(before, study)
    runs: set[str] = set()
    for name, trial in wanted.items():
        have = study.trials.get(name, trial)
        seeds = request.seeds or have.seeds or usual
        runs |= {f"{name}-s{seed}" for seed in seeds}
        study.trials[name] = replace(have, seeds=tuple(sorted({*have.seeds, *seeds})))
        try:
            config = study.asked(name)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        if study.search is not None and not config.val_size:
            raise UsageError(f"{name}: a search needs validation images, and val_size = 0 leaves none")
        study.trials[name] = replace(study.trials[name], epochs=config.epochs)
    return study, runs


def _wanted(study: Study, request: Request) -> tuple[dict[str, Trial], dict[str, str]]:
    """The trials that `request` asks for, by name, and the settings of all its runs; `study.files` is added to.

    Raises:
        UsageError: for all that is wrong with the request, a line each.
    """
    problems = []
    settings = {_name(key): text for key, text in request.settings}
    for key, instead in {
        "seed": "--seeds",
        "preset": "the trials' names, without --preset",
        "config": "the names of settings files, without --config",
    }.items():
        if settings.pop(key, None) is not None:
            problems.append(f"command line: --{key}: a study takes {instead}")
    if request.epochs_scale is not None and "epochs" in settings:
        problems.append("command line: --epochs and --epochs-scale: give one of the two")
    common, axes = spread(list(settings.items()), study.axes)
    searches = bool(request.search or request.num_trials)
    words = tuple(dict.fromkeys(request.trials or (() if axes or searches else study.trials or TRIALS)))
    if axes and not words:
        example = " ".join(f"--{key.replace('_', '-')} {','.join(values)}" for key, values in axes.items())
        problems.append(
            f"a grid needs the trials that it starts from, such as: fastcifar study final {example}"
            + _ABOUT_QUICK * request.quick
        )
    trials: dict[str, Trial] = {}
    if searches:
        trials, words = _searched(study, request, axes, problems), ()
    for word in words:
        if word in study.trials and not axes:
            trials[word] = study.trials[word]
        elif (start := _start(word, study, problems)) is not None:
            trials |= grid(start, axes)
    problems += _wrong_settings(
        trials, [pair for pair in request.settings if _name(pair[0]) in settings], axes, request, study
    )
    problems += [
        f"{name}: the name of this trial is too long; give fewer settings several values"
        for name in trials
        if len(name) > LONGEST_NAME
    ]
    if problems:
        raise UsageError("\n".join(problems))
    return trials, common


def _searched(
    study: Study, request: Request, axes: Mapping[str, Sequence[str]], problems: list[str]
) -> dict[str, Trial]:
    """The trials of the search that `request` asks for, or goes on with; sets `study.search`."""
    before = study.search
    start = before.start if before and not request.trials else None
    if len(request.trials) == 1:
        start = _start(request.trials[0], study, problems)
        if start is None:
            return {}
    if start is None:
        example = "--search: a search starts from one trial, such as: fastcifar study final --search ..."
        problems.append(example + _ABOUT_QUICK * request.quick)
        return {}
    space = dict(before.space) if before else {}
    if request.search:
        try:
            space = space_of(request.search)
        except UsageError as error:
            problems += str(error).splitlines()
            return {}
    if before is None and study.trials:
        problems.append(f"--search: {study.path} holds a study without a search: give another folder with --out")
    if before is not None and (before.start, before.space) != (start, space):
        said = ",".join(f"{name}={text}" for name, text in before.space.items())
        problems.append(f"--search: {study.path} holds another search, {before.start} with {said}, and keeps it")
    if not space:
        problems.append("--trials: how many trials a search has; give --search, too")
    if axes:
        problems.append(f"--search: not together with several values of {', '.join(axes)}: a search chooses values")
    if request.seeds is not None and len(request.seeds) > 1:
        problems.append("--seeds: a search trains each trial with one seed; confirm the best trial with several")
    for key, text in request.settings:
        if (name := key.replace("-", "_")) in space or name == "test":
            why = "its test images are never looked at" if name == "test" else "it is what the search chooses"
            problems.append(f"command line: --{key} {one_line(text)}: not together with --search: {why}")
    num_trials = request.num_trials or (before.num_trials if before else NUM_TRIALS)
    study.search = SearchPlan(start, space, max(num_trials, before.num_trials if before else 0))
    return {name: study.trials.get(name, Trial(start, {}, (), 0)) for name in study.search.names}


def _start(word: str, study: Study, problems: list[str]) -> str | None:
    """What the trials of `word`, a preset or a settings file, start from; None, with a problem, if it is neither."""
    if not _is_file(word):
        try:
            return find_preset(word).name
        except UsageError as error:
            known = nearest(word, study.trials)
            problems.append(str(error).replace("preset", "trial", 1) if known is None else f"{one_line(word)}: there "
                            f"is no such trial{did_you_mean(known)}")  # fmt: skip
            return None
    name = trial_name(word)
    if name in preset_names():
        problems.append(f"{one_line(word)}: a preset is called {name}, and this file is another trial: rename it")
        return None
    try:
        path = given(word)
        config = resolve(None, path, [("preset", name)])
    except (UsageError, OSError, ValueError) as error:
        problems.append(str(error) if isinstance(error, UsageError) else f"{one_line(word)}: {error}")
        return None
    start = f"{name}.toml"
    if (other := study.files.get(start)) is not None and other.parent != study.path / SETTINGS:
        if resolve(None, other, [("preset", name)]) != config:
            problems.append(f"{one_line(word)} and {other}: both are called {name}: rename one")
    study.files[start] = path
    return start


def _wrong_settings(
    trials: Mapping[str, Trial],
    pairs: Sequence[tuple[str, str]],
    axes: Collection[str],
    request: Request,
    study: Study,
) -> list[str]:
    """What is wrong with settings in themselves, which is then wrong in every trial: lines, each of them once."""
    if not trials:
        return []
    longest = max((trial.start for trial in trials.values()), key=lambda start: study.start(start).epochs)
    file = study.files.get(longest)
    lines: list[str] = []
    several = {key: [part.strip() for part in text.split(",")] if _name(key) in axes else [text] for key, text in pairs}
    for place in range(max(map(len, several.values()), default=1)):
        chosen = [(key, texts[min(place, len(texts) - 1)]) for key, texts in several.items()]
        try:
            resolve_layers(None if file else longest, file, chosen, request.options)
        except UsageError as error:
            lines += str(error).splitlines()
    return list(dict.fromkeys(lines))


def _name(key: str) -> str:
    """The name of the setting that is typed as `key`."""
    return key.replace("-", "_")


def _is_file(word: str) -> bool:
    return word.lower().endswith(".toml") or "/" in word


def _check_folder(out: Path) -> None:
    """Refuses a folder with anything but what a study leaves behind that has lost its study.json."""
    try:
        strange = sorted({entry.name for entry in out.iterdir()} - _OURS)
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
        for line in _differences(before.asked(name), now.asked(name)):
            found.setdefault(line, []).append(name)
    if found:
        lines = [f"{line}   ({', '.join(names)})" for line, names in found.items()]
        raise UsageError(
            "\n".join([f"{now.path} holds a study with other settings, and a study keeps its settings:", *lines])
            + "\nGive another folder with --out, or leave these out to go on as before."
        )


def _differences(have: Config, wanted: Config) -> list[str]:
    """The settings in which a run would be another one. What is `auto` is settled when a run begins."""
    # Where neither mean nor std is set, they are those of the images once a run has begun.
    left_out = (*RESUMABLE, *(("mean", "std") if has_default_normalization(wanted) else ()))
    pairs = {name: (getattr(have, name), getattr(wanted, name)) for name in Config.model_fields if name not in left_out}
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
