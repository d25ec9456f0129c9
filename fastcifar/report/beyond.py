"""The chapters beyond the report: every trial's test accuracy, what the models confuse, what runs cost, and how to
reproduce each number."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import procedural
from fastcifar.data.dataset import Dataset
from fastcifar.data.published import CIFAR100, CIFAR100_SUPERCLASSES
from fastcifar.report import figures
from fastcifar.report.chapters import (
    curves_figure,
    mean_and_sd,
    overview_table,
    span,
    words,
)
from fastcifar.report.document import NOTHING, Block, Details, Figure, Heading, Panel, Paragraph, Table
from fastcifar.report.predictions import NUM_BINS, Predictions, confused_pairs, superclass_accuracy, taken_for
from fastcifar.report.results import Results, Run, Trial, published_span
from fastcifar.stats import describe
from fastcifar.ui.display import format_seconds

NUM_PAIRS = 8
PICTURES_A_ROW = 5
MOST_LABELS = 40  # along a side of the confusion matrix


class Classes:
    """What the labels mean, known without the images for the data sets whose content is known.

    Attributes:
        names: of the classes; numbers where nobody says them.
        superclass_names, superclass_of: empty where there are none.
    """

    def __init__(self, trial: Trial, dataset: Dataset | None, num_classes: int) -> None:
        self.superclass_names: tuple[str, ...] = ()
        self.superclass_of: tuple[int, ...] = ()
        if dataset is not None:
            self.names = dataset.class_names
            self.superclass_names, self.superclass_of = dataset.superclass_names, dataset.superclass_of
        elif trial.is_cifar100:
            self.names = CIFAR100.class_names
            above = {name: group for group, names in CIFAR100_SUPERCLASSES.items() for name in names.split()}
            self.superclass_names = tuple(sorted(CIFAR100_SUPERCLASSES))
            self.superclass_of = tuple(self.superclass_names.index(above[name]) for name in self.names)
        elif trial.digest == procedural.DIGEST:
            self.names = procedural.CLASS_NAMES
            self.superclass_names, self.superclass_of = procedural.SUPERCLASS_NAMES, procedural.SUPERCLASS_OF
        else:
            self.names = tuple(f"class {i}" for i in range(num_classes))


def beyond_chapters(
    results: Results,
    dataset: Dataset | None,
    predictions: Mapping[str, list[Predictions]],
    problems: Mapping[str, str],
    command: str,
) -> list[Block]:
    """`predictions` by trial's label; `problems` by run, where there are none; `command` makes this page."""
    blocks: list[Block] = [Heading(2, "Test accuracy of every trial", "test-accuracy"), *_accuracy_blocks(results)]
    blocks += [Heading(2, "What the models get wrong", "errors")]
    if problems:
        told = "; ".join(f"{run}: {shortened(problem)}" for run, problem in problems.items())
        blocks.append(Paragraph(f"Without predictions of single images, and not in this chapter: {told}.", "warning"))
    by_trial = {trial.label: trial for trial in results.trials}
    # One data set a page: another's classes are not comparable.
    digest = results.trials[0].digest
    trials = [trial for label, trial in by_trial.items() if label in predictions and trial.digest == digest]
    if trials:
        blocks += _error_blocks(trials, dataset, predictions)
        blocks += [Heading(2, "Calibration", "calibration"), *_calibration_blocks(trials, predictions)]
    else:
        blocks.append(Paragraph("No run of this page has predictions of single images."))
    others = [trial for trial in results.trials if trial.label not in TRIALS]
    if others:
        blocks.append(Heading(2, "Trials that are not the report's", "other-trials"))
        for i, trial in enumerate(others, 1):
            changes = f" ({', '.join(trial.changes)})" if trial.changes and trial.label == trial.name else ""
            blocks.append(curves_figure(None, f"other-{i}", f"{trial.label}{changes}: loss and accuracy", [trial]))
    blocks += [Heading(2, "Time, speed and energy", "cost"), *_cost_blocks(results)]
    blocks += [Heading(2, "How to reproduce each number", "reproduce"), *_reproduce_blocks(results, command)]
    return blocks


