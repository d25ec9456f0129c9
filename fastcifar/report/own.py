"""A study of one's own: what its trials differ in, what came of each, their curves, and effects paired over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastcifar.config import NAMES, RESUMABLE
from fastcifar.data import procedural
from fastcifar.presets import Metric
from fastcifar.report import figures
from fastcifar.report.curves import curves_figure
from fastcifar.report.document import NOTHING, Block, Details, Figure, Heading, Paragraph, Table
from fastcifar.report.drawing import colours_of
from fastcifar.report.effects import points, reading
from fastcifar.report.markup import code, plain
from fastcifar.report.predictions import Predictions
from fastcifar.report.result_tables import sample_data
from fastcifar.report.results import Results, Trial, difference
from fastcifar.report.search import Searched, search_blocks
from fastcifar.report.wording import METRIC_NAMES, mean_and_sd, span
from fastcifar.stats import LEAST_FOR_INTERVAL, Sample

TRIALS_A_DRAWING = 6
"""The most that one drawing of curves tells apart."""
MOST_SETTINGS = 5
"""Columns of settings in the table of the trials; the CSV has all."""
MOST_MODELS = 8
"""Trials whose models are shown class by class; of more, the first trial and the best one."""
ACCURACIES: tuple[Metric, ...] = ("val_accuracy", "test_accuracy")
METRICS: tuple[Metric, ...] = (*ACCURACIES, "val_loss", "train_loss", "train_accuracy")


def own_title(results: Results) -> str:
    """What the page of a study of one's own is called."""
    labels = [trial.label for trial in results.trials]
    return f"A study of {', '.join(labels)}" if len(labels) <= 3 else f"A study of {len(labels)} trials"


def own_head(results: Results) -> list[Block]:
    """The title, what the study was made of, and how its numbers are to be read."""
    runs, trials = results.runs, results.trials
    names = {trial.digest: _images(trial) for trial in trials}
    settings = ", ".join(map(code, varied(trials))) or "nothing that changes a run"
    return [
        Heading(1, own_title(results), "top"),
        Paragraph(
            f"{len(runs)} finished run{'s' * (len(runs) != 1)} of {len(trials)} trial{'s' * (len(trials) != 1)} on "
            f"{' and '.join(names.values())}. The trials differ in {settings}."
        ),
        Paragraph(
            "**How to read it.** All numbers are those of the last epoch. `±` is the standard deviation over n seeds, "
            "and the interval is the 95 % interval of their mean (Student's t), given from "
            f"{LEAST_FOR_INTERVAL} seeds on and cut at what the quantity can be. The split into training and "
            "validation is the same for all seeds: the spread over seeds does not cover the variance of the split, nor "
            "that of the images drawn. Choose between trials by their validation accuracy: the highest of several test "
            "accuracies is too high."
        ),
    ]


def _images(trial: Trial) -> str:
    if trial.is_cifar100:
        return "CIFAR-100"
    return "procedural images" if trial.digest == procedural.DIGEST else f"images with the digest {trial.digest[:12]}"


def varied(trials: Sequence[Trial]) -> list[str]:
    """The settings in which runs of `trials` differ, without the seed and those that a resumed run may change."""
    configs = [run.config for trial in trials for run in trial.runs]
    names = [name for name in NAMES if name not in ("preset", "seed", *RESUMABLE)]
    return [name for name in names if len({getattr(config, name) for config in configs}) > 1]


def own_chapters(results: Results, search: Searched | None) -> list[Block]:
    """The trials with their results, the curves, and the effects; of a search, what it has come to in place of effects.

    Args:
        results: the runs.
        search: what the study's search has come to, if it has one.
    """
    trials = results.trials
    colours = dict(zip((trial.name for trial in trials), colours_of(len(trials)), strict=True))
    if search is not None:
        return [
            *search_blocks(search),
            Heading(2, "The finished trials", "trials"),
            _trials_table(trials),
            Heading(2, "Curves", "curves"),
            *_curves(sorted(trials, key=lambda trial: -_mean(trial, "val_accuracy")), colours),
        ]
    return [
        Heading(2, "The trials", "trials"),
        *_accuracy_figures(trials, colours),
        _trials_table(trials),
        Heading(2, "Curves", "curves"),
        *_curves(trials, colours),
        *_effects(trials, colours),
    ]


def _mean(trial: Trial, metric: Metric) -> float:
    """Over the seeds; -1 where there is no value."""
    sample = trial.sample(metric)
    return -1.0 if sample is None else sample.mean


def _accuracy_figures(trials: Sequence[Trial], colours: Mapping[str, str]) -> list[Block]:
    blocks: list[Block] = []
    for metric in ACCURACIES:
        rows = [
            figures.Row(trial.label, colours[trial.name], sample)
            for trial in trials
            if (sample := trial.sample(metric)) is not None
        ]
        if rows:
            name, what = metric.replace("_", "-"), METRIC_NAMES[metric]
            told = figures.series({row.label: row.sample.mean for row in rows})
            alt = f"{what.capitalize()} by trial, means over seeds: {told}"
            drawing = figures.draw_dots(name, rows, f"{what}, %", alt)
            caption = f"**{what.capitalize()}.** A dot a seed, a diamond the mean, a line its 95 % interval."
            blocks.append(Figure(name, caption, [drawing]))
    return blocks


