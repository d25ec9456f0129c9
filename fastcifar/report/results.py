"""From run folders to the numbers of the page: runs, grouped into trials, with what they may be compared with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastcifar.config import Config, differing_settings
from fastcifar.data.published import CIFAR100
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.layers import preset_names
from fastcifar.presets import TRIALS, Metric, Preset, find_preset
from fastcifar.run import facts, failure
from fastcifar.run.folder import RunFolder
from fastcifar.run.planned import PlannedRun
from fastcifar.stats import Sample, describe, paired_effect

CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: its folder.
        trial: the name of its trial: as the study calls it that planned the run, or else the preset.
        config, environment, summary, records: as its files hold them.
        digest: names the content of the images it was trained on.
    """

    path: Path
    trial: str
    config: Config
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    digest: str

    @property
    def name(self) -> str:
        return f"{self.trial}, seed {self.config.seed}"

    def value(self, metric: str) -> float | None:
        """A number of the summary, if it is there and finite."""
        value = self.summary.get(metric)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    @property
    def images_per_second(self) -> float | None:
        """Over the whole of training: images of all epochs by the training clock."""
        return facts.images_per_second(self.records)

    @property
    def concurrent(self) -> int:
        """How many runs shared the machine, as a study says that starts several side by side, or their process."""
        variables, together = self.environment.get("variables"), self.environment.get("together")
        text = str(variables.get("FASTCIFAR_STUDY_JOBS", "1")) if isinstance(variables, Mapping) else "1"
        jobs = int(text) if re.fullmatch("[0-9]{1,6}", text) else 1
        return jobs * (together if isinstance(together, int) else 1)