# ---- accuracy ----


def _accuracy_blocks(results: Results) -> list[Block]:
    rows = [
        figures.Row(
            trial.label,
            figures.colour_of(trial.name),
            sample,
            published_span(trial, "test_accuracy") if trial.is_comparable else None,
        )
        for trial in results.trials
        if (sample := trial.sample("test_accuracy"))
    ]
    blocks: list[Block] = []
    if rows:
        told = figures.series({row.label: row.sample.mean for row in rows})
        alt = f"Test accuracy by trial, means over seeds: {told}"
        drawing = figures.draw_dots("test-accuracy", rows, "test accuracy, %", alt)
        grey = " Grey: the range of the report and the public reproductions, where they name one." if any(
            row.published for row in rows
        ) else ""  # fmt: skip
        caption = f"**Test accuracy.** A dot a seed, a diamond the mean, a line its 95 % interval.{grey}"
        blocks.append(Figure("test-accuracy", caption, [drawing]))
    return [*blocks, overview_table(results)]


# ---- errors ----


def _error_blocks(
    trials: Sequence[Trial], dataset: Dataset | None, predictions: Mapping[str, list[Predictions]]
) -> list[Block]:
    focus = _focus(trials, predictions)
    runs = predictions[focus.label]
    num_classes = 1 + max(int(max(run.labels.max(), run.predicted.max())) for run in runs)
    classes = Classes(focus, dataset, num_classes)
    colour = figures.colour_of(focus.name)
    confusion = np.sum([run.confusion(len(classes.names)) for run in runs], axis=0)
    blocks: list[Block] = [
        Paragraph(
            f"The figures of this chapter show **{focus.label}** (n = {len(runs)}): of the trials with most seeds "
            "the last in the report's order, chosen without a look at its accuracy. The tables have every trial."
        )
    ]
    if classes.superclass_names:
        blocks += _superclass_blocks(trials, focus, classes, predictions, colour)
    blocks += _class_blocks(trials, focus, classes, predictions, colour)
    blocks.append(_confusion_figure(confusion, classes, colour, focus))
    blocks += _pair_blocks(confusion, runs, classes, dataset, focus)
    return blocks


def _focus(trials: Sequence[Trial], predictions: Mapping[str, list[Predictions]]) -> Trial:
    """Of the report's trials (of all, if there is none) those with the most runs, of these the last."""
    candidates = [trial for trial in trials if trial.label in TRIALS] or list(trials)
    most = max(len(predictions[trial.label]) for trial in candidates)
    return [trial for trial in candidates if len(predictions[trial.label]) == most][-1]


