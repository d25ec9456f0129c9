"""Test accuracy of every trial, and what the models get wrong: superclasses, classes, pairs of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.dataset import Dataset
from fastcifar.presets import TRIALS
from fastcifar.report import figures
from fastcifar.report.classes import Classes
from fastcifar.report.document import NOTHING, Block, Details, Figure, Heading, Panel, Paragraph, Table
from fastcifar.report.drawing import colour_of
from fastcifar.report.markup import plain
from fastcifar.report.predictions import Predictions, confused_pairs, superclass_accuracy, taken_for
from fastcifar.report.result_tables import overview_table
from fastcifar.report.results import Results, Trial, published_span
from fastcifar.report.wording import label, named, words

NUM_PAIRS = 8
PICTURES_A_ROW = 5
MOST_LABELS = 40
"""Along a side of the confusion matrix."""
MOST_CLASSES = 2000
"""Of a confusion matrix: with more, it would not fit into memory or on a page."""
MOST_BARS = 400
"""Of all drawings of accuracy by class together."""
MOST_EMPTY = 100
"""Classes without test images that have a row of their own in the table."""


# ---- accuracy ----


def accuracy_blocks(results: Results) -> list[Block]:
    """Test accuracy of every trial, drawn and as a table."""
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


# ---- errors ----


def error_blocks(
    trials: Sequence[Trial],
    dataset: Dataset | None,
    predictions: Mapping[str, list[Predictions]],
    focus: Trial | None = None,
) -> list[Block]:
    """What the models get wrong.

    Args:
        trials: of one data set, each with predictions.
        dataset: its images, if they are at hand.
        predictions: by a trial's label, those of its runs.
        focus: the trial that the figures show: that with the highest validation accuracy. None for the report's rule.
    """
    why, told = "the highest mean validation accuracy", ", ".join(plain(trial.label) for trial in trials)
    if focus is None:
        focus, told = _focus(trials, predictions), "every trial"
        why = "of the trials with most seeds the last in the report's order, chosen without a look at its accuracy"
    runs = predictions[focus.label]
    classes = Classes.of(focus, dataset, [run for trial in trials for run in predictions[trial.label]])
    colour = colour_of(focus.name)
    blocks: list[Block] = [
        Paragraph(
            f"The figures of this chapter show **{plain(focus.label)}** (n = {len(runs)}): {why}. The tables have "
            f"{told}."
        )
    ]
    if classes.superclass_names:
        blocks += _superclass_blocks(trials, focus, classes, predictions, colour)
    blocks += _class_blocks(trials, focus, classes, predictions, colour)
    seen = classes.seen(runs)
    if len(seen) > MOST_CLASSES:
        text = f"There is no confusion matrix: {len(seen):,} classes are too many, {MOST_CLASSES:,} can be drawn."
        return [*blocks, Paragraph(text)]
    renumbered = [seen.renumbered(run) for run in runs]
    confusion = np.sum([run.confusion(len(seen)) for run in renumbered], axis=0)
    blocks.append(_confusion_figure(confusion, seen.numbers, classes, colour, focus))
    blocks += _pair_blocks(confusion, seen.numbers, runs, classes, dataset, focus)
    return blocks


def _focus(trials: Sequence[Trial], predictions: Mapping[str, list[Predictions]]) -> Trial:
    """Of the report's trials (of all, if there is none) those with the most runs, of these the last."""
    candidates = [trial for trial in trials if trial.label in TRIALS] or list(trials)
    most = max(len(predictions[trial.label]) for trial in candidates)
    return [trial for trial in candidates if len(predictions[trial.label]) == most][-1]


def _per_cent(share: float) -> str:
    """With one decimal; a dash for a class without test images."""
    return NOTHING if math.isnan(share) else f"{100 * share:.1f}"


def _or_none(share: float) -> float | None:
    return None if math.isnan(share) else share


def _best_first(means: NDArray[np.float64]) -> NDArray[np.intp]:
    """The places of the means that are there, the highest first."""
    order = np.argsort(-means, kind="stable")
    return order[~np.isnan(means[order])]


