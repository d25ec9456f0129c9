"""The chapter of the images: examples, shares of the classes, mean and deviation of the colours."""

from __future__ import annotations

import textwrap

import numpy as np

from fastcifar.data.dataset import Dataset, info
from fastcifar.data.published import CIFAR100
from fastcifar.report import course, figures
from fastcifar.report.document import NOTHING, Block, Figure, Heading, Paragraph, Table
from fastcifar.report.markup import plain
from fastcifar.report.results import Results
from fastcifar.report.wording import label, named, words


def data_chapter(results: Results, dataset: Dataset | None, problem: str) -> list[Block]:
    blocks: list[Block] = [Heading(2, "The images", "images")]
    first = results.trials[0]
    if dataset is None:
        text = (
            f"The images were not at hand when this page was made ({problem}): figures 1, 4 and 8 and table 1 are left "
            "out. `fastcifar report ... --data PATH` says where they are."
        )
        blocks.append(Paragraph(text, "warning"))
        return blocks
    config = first.config
    train, val = dataset.train_val(config.val_size, config.split_seed)
    blocks += [_samples_figure(dataset), _statistics_table(dataset, first.is_cifar100)]
    blocks.append(
        Paragraph(
            "The report calls its standard deviation that of each colour channel; its numbers are the mean of the "
            "images' own deviations, not the deviation over all pixels, and its column heads Blue and Green are "
            "swapped. Training here normalises with the report's numbers."
            if first.is_cifar100
            else "The images are not CIFAR-100: the report's numbers are beside ours for their place only."
        )
    )
    everywhere = np.concatenate([dataset.train.labels, dataset.test.labels])
    there = np.unique(everywhere)  # a class without any image has no share
    counts = np.bincount(train.labels, minlength=dataset.num_classes)[there]
    shares = counts / counts.sum()
    low, high = int(counts.argmin()), int(counts.argmax())
    least, most = (f"{counts[i]} images of {words(dataset.class_names[there[i]])}" for i in (low, high))
    alt = (
        f"Share of each of {len(there)} classes in the {len(train):,} training images: from "
        f"{100 * shares[low]:.2f} % ({least}) to {100 * shares[high]:.2f} % ({most})"
    )
    least, most = (f"{counts[i]} images of {named(dataset.class_names[there[i]])}" for i in (low, high))
    empty = dataset.num_classes - len(there)
    gaps = f" {empty:,} classes have a number and no image, and are left out." if empty else ""
    caption = (
        f"**Figure 4.** Proportion of each class in the training images after the split ({len(train):,} for training, "
        f"{len(val):,} for validation, seed {config.split_seed}, not stratified): from {least} to {most}; "
        f"{len(train) / len(there):g} would be even. The report shows a picture without numbers.{gaps}"
    )
    blocks.append(Figure("figure-04", caption, [figures.draw_class_shares("figure-04", shares, alt)]))
    return blocks


def _samples_figure(dataset: Dataset) -> Figure:
    """Figure 1: an image of each class, a row a superclass; without superclasses five images a class."""
    labels, images = dataset.train.labels, dataset.train.images
    if dataset.superclass_names:
        groups = [
            (name, [i for i, above in enumerate(dataset.superclass_of) if above == place][:5])
            for place, name in enumerate(dataset.superclass_names)
        ]
        rows = [
            (name, [int(at[0]) for i in members if len(at := np.flatnonzero(labels == i))]) for name, members in groups
        ]
        what = "the first training image of five classes of each superclass"
    else:
        first = np.unique(labels)[:20].tolist()
        rows = [(dataset.class_names[i], np.flatnonzero(labels == i)[:5].tolist()) for i in first]
        what = "the first training images of each class"
    rows = [(name, (members * 5)[:5]) for name, members in rows if members]
    half = -(-len(rows) // 2)
    panels = []
    for number, part in enumerate((rows[:half], rows[half:]), 1):
        if part:
            sheet = np.stack([images[members] for _, members in part])
            size = f"{images.shape[1]} by {images.shape[2]}"
            alt = f"Pictures of {size} pixels, a row each of {', '.join(words(name) for name, _ in part)}"
            labels_shown = [textwrap.fill(label(name), 21) for name, _ in part]
            panels.append(figures.draw_sheet(f"figure-01-{number}", sheet, labels_shown, alt))
    name = "CIFAR-100" if dataset.digest == CIFAR100.digest else f"the data set {plain(dataset.name)}"
    caption = f"**Figure 1.** Examples of {name}: {what}, in the data set's canonical order."
    return Figure("figure-01", caption, panels)


def _statistics_table(dataset: Dataset, is_cifar100: bool) -> Table:
    train = info(dataset)["train"]
    theirs = course.TABLE_1
    lines = [
        ("mean", "mean", train.mean, theirs["mean"]),
        ("std of an image, mean over the images", "image_std", train.image_std, theirs["std"]),
        ("std over all pixels", "std", train.std, None),
    ]
    rows, data = [], []
    for title, key, ours, report in lines:
        same = "no verdict"
        if report is None:
            same = "not in the report"
        elif is_cifar100:
            same = "same" if tuple(round(value, 4) for value in ours) == report else "differs"
        shown = NOTHING if report is None else " ".join(f"{value:.4f}" for value in report)
        rows.append([title, " ".join(f"{value:.4f}" for value in ours), shown, same])
        for channel, value in enumerate(ours):
            record = {"statistic": key, "channel": "red green blue".split()[channel], "ours": value}
            data.append(record | {"report": report[channel] if report else None, "verdict": same})
    columns = ["red, green, blue", "ours", "report", "verdict"]
    caption = (
        f"**Table 1.** Mean and standard deviation of each colour channel over the {train.count:,} training images"
    )
    return Table("table-01", caption, columns, rows, data)