def _superclass_blocks(
    trials: Sequence[Trial],
    focus: Trial,
    classes: Classes,
    predictions: Mapping[str, list[Predictions]],
    colour: str,
) -> list[Block]:
    names = [words(name) for name in classes.superclass_names]
    count = len(names)
    both = {
        trial.label: [superclass_accuracy(run, classes.superclass_of, count) for run in predictions[trial.label]]
        for trial in trials
    }
    exact = np.stack([fine for fine, _ in both[focus.label]])
    above = np.stack([coarse for _, coarse in both[focus.label]]).mean(axis=0)
    order = np.argsort(-exact.mean(axis=0), kind="stable")
    told = figures.series({names[i]: float(exact.mean(axis=0)[i]) for i in order})
    alt = f"Test accuracy of {focus.label} by superclass, best first: {told}"
    labels = [names[i] for i in order]
    drawing = figures.draw_class_bars("superclasses", labels, exact[:, order], colour, alt, dots=above[order])
    caption = (
        "**Accuracy by superclass.** Bars: the right class; diamonds: any class of the right superclass. "
        "Lines: from the lowest to the highest seed."
    )
    rows, data = [], []
    for i in order:
        means = {label: float(np.mean([fine[i] for fine, _ in parts])) for label, parts in both.items()}
        rows.append([names[i], *(f"{100 * value:.1f}" for value in means.values()), f"{100 * above[i]:.1f}"])
        for label, parts in both.items():
            fine_mean, coarse_mean = (float(np.mean([part[k][i] for part in parts])) for k in (0, 1))
            record = {"superclass": classes.superclass_names[i], "trial": label, "n": len(parts)}
            data.append(record | {"accuracy": fine_mean, "superclass_accuracy": coarse_mean})
    columns = ["superclass", *both, f"{focus.label}, any class of it"]
    table = Table(
        "superclasses",
        "**Test accuracy by superclass**, %, means over seeds: the right class; last column: any of its five classes"
        if len(set(np.bincount(classes.superclass_of))) == 1 and np.bincount(classes.superclass_of)[0] == 5
        else "**Test accuracy by superclass**, %, means over seeds: the right class; last column: any class of it",
        columns,
        rows,
        data,
        stacked=False,
    )
    return [
        Heading(3, "By superclass", "superclasses"),
        Figure("superclasses", caption, [drawing]),
        Details("The same as a table, for every trial", [table]),
    ]


