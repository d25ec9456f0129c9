"""From a command to a plan: which runs a study is to hold, and which of them are to be trained now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastcifar.config import RESUMABLE, Config
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.layers import resolve_layers
from fastcifar.presets import TRIALS, find_preset, load_preset
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import CONFIG
from fastcifar.studies.folder import LOCK, LOGS, REPORT, RUNS, STUDY, Study, Trial
from fastcifar.text import one_line, quoted

SEEDS = (0, 1, 2)
"""The default: the fewest that give an effect an interval."""


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
    if (file := settings.pop("config", None)) is not None:
        problems.append(f"command line: --config {one_line(file)}: {_of_own_settings(file)}")
    if request.epochs_scale is not None and "epochs" in settings:
        problems.append("command line: --epochs and --epochs-scale: give one of the two")
    good = []
    for name in names:
        try:
            good.append(find_preset(name).name)
        except UsageError as error:
            own = name.endswith(".toml") or "/" in name
            problems.append(
                f"{one_line(name)}: {_of_own_settings(name)}" if own else str(error).replace("preset", "trial", 1)
            )
    try:
        if good:  # a setting that is wrong in itself is wrong in every trial
            pairs = [(key, text) for key, text in request.settings if key.replace("-", "_") in settings]
            resolve_layers(max(good, key=lambda name: load_preset(name).epochs), None, pairs, request.options)
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return settings


def _of_own_settings(file: str) -> str:
    """What is possible with a settings file of the user's own."""
    return (
        "a study trains presets, and no settings file yet. Give its settings to all trials with --KEY VALUE (such as "
        f"--epochs 30), or train it alone, a seed at a time: fastcifar train --config {quoted(file)} --seed 0"
    )


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