def _superclass_blocks(
    trials: Sequence[Trial],
    focus: Trial,
    classes: Classes,
    predictions: Mapping[str, list[Predictions]],
    colour: str,
) -> list[Block]:
    count = len(classes.superclass_names)
    both = {
        trial.label: [superclass_accuracy(run, classes.superclass_of, count) for run in predictions[trial.label]]
        for trial in trials
    }
    exact = np.stack([fine for fine, _ in both[focus.label]])
    above = np.stack([coarse for _, coarse in both[focus.label]]).mean(axis=0)
    means = exact.mean(axis=0)
    order = _best_first(means)
    told = figures.series({words(classes.superclass_names[i]): float(means[i]) for i in order})
    alt = f"Test accuracy of {focus.label} by superclass, best first: {told}"
    labels = [label(classes.superclass_names[i]) for i in order]
    drawing = figures.draw_class_bars("superclasses", labels, exact[:, order], colour, alt, dots=above[order])
    caption = (
        "**Accuracy by superclass.** Bars: the right class; diamonds: any class of the right superclass. "
        "Lines: from the lowest to the highest seed."
    )
    rows, data = [], []
    for i in [*order, *np.flatnonzero(np.isnan(means))]:
        by_trial = {name: float(np.mean([fine[i] for fine, _ in parts])) for name, parts in both.items()}
        cells = [_per_cent(value) for value in (*by_trial.values(), float(above[i]))]
        rows.append([named(classes.superclass_names[i]), *cells])
        for name, parts in both.items():
            fine_mean, coarse_mean = (_or_none(float(np.mean([part[k][i] for part in parts]))) for k in (0, 1))
            record = {"superclass": classes.superclass_names[i], "trial": name, "n": len(parts)}
            data.append(record | {"accuracy": fine_mean, "superclass_accuracy": coarse_mean})
    columns = ["superclass", *map(plain, both), f"{plain(focus.label)}, any class of it"]
    sizes = set(np.bincount(classes.superclass_of).tolist())
    table = Table(
        "superclasses",
        "**Test accuracy by superclass**, %, means over seeds: the right class; last column: any "
        + ("of its five classes" if sizes == {5} else "class of it"),
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
    by_trial = {
        trial.label: np.stack([run.class_accuracy(count) for run in predictions[trial.label]]) for trial in trials
    }
    values = by_trial[focus.label]
    means = values.mean(axis=0)
    order = _best_first(means)
    empty = np.flatnonzero(np.isnan(means))
    size = -(-len(order) // 4) if len(order) > 30 else len(order)
    panels = []
    for start in range(0, len(order) if len(order) <= MOST_BARS else 0, size):
        part = order[start : start + size]
        labels = [label(classes.names[i]) for i in part]
        told = figures.series({words(classes.names[i]): float(means[i]) for i in part})
        alt = f"Test accuracy of {focus.label}, classes {start + 1} to {start + len(part)} from the best: {told}"
        panels.append(figures.draw_class_bars(f"classes-{start // size + 1}", labels, values[:, part], colour, alt))
    rows, data = [], []
    for i in [*order, *(empty if len(empty) <= MOST_EMPTY else [])]:
        shares = {name: float(accuracies[:, i].mean()) for name, accuracies in by_trial.items()}
        rows.append([named(classes.names[i]), *map(_per_cent, shares.values())])
        data += [
            {"class": classes.names[i], "class_number": int(i), "trial": name, "n": len(by_trial[name])}
            | {"accuracy": _or_none(share)}
            for name, share in shares.items()
        ]
    left_out = ""
    if len(empty):
        what = "class has" if len(empty) == 1 else "classes have"
        left_out = f". {len(empty):,} {what} no test images" + ", and no row" * (len(empty) > MOST_EMPTY)
    table = Table(
        "classes",
        f"**Test accuracy by class**, %, means over seeds{left_out}",
        ["class", *map(plain, by_trial)],
        rows,
        data,
        stacked=False,
    )
    caption = "**Accuracy by class**, best first. Lines: from the lowest to the highest seed."
    drawn: Block = Figure("classes", caption, panels)
    if not panels:
        drawn = Paragraph(f"Accuracy by class is not drawn: {len(order):,} classes are too many for a page.")
    return [Heading(3, "By class", "classes"), drawn, Details("The same as a table, for every trial", [table])]


def _confusion_figure(
    confusion: NDArray[np.int64], numbers: NDArray[np.int64], classes: Classes, colour: str, focus: Trial
) -> Figure:
    """`confusion` [K, K] is that of the classes `numbers` [K]."""
    above = np.asarray(classes.superclass_of)[numbers] if classes.superclass_of else np.arange(len(numbers))
    order = np.argsort(above, kind="stable")
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    if classes.superclass_names:
        sizes = np.bincount(above, minlength=len(classes.superclass_names))
        there = zip(classes.superclass_names, sizes, strict=True)
        blocks = [(label(name), int(size)) for name, size in there if size]
        inside = np.equal.outer(above, above)
        wrong = confusion - np.diag(np.diag(confusion))
        within = wrong[inside].sum() / max(int(wrong.sum()), 1)
        told = f" {100 * within:.0f} % of all errors stay within the superclass."
        rows = "Classes are grouped by superclass."
    else:
        blocks, told, rows = [(label(classes.names[i]), 1) for i in numbers], "", ""
        if len(blocks) > MOST_LABELS:
            blocks, rows = [("", len(blocks))], "Classes are in order of name."
    alt = f"Confusion matrix of {focus.label} over {len(numbers)} classes. {rows}{told}"
    caption = (
        f"**Confusion matrix** of {plain(focus.label)}, share of each class's test images over {_runs(focus.n)}; "
        f"the depth of colour goes with its square root. {rows}{told}"
    )
    drawing = figures.draw_confusion("confusion", share[np.ix_(order, order)], blocks, colour, alt)
    return Figure("confusion", caption, [drawing])


def _runs(count: int) -> str:
    return f"{count} run" + ("s" if count != 1 else "")


def _pair_blocks(
    confusion: NDArray[np.int64],
    numbers: NDArray[np.int64],
    runs: Sequence[Predictions],
    classes: Classes,
    dataset: Dataset | None,
    focus: Trial,
) -> list[Block]:
    """`confusion` [K, K] is that of the classes `numbers` [K]."""
    pairs = confused_pairs(confusion, NUM_PAIRS)
    if not pairs:
        return [Paragraph(f"No test image was given a wrong class by {plain(focus.label)}.")]
    rows, data, panels = [], [], []
    for place, pair in enumerate(pairs, 1):
        i, j = int(numbers[pair.first]), int(numbers[pair.second])
        there, back = _share(confusion, pair.first, pair.second), _share(confusion, pair.second, pair.first)
        cells = [_per_cent(value) for value in (pair.share, there, back)]
        rows.append([f"{named(classes.names[i])} and {named(classes.names[j])}", *cells])
        record = {"first": classes.names[i], "second": classes.names[j], "share": pair.share}
        data.append(record | {"first_as_second": _or_none(there), "second_as_first": _or_none(back)})
        if dataset is not None:
            panels += _pair_panel(place, runs, i, j, classes, dataset)
    columns = ["pair", "taken for each other, %", "first taken for second, %", "second taken for first, %"]
    caption = f"**Most confused pairs** of {plain(focus.label)}, in % of their test images over {_runs(len(runs))}"
    blocks: list[Block] = [Heading(3, "Most confused pairs", "pairs"), Table("pairs", caption, columns, rows, data)]
    if (places := runs[0].places) is not None:
        numbered = [(int(numbers[pair.first]), int(numbers[pair.second])) for pair in pairs]
        table = _pair_images(numbered, runs, classes, places)
        blocks.append(Details("The images of these pairs, by their places in the data", [table]))
    if panels:
        caption = (
            "**The pairs in pictures**: test images given the other class, first those that most seeds get wrong, then "
            "by confidence."
        )
        blocks.append(Figure("pairs", caption, panels))
    else:
        blocks.append(Paragraph("The pictures of the pairs are left out: the images were not at hand."))
    return blocks


def _pair_images(
    pairs: Sequence[tuple[int, int]], runs: Sequence[Predictions], classes: Classes, places: NDArray[Any]
) -> Table:
    """The images of the most confused pairs that were given the other class, in the order of their pictures."""
    rows, data = [], []
    for true, predicted in [turned for i, j in pairs for turned in ((i, j), (j, i))]:
        for image in taken_for(runs, true, predicted, PICTURES_A_ROW):
            wrong = [run for run in runs if run.predicted[image] == predicted]
            confidence = float(np.mean([run.confidence[image] for run in wrong]))
            place, names = places[image].item(), (classes.names[true], classes.names[predicted])
            rows.append([plain(str(place)), *map(named, names), f"{len(wrong)} of {len(runs)}", _per_cent(confidence)])
            record = {"place": place, "class": names[0], "taken_for": names[1], "class_number": true}
            data.append(record | {"taken_for_number": predicted, "runs": len(wrong), "confidence": confidence})
    columns = ["place", "class", "taken for", "runs", "mean confidence, %"]
    caption = (
        "**Images of the most confused pairs**. Place: the number of the image among the test images of the data set's "
        "file, counted from 0, or its file"
    )
    return Table("pair-images", caption, columns, rows, data, stacked=False)


def _share(confusion: NDArray[np.int64], label: int, predicted: int) -> float:
    """The share of a class's test images that is given another class; NaN where the class has none."""
    images = int(confusion[label].sum())
    return int(confusion[label, predicted]) / images if images else math.nan


def _pair_panel(
    place: int, runs: Sequence[Predictions], i: int, j: int, classes: Classes, dataset: Dataset
) -> list[Panel]:
    rows, labels, side = [], [], dataset.test.images.shape[1]
    for true, predicted in ((i, j), (j, i)):
        found = taken_for(runs, true, predicted, PICTURES_A_ROW)
        if not found:
            continue
        pictures = np.zeros((PICTURES_A_ROW, side, side, 4), np.uint8)
        pictures[: len(found), ..., :3], pictures[: len(found), ..., 3] = dataset.test.images[found], 255
        rows.append(pictures)
        labels.append(f"{label(classes.names[true])},\ntaken for\n{label(classes.names[predicted])}")
    alt = f"Pictures: {'; '.join(text.replace(chr(10), ' ') for text in labels)}"
    return [figures.draw_sheet(f"pair-{place}", np.stack(rows), labels, alt)]