def _class_blocks(
    trials: Sequence[Trial],
    focus: Trial,
    classes: Classes,
    predictions: Mapping[str, list[Predictions]],
    colour: str,
) -> list[Block]:
    count = len(classes.names)
    names = [words(name) for name in classes.names]
    by_trial = {
        trial.label: np.stack([run.class_accuracy(count) for run in predictions[trial.label]]) for trial in trials
    }
    values = np.nan_to_num(by_trial[focus.label])
    order = np.argsort(-values.mean(axis=0), kind="stable")
    size = -(-count // 4) if count > 30 else count
    panels = []
    for start in range(0, count, size):
        part = order[start : start + size]
        labels = [names[i] for i in part]
        told = figures.series({names[i]: float(values.mean(axis=0)[i]) for i in part})
        alt = f"Test accuracy of {focus.label}, classes {start + 1} to {start + len(part)} from the best: {told}"
        panels.append(figures.draw_class_bars(f"classes-{start // size + 1}", labels, values[:, part], colour, alt))
    rows, data = [], []
    for i in order:
        means = {label: float(accuracies[:, i].mean()) for label, accuracies in by_trial.items()}
        rows.append([names[i], *(f"{100 * value:.1f}" for value in means.values())])
        data += [
            {"class": classes.names[i], "trial": label, "n": len(by_trial[label]), "accuracy": value}
            for label, value in means.items()
        ]
    table = Table(
        "classes",
        "**Test accuracy by class**, %, means over seeds",
        ["class", *by_trial],
        rows,
        data,
        stacked=False,
    )
    caption = "**Accuracy by class**, best first. Lines: from the lowest to the highest seed."
    return [
        Heading(3, "By class", "classes"),
        Figure("classes", caption, panels),
        Details("The same as a table, for every trial", [table]),
    ]


def _confusion_figure(confusion: NDArray[np.int64], classes: Classes, colour: str, focus: Trial) -> Figure:
    order = np.argsort(np.asarray(classes.superclass_of or range(len(classes.names))), kind="stable")
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    if classes.superclass_names:
        sizes = np.bincount(classes.superclass_of, minlength=len(classes.superclass_names))
        blocks = [(words(name), int(size)) for name, size in zip(classes.superclass_names, sizes, strict=True)]
        inside = np.equal.outer(np.asarray(classes.superclass_of), np.asarray(classes.superclass_of))
        wrong = confusion - np.diag(np.diag(confusion))
        within = wrong[inside].sum() / max(int(wrong.sum()), 1)
        told = f" {100 * within:.0f} % of all errors stay within the superclass."
        rows = "Classes are grouped by superclass."
    else:
        blocks, told, rows = [(words(name), 1) for name in classes.names], "", ""
        if len(blocks) > MOST_LABELS:
            blocks, rows = [("", len(blocks))], "Classes are in order of name."
    alt = f"Confusion matrix of {focus.label} over {len(classes.names)} classes. {rows}{told}"
    caption = (
        f"**Confusion matrix** of {focus.label}, share of each class's test images over {_runs(focus.n)}; "
        f"the depth of colour goes with its square root. {rows}{told}"
    )
    drawing = figures.draw_confusion("confusion", share[np.ix_(order, order)], blocks, colour, alt)
    return Figure("confusion", caption, [drawing])


def _runs(count: int) -> str:
    return f"{count} run" + ("s" if count != 1 else "")


def _pair_blocks(
    confusion: NDArray[np.int64],
    runs: Sequence[Predictions],
    classes: Classes,
    dataset: Dataset | None,
    focus: Trial,
) -> list[Block]:
    pairs = confused_pairs(confusion, NUM_PAIRS)
    if not pairs:
        return [Paragraph(f"No test image was given a wrong class by {focus.label}.")]
    names = [words(name) for name in classes.names]
    rows, data, panels = [], [], []
    for place, pair in enumerate(pairs, 1):
        i, j = pair.first, pair.second
        there, back = (confusion[a, b] / max(int(confusion[a].sum()), 1) for a, b in ((i, j), (j, i)))
        rows.append([f"{names[i]} and {names[j]}", *(f"{100 * value:.1f}" for value in (pair.share, there, back))])
        record = {"first": classes.names[i], "second": classes.names[j], "share": pair.share}
        data.append(record | {"first_as_second": there, "second_as_first": back})
        if dataset is not None:
            panels += _pair_panel(place, runs, i, j, names, dataset)
    columns = ["pair", "taken for each other, %", "first taken for second, %", "second taken for first, %"]
    caption = f"**Most confused pairs** of {focus.label}, in % of their test images over {_runs(len(runs))}"
    blocks: list[Block] = [Heading(3, "Most confused pairs", "pairs"), Table("pairs", caption, columns, rows, data)]
    if panels:
        caption = (
            "**The pairs in pictures**: test images given the other class, first those that most seeds get wrong, then "
            "by confidence."
        )
        blocks.append(Figure("pairs", caption, panels))
    else:
        blocks.append(Paragraph("The pictures of the pairs are left out: the images were not at hand."))
    return blocks


def _pair_panel(
    place: int, runs: Sequence[Predictions], i: int, j: int, names: Sequence[str], dataset: Dataset
) -> list[Panel]:
    rows, labels = [], []
    for label, predicted in ((i, j), (j, i)):
        found = taken_for(runs, label, predicted, PICTURES_A_ROW)
        if not found:
            continue
        pictures = np.zeros((PICTURES_A_ROW, 32, 32, 4), np.uint8)
        pictures[: len(found), ..., :3], pictures[: len(found), ..., 3] = dataset.test.images[found], 255
        rows.append(pictures)
        labels.append(f"{names[label]},\ntaken for\n{names[predicted]}")
    alt = f"Pictures: {'; '.join(label.replace(chr(10), ' ') for label in labels)}"
    return [figures.draw_sheet(f"pair-{place}", np.stack(rows), labels, alt)]


# ---- calibration ----


def _calibration_blocks(trials: Sequence[Trial], predictions: Mapping[str, list[Predictions]]) -> list[Block]:
    panels, rows, data = [], [], []
    for trial in trials:
        runs = predictions[trial.label]
        errors = describe([run.reliability().expected_calibration_error for run in runs])
        confidence = describe([float(run.confidence.mean()) for run in runs])
        accuracy = describe([float(run.correct.mean()) for run in runs])
        gap = confidence.mean - accuracy.mean
        leaning = "too sure" if gap > 0 else "not sure enough"
        alt = (
            f"Reliability diagram of {trial.label}: expected calibration error {100 * errors.mean:.2f} %, "
            f"mean confidence {100 * confidence.mean:.2f} %, accuracy {100 * accuracy.mean:.2f} %"
        )
        name = "calibration-" + re.sub(r"[^\w.-]+", "-", trial.label)
        title = f"{trial.label}, ECE {100 * errors.mean:.1f} %"
        colour = figures.colour_of(trial.name)
        panels.append(figures.draw_reliability(name, title, Predictions.pooled(runs).reliability(), colour, alt))
        loss = trial.sample("test_loss")
        rows.append(
            [
                trial.label,
                str(errors.n),
                mean_and_sd(errors, "accuracy"),
                span(errors.interval, "accuracy"),
                mean_and_sd(confidence, "accuracy"),
                mean_and_sd(accuracy, "accuracy"),
                mean_and_sd(loss, "loss"),
                f"{leaning} by {100 * abs(gap):.1f} points",
            ]
        )
        record = {"trial": trial.label, "n": errors.n, "ece": errors.mean, "ece_sd": errors.sd}
        record |= {"confidence": confidence.mean, "test_accuracy": accuracy.mean, "test_loss": loss and loss.mean}
        data.append(record)
    columns = ["trial", "n", "ECE", "95 % interval", "mean confidence", "test accuracy", "test loss", "on the whole"]
    caption = f"**Calibration** on the test images: expected calibration error over {NUM_BINS} equal bins of confidence"
    explained = (
        "**Reliability.** Accuracy against confidence (the highest softmax output), the images of all seeds together; "
        "on the dashed line a model is right as often as it is sure."
    )
    return [Figure("calibration", explained, panels), Table("calibration", caption, columns, rows, data)]


# ---- cost ----


def _cost_blocks(results: Results) -> list[Block]:
    rows, data = [], []
    for trial in results.trials:
        for run in trial.runs:
            seconds, process, warm = (run.value(key) for key in ("train_seconds", "process_seconds", "compile_seconds"))
            rate, joules = run.images_per_second, run.value("energy_joules")
            rows.append(
                [
                    f"{trial.label}, seed {run.config.seed}",
                    _clock(seconds),
                    _clock(process),
                    NOTHING if rate is None else f"{rate:,.0f}",
                    _energy(run, joules),
                    device_of(run),
                    f"{run.config.engine}, {run.config.precision}",
                    str(run.concurrent),
                ]
            )
            record: dict[str, object] = {"trial": trial.label, "seed": run.config.seed, "train_seconds": seconds}
            record |= {"compile_seconds": warm, "process_seconds": process, "images_per_second": rate}
            record |= {"energy_joules": joules, "energy_seconds": run.value("energy_seconds")}
            record |= {"device": device_of(run), "engine": run.config.engine, "precision": run.config.precision}
            data.append(record | {"runs_at_once": run.concurrent})
    columns = ["run", "training", "whole process", "images/s", "energy", "device", "engine", "at once"]
    caption = (
        "**Cost of each run**: the training clock (without evaluation and compilation), the process from its start, "
        "images a second of training. At once: how many runs of a study shared the machine (what else ran on it is not "
        "recorded)"
    )
    blocks: list[Block] = [Table("cost", caption, columns, rows, data)]
    if any(run.concurrent > 1 for run in results.runs):
        text = "Runs that shared the machine are slower than alone: their times and energies are those of that moment."
        blocks.append(Paragraph(text))
    if not any(run.value("energy_joules") is not None for run in results.runs):
        text = "Energy was not measured: it is read from an NVIDIA GPU while it trains, and no run here was on one."
        if any(str(run.environment.get("device", "")).startswith("cuda") for run in results.runs):
            text = (
                "Energy was not measured: the GPU or its driver does not tell it, or the runs are older than the meter."
            )
        blocks.append(Paragraph(text))
    return blocks


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)


