"""Test accuracy of every trial, and what the models get wrong: superclasses, classes, pairs of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import Dataset
from fastcifar.presets import TRIALS
from fastcifar.report import figures
from fastcifar.report.classes import Classes
from fastcifar.report.document import Block, Details, Figure, Heading, Panel, Paragraph, Table
from fastcifar.report.drawing import colour_of
from fastcifar.report.predictions import Predictions, confused_pairs, superclass_accuracy, taken_for
from fastcifar.report.result_tables import overview_table
from fastcifar.report.results import Results, Trial, published_span
from fastcifar.report.wording import words

NUM_PAIRS = 8

PICTURES_A_ROW = 5

MOST_LABELS = 40  # along a side of the confusion matrix


def accuracy_blocks(results: Results) -> list[Block]:
    rows = [
        figures.Row(
            trial.label,
            colour_of(trial.name),
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


def error_blocks(
    trials: Sequence[Trial], dataset: Dataset | None, predictions: Mapping[str, list[Predictions]]
) -> list[Block]:
    focus = _focus(trials, predictions)
    runs = predictions[focus.label]
    num_classes = 1 + max(int(max(run.labels.max(), run.predicted.max())) for run in runs)
    classes = Classes(focus, dataset, num_classes)
    colour = colour_of(focus.name)
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