@dataclass(frozen=True)
class Trial:
    """Runs that differ in the seed, and else at most in how they were computed.

    Attributes:
        name: the preset's, or that of a trial of one's own in a study.
        label: what the page calls it: the name, and what sets it apart from another trial of the same name.
        changes: settings that change the result and differ from those of the preset that they derive from, as
            `name = value`.
        preset: None if there is no preset of that name.
        runs: finished ones, by seed.
    """

    name: str
    label: str
    changes: tuple[str, ...]
    preset: Preset | None
    digest: str
    runs: tuple[Run, ...]

    @property
    def n(self) -> int:
        """How many runs there are."""
        return len(self.runs)

    @property
    def config(self) -> Config:
        """The settings, with the first run's seed."""
        return self.runs[0].config

    @property
    def is_cifar100(self) -> bool:
        """Whether the images are the published ones."""
        return self.digest == CIFAR100.digest

    @property
    def is_comparable(self) -> bool:
        """Whether the published numbers are of the same images and settings."""
        return self.preset is not None and self.is_cifar100 and not self.changes

    def by_seed(self, metric: str) -> dict[int, float]:
        """A metric of the last epoch by seed, without the runs that lack it."""
        values = {run.config.seed: run.value(metric) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def sample(self, metric: str) -> Sample | None:
        """A metric of the last epoch over the seeds; None if no run has it.

        The interval is cut at what the metric can be: 0 and 1 for an accuracy, 0 for a loss.
        """
        values = list(self.by_seed(metric).values())
        return describe(values).within(0, 1 if _is_share(metric) else math.inf) if values else None

    def curve(self, key: str) -> list[tuple[int, float, float, float]]:
        """A number of each epoch, over the seeds.

        Args:
            key: of the epochs' records.

        Returns:
            (epoch, mean, lowest, highest) for each epoch in which every run has the number.
        """
        per_run = [{r["epoch"]: r[key] for r in run.records if _is_number(r.get(key))} for run in self.runs]
        epochs = sorted(set.intersection(*map(set, per_run)))
        rows = [(epoch, [values[epoch] for values in per_run]) for epoch in epochs]
        return [(epoch, math.fsum(values) / len(values), min(values), max(values)) for epoch, values in rows]


@dataclass(frozen=True)
class Absence:
    """A run that is not among the results, and why.

    Attributes:
        name: what the page calls it.
        path: its folder.
        state: `failed`, `unfinished`, `cut`, `missing`, `unreadable` or `left out`.
        reason: in one line.
        trial: the name of its trial; empty where it is not known.
    """

    name: str
    path: Path
    state: str
    reason: str
    trial: str = ""


@dataclass
class Results:
    """Everything the page is made of.

    Attributes:
        trials: those of the report first and in its order, then others.
        absences: runs that were given or planned, and don't count.
        planned: what a study wanted; empty for a page made of runs that were named.
        notes: what reading the runs had to say, such as that a damaged line was left out.
    """

    trials: list[Trial]
    absences: list[Absence] = field(default_factory=list)
    planned: Sequence[PlannedRun] = ()
    notes: Sequence[str] = ()

    def trial(self, name: str) -> Trial | None:
        """The trial that stands for the preset `name`: the first, which has the preset's own settings if any has."""
        return next((trial for trial in self.trials if trial.name == name), None)

    def failures(self, name: str) -> list[Absence]:
        """The failed runs of the preset `name`."""
        return [absence for absence in self.absences if (absence.trial, absence.state) == (name, "failed")]

    @property
    def is_own(self) -> bool:
        """Whether a study planned the runs that has trials of one's own, or none of the report's."""
        names = {plan.trial for plan in self.planned}
        return bool(names) and (not names & set(TRIALS) or not names <= set(preset_names()))

    @property
    def runs(self) -> list[Run]:
        """All finished runs, trial by trial."""
        return [run for trial in self.trials for run in trial.runs]


def read_results(paths: Sequence[Path], planned: Sequence[PlannedRun] = ()) -> Results:
    """The results in run folders; what cannot be used is told in `absences`.

    Args:
        paths: run folders.
        planned: what a study wanted.

    Raises:
        UsageError: no folder holds a finished run.
    """
    runs: list[Run] = []
    absences: list[Absence] = []
    notes: list[str] = []
    names = {plan.path.resolve(): plan.trial for plan in planned}
    for path in dict.fromkeys(paths):
        found = _read_run(path, names.get(path.resolve()), notes.append)
        if isinstance(found, Absence):
            absences.append(found)
            continue
        twin = next((run for run in runs if _same_draw(run, found)), None)
        if twin is None:
            runs.append(found)
        else:
            reason = f"the same trial and seed as {twin.path}: two runs of one seed are not two samples"
            absences.append(Absence(found.name, path, "left out", reason, found.trial))
    seen = {absence.path.resolve() for absence in absences} | {path.resolve() for path in paths}
    for plan in planned:
        if plan.state != "finished" and plan.path.resolve() not in seen:
            reached = "" if plan.state == "missing" else f"{plan.epochs_done} of {plan.epochs} epochs done"
            reason = "; ".join(filter(None, (reached, plan.reason))) or "not begun"
            absences.append(Absence(f"{plan.trial}, seed {plan.seed}", plan.path, plan.state, reason, plan.trial))
    absences = [_with_reason(absence, planned) for absence in absences]
    if not runs:
        lines = [f"{absence.path}: {absence.state}: {absence.reason}" for absence in absences]
        raise UsageError("\n".join(["there is no finished run to report on", *lines]))
    results = Results([], absences, planned, notes)
    own = [plan.trial for plan in planned]
    results.trials = _trials(runs, [*own, *TRIALS] if results.is_own else [*TRIALS, *own])
    return results


def changes_of(config: Config, preset: Config) -> tuple[str, ...]:
    """The settings that change the result and differ from the preset's, as `name = value`."""
    return tuple(f"{name} = {_short(getattr(config, name))}" for name in differing_settings(config, preset))


def effect(before: Trial | None, after: Trial | None, metric: str) -> Sample | str:
    """The effect of a step, paired over seeds, or why there is none.

    Args:
        before, after: the two trials, None where a trial has no finished run.
        metric: of the last epoch.

    Returns:
        The differences `after` - `before`, a seed each. The interval of a difference of accuracies is cut at -1 and 1.
    """
    if before is None or after is None:
        return "no run of either" if before is after else "a run of one of them is missing"
    if before.digest == after.digest and before.changes != after.changes:
        return "the runs differ in more: " + ", ".join(sorted({*before.changes} ^ {*after.changes}))
    return difference(before, after, metric)


def difference(before: Trial, after: Trial, metric: str) -> Sample | str:
    """As `effect`, whatever the settings are in which the two trials differ."""
    if before.digest != after.digest:
        return "trained on different images"
    values = before.by_seed(metric), after.by_seed(metric)
    if not all(values):
        return "not measured"
    found = paired_effect(*values)
    if found is None:
        return "no seed in common"
    return found.within(-1, 1) if _is_share(metric) else found


def verdict(trial: Trial, metric: Metric) -> str:
    """Where our mean lies.

    Args:
        trial: our runs.
        metric: of the last epoch.

    Returns:
        `inside`, `above` or `below` the published range; or why there is no verdict.
    """
    sample, span = trial.sample(metric), published_span(trial, metric)
    if sample is None:
        return "not measured"
    if not trial.is_comparable:
        return "no verdict"
    if span is None:
        return "nothing published"
    low, high = span
    return "below" if sample.mean < low else "above" if sample.mean > high else "inside"


def published_span(trial: Trial, metric: Metric) -> tuple[float, float] | None:
    """The range of all published numbers: the report's own and those of the reproductions.

    Args:
        trial: of a preset.
        metric: of the last epoch.

    Returns:
        The lowest and the highest; None where nothing is published.
    """
    if trial.preset is None:
        return None
    about = trial.preset.about
    numbers = [*about.reproductions.get(metric, ()), *([about.report[metric]] if metric in about.report else [])]
    return (min(numbers), max(numbers)) if numbers else None


def _read_run(path: Path, trial: str | None, note: Callable[[str], None]) -> Run | Absence:
    """The run in `path`, or why it does not count; `trial` is the study's name of its trial, if a study planned it."""
    try:
        folder = RunFolder.open(path, note=note)
        summary = folder.summary()
    except FastcifarError as error:
        return Absence(path.name, path, "unreadable", str(error).replace("\n", " "))
    config, records = folder.config, folder.records
    trial = trial or config.preset
    if summary is not None:
        return Run(path, trial, config, folder.environment, summary, records, folder.dataset_digest)
    last = records[-1] if records else {}
    if last and not _is_number(last.get("train_loss")):
        state, reason = "failed", f"the training loss is not finite in epoch {last['epoch']}"
    else:
        state, reason = "unfinished", f"{last.get('epoch', 0)} of {config.epochs} epochs done"
        if (told := failure.read(path)) is not None:
            state, reason = "failed", f"{reason}; {told.reason}"
    return Absence(f"{trial}, seed {config.seed}", path, state, reason, trial)


def _with_reason(absence: Absence, planned: Sequence[PlannedRun]) -> Absence:
    """The same absence, with the reason that the study knows, if the run failed."""
    plan = next((plan for plan in planned if plan.path.resolve() == absence.path.resolve()), None)
    if plan is None or plan.state != "failed" or not plan.reason or plan.reason in absence.reason:
        return absence
    return replace(absence, state="failed", reason=f"{absence.reason}; {plan.reason}")


def _same_draw(one: Run, other: Run) -> bool:
    return (
        (one.trial, one.config.seed, one.digest) == (other.trial, other.config.seed, other.digest)
        and not differing_settings(one.config, other.config)
    )  # fmt: skip


def _trials(runs: Sequence[Run], names: Sequence[str]) -> list[Trial]:
    """The runs as trials, in the order of `names`: those of one name, with the same changes and images, are one.

    Of several trials of a preset, that with the preset's own settings on CIFAR-100 comes first, then that with the most
    runs.
    """
    presets: dict[str, Preset | None] = {}
    members: dict[tuple[str, tuple[str, ...], str], list[Run]] = {}
    for run in runs:
        for name in (run.trial, run.config.preset):
            if name not in presets:
                presets[name] = _preset(name)
        base = presets[run.trial] or presets[run.config.preset]
        changes = changes_of(run.config, base.config if base else Config())
        members.setdefault((run.trial, changes, run.digest), []).append(run)
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}

    def rank(key: tuple[str, tuple[str, ...], str]) -> tuple[object, ...]:
        name, changes, digest = key
        return order.get(name, len(order)), name, digest != CIFAR100.digest, len(changes), -len(members[key])

    trials: list[Trial] = []
    for name, changes, digest in sorted(members, key=rank):
        group = tuple(sorted(members[name, changes, digest], key=lambda run: run.config.seed))
        first = next((trial for trial in trials if trial.name == name), None)
        apart = "" if first is None else f" ({', '.join(changes) or 'other images'})"
        label = name + apart
        if any(trial.label == label for trial in trials):
            label += f" on images {digest[:8]}"
        trials.append(Trial(name, label, changes, presets[name], digest, group))
    return trials


def _preset(name: str) -> Preset | None:
    try:
        return find_preset(name)
    except UsageError:
        return None


def _is_share(metric: str) -> bool:
    return metric.endswith("accuracy")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