def _energy(run: Run, joules: float | None) -> str:
    if joules is None:
        return "not measured"
    text = f"{joules / 1000:,.1f} kJ ({joules / 3600:,.1f} Wh)"
    covered, trained = run.value("energy_seconds"), run.value("train_seconds")
    if covered and trained and covered < 0.98 * trained:
        text += f" over {100 * covered / trained:.0f} % of training"
    return text + (" (from samples of the power)" if run.summary.get("energy_source") == "power samples" else "")


def device_of(run: Run) -> str:
    """The GPU's name, or the processor's with its threads."""
    gpu, cpu = run.environment.get("gpu"), run.environment.get("cpu")
    if isinstance(gpu, Mapping) and gpu.get("name"):
        return str(gpu["name"])
    model = str(cpu.get("model")) if isinstance(cpu, Mapping) else "CPU"
    threads = run.environment.get("threads")
    count = threads.get("torch") if isinstance(threads, Mapping) else None
    return model.replace("(R)", "").replace("(TM)", "") + (f", {count} threads" if count else "")


# ---- reproduction ----


def _reproduce_blocks(results: Results, command: str) -> list[Block]:
    rows, data = [], []
    for trial in results.trials:
        for run in trial.runs:
            facts = run.environment
            words_typed = [shortened(str(word)) for word in facts.get("command", [])]
            code = _commit(facts.get("source"))
            versions = f"Python {facts.get('python')}, torch {facts.get('torch')}, numpy {facts.get('numpy')}"
            rows.append(
                [
                    f"{trial.label}, seed {run.config.seed}",
                    f"`{shlex.join(words_typed)}`",
                    f"fastcifar {facts.get('fastcifar')}, {code}; {versions}",
                    f"{device_of(run)}; engine {run.config.engine}, {run.config.precision}",
                    str(facts.get("date", NOTHING))[:16].replace("T", " "),
                ]
            )
            record: dict[str, object] = {"trial": trial.label, "seed": run.config.seed}
            record |= {"command": shlex.join(words_typed), "fastcifar": facts.get("fastcifar"), "commit": code}
            record |= {key: facts.get(key) for key in ("python", "torch", "numpy", "platform", "date")}
            record |= {"device": device_of(run), "engine": run.config.engine, "precision": run.config.precision}
            data.append(record | {"dataset_digest": run.digest, "run_id": facts.get("run_id"), "folder": run.path.name})
    columns = ["run", "command", "commit and versions", "computed by", "started (UTC)"]
    digests = sorted({run.digest for run in results.runs})
    caption = "**Each run**: what was typed, and on what. Every mean above is over the runs of its trial"
    return [
        Paragraph(
            "The resolved settings of a run, all of them, are the `config.toml` of its run folder; `fastcifar train "
            "--config FOLDER/config.toml --out NEW` trains it again. `environment.json` beside it has the versions, "
            "device and environment variables. Folders in front of a file name are written as `.../`. The "
            f"content of the images has the digest {' or '.join(f'`{digest[:16]}`' for digest in digests)} (`fastcifar "
            "data info` prints it)."
        ),
        Table("runs", caption, columns, rows, data),
        Paragraph(f"This page: `{command}`."),
    ]


def _commit(source: object) -> str:
    if not isinstance(source, Mapping) or not source.get("commit"):
        return "commit not known (an installed package)"
    return f"commit {str(source['commit'])[:12]}" + (", with changes not committed" if source.get("dirty") else "")


def shortened(text: str) -> str:
    """`text` with .../ for the folders in front of a file's name, which mean nothing on another machine."""
    return re.sub(r"(?<![\w.:/-])(?:~|\.\.)?/(?:[^\s/:;,'\"]+/)+(?=[^\s/])", ".../", text)