def _trials_table(trials: Sequence[Trial]) -> Table:
    settings = varied(trials)
    shown = settings[:MOST_SETTINGS]
    rows, data = [], []
    for trial in trials:
        samples = {metric: trial.sample(metric) for metric in METRICS}
        values = {name: getattr(trial.config, name) for name in settings}
        cells = [plain(_short(values[name])) for name in shown] + [str(trial.n)]
        for metric in ACCURACIES:
            sample = samples[metric]
            cells += [mean_and_sd(sample, metric), span(sample.interval, metric) if sample else NOTHING]
        rows.append([plain(trial.label), *cells, mean_and_sd(samples["val_loss"], "val_loss")])
        data += [
            {"trial": trial.label, **values, "metric": metric, **sample_data(samples[metric], trial, metric)}
            for metric in METRICS
        ]
    columns = ["trial", *map(code, shown), "n"]
    for metric in ACCURACIES:
        columns += [METRIC_NAMES[metric], "95 % interval"]
    more = f" They also differ in {', '.join(map(code, settings[MOST_SETTINGS:]))}: see the CSV." * (
        len(settings) > MOST_SETTINGS
    )
    caption = f"**The trials** after their last epoch.{more}"
    return Table("trials", caption, [*columns, "validation loss"], rows, data, stacked=False)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _curves(trials: Sequence[Trial], colours: Mapping[str, str]) -> list[Block]:
    parts = [trials[start : start + TRIALS_A_DRAWING] for start in range(0, len(trials), TRIALS_A_DRAWING)]
    drawn: list[Block] = [
        curves_figure(None, f"curves-{place}", "Loss and accuracy over the epochs", part, colours)
        for place, part in enumerate(parts, 1)
    ]
    return drawn[:1] + ([Details("The curves of the other trials", drawn[1:])] if drawn[1:] else [])


def _effects(trials: Sequence[Trial], colours: Mapping[str, str]) -> list[Block]:
    """Every trial against the first one."""
    first, *others = trials
    if not others:
        return []
    blocks: list[Block] = [
        Heading(2, "Effects, paired over seeds", "effects"),
        Paragraph(
            f"Each trial against the study's first, **{plain(first.label)}**. Runs of one seed start from the same "
            "weights (where the model is the same) and see the same images in the same order with the same crops and "
            "flips, so trials are compared seed by seed. An effect is the mean of the differences; its 95 % interval "
            f"(Student's t, not corrected for looking at {len(others)} effect{'s' * (len(others) != 1)}) is given "
            f"from {LEAST_FOR_INTERVAL} seeds on."
        ),
    ]
    rows = [
        figures.Row(trial.label, colours[trial.name], found)
        for trial in others
        if isinstance(found := difference(first, trial, "val_accuracy"), Sample)
    ]
    if rows:
        words = "; ".join(f"{row.label}: {mean_and_sd(row.sample, 'val_accuracy', '+')}" for row in rows)
        alt = f"Effects on validation accuracy, against {first.label}. {words}"
        axis = "effect on validation accuracy, points"
        caption = "**Effects on validation accuracy.** A dot a seed, a diamond the mean, a line its interval."
        blocks.append(Figure("effects", caption, [figures.draw_dots("effects", rows, axis, alt, zero=True)]))
    blocks.append(_effect_table("val_accuracy", first, others))
    rest = [_effect_table(metric, first, others) for metric in METRICS if metric != "val_accuracy"]
    return [*blocks, Details("The same for test accuracy and losses", rest)]


def _effect_table(metric: Metric, first: Trial, others: Sequence[Trial]) -> Table:
    rows, data = [], []
    for trial in others:
        found = difference(first, trial, metric)
        sample = found if isinstance(found, Sample) else None
        changes = [
            f"{name} = {_short(getattr(trial.config, name))} in place of {_short(getattr(first.config, name))}"
            for name in varied([first, trial])
        ]
        interval = points(span(sample.interval, metric, "+")) if sample else NOTHING
        effect = points(mean_and_sd(sample, metric, "+"))
        told = ", ".join(changes) or "the same settings"
        rows.append([plain(trial.label), plain(told), str(sample.n if sample else 0), effect, interval, reading(found)])
        record: dict[str, object] = {"before": first.label, "after": trial.label, "changes": told, "metric": metric}
        record |= sample_data(sample, None, metric)
        del record["seeds"]
        data.append(record | {"reading": reading(found)})
    columns = ["trial", "what differs", "n", "effect, mean ± sd", "95 % interval", "reading"]
    caption = f"**Effects on {METRIC_NAMES[metric]}**, against {plain(first.label)}"
    return Table(f"effects-{metric.replace('_', '-')}", caption, columns, rows, data)


def shown_models(results: Results, predictions: Mapping[str, Sequence[Predictions]]) -> list[Trial]:
    """The trials whose models are shown class by class, that with the highest validation accuracy last.

    Args:
        results: the runs.
        predictions: by a trial's label, those of its runs.
    """
    digest = results.trials[0].digest
    there = [trial for trial in results.trials if trial.label in predictions and trial.digest == digest]
    if not there:
        return []
    best = max(there, key=lambda trial: _mean(trial, "val_accuracy"))
    others = [trial for trial in there if trial is not best]
    return [*(others if len(there) <= MOST_MODELS else others[:1]), best]
