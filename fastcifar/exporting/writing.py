"""Exporting a run's model: made, read back, compared with the model on the run's own images, and only then written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastcifar import files
from fastcifar.checkpoint import Weights, load_model
from fastcifar.errors import ExportError, UsageError
from fastcifar.evaluation import images_of, same_images
from fastcifar.exporting.card import card
from fastcifar.exporting.formats import FORMATS, Classifier, Function, check_available
from fastcifar.model import count_parameters
from fastcifar.run.checkpoint import check_training_state
from fastcifar.run.encoding import to_json
from fastcifar.run.facts import best_epoch
from fastcifar.run.folder import RunFolder

IMAGES = 256
"""How many images the exported model is compared on."""

TOLERANCE = 1e-4
"""The largest difference of a logit that is rounding, as a share of the largest logit."""


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        path: the folder, with the model, config.json and README.md, the model card.
        file: the model in it.
        num_images: the number of images that it was compared on.
        difference: the largest difference of a logit from the run's model.
    """

    path: Path
    file: Path
    num_images: int
    difference: float


def export(
    run: RunFolder, format_name: str, out: Path | None = None, data: str | None = None, weights: Weights = "last"
) -> Export:
    """Exports a run's model with its normalisation.

    The model is compared with the run's on validation images, or on training images if the run has none: once all
    together, and once a single image.

    Args:
        run: the run folder.
        format_name: a key of `FORMATS`.
        out: the folder for the files, new or empty; None makes export/FORMAT in the run folder.
        data: where the run's images are now; None means where the run had them.
        weights: as for `checkpoint.chosen`.

    Returns:
        Where the model is, and how it was checked.

    Raises:
        UsageError: a package for the format is missing, or `out` holds something.
        ExportError: what was exported is another function than the run's model; nothing was written.
        CheckpointError: the checkpoint is missing or damaged, or the images are not the run's.
        DataError: the images cannot be found or read.
    """
    check_available(format_name)
    out = run.path / "export" / format_name if out is None else out
    _check_unused(out)
    fmt, config = FORMATS[format_name], run.config
    dataset = same_images(run, config.model_copy(update={"data": data or config.data}))
    images = images_of(run)
    model = load_model(run, weights)
    epoch = check_training_state(run.load_checkpoint()[1], run.path, config.epochs)[0] - 1
    if weights == "best" and (best := best_epoch(run.records)) is not None:
        epoch = best["epoch"]
    mean, std = config.mean[: config.channels], config.std[: config.channels]
    classifier = Classifier(model, mean, std).eval()
    train, val = dataset.train_val(config.val_size, config.split_seed)
    pixels = torch.from_numpy((val if len(val) else train).images[:IMAGES])
    samples = pixels.permute(0, 3, 1, 2)[:, : config.channels].contiguous().float() / 255

    facts = {
        "architecture": "MobileNetV1 (fastcifar)",
        "width_mult": config.width_mult,
        "parameters": count_parameters(model),
        "image_size": images.size,
        "channels": config.channels,
        "mean": list(mean),
        "std": list(std),
        "classes": images.class_names,
        "superclasses": [images.superclass(k) for k in range(len(images.class_names))] if images.superclass_of else [],
        "epoch": epoch,
        "run_id": run.id,
    }
    content = fmt.write(classifier, samples[:2], facts)
    difference = _compare(fmt.read(content, classifier), classifier, samples, f"{run.path}: the {format_name} file")
    split = "validation" if len(val) else "training"
    checked = (
        f"Before it was written, the file was read back and compared with the run's model on {len(samples)} {split} "
        f"images of the run: the largest difference of a logit was {difference:.1g}."
    )
    text = card(run, images, fmt, facts, weights, checked)
    with files.explained(out, len(content)):
        out.mkdir(parents=True, exist_ok=True)
    files.replace(out / "config.json", to_json(facts))
    files.replace(out / "README.md", text.encode())
    files.replace(out / fmt.file, content)
    return Export(out, out / fmt.file, len(samples), difference)


def _check_unused(out: Path) -> None:
    """Refuses a folder that holds something.

    Raises:
        UsageError: `out` is a file or not empty.
    """
    with files.explained(out, 0):
        if files.holds(out) and (not out.is_dir() or any(out.iterdir())):
            what = "is not empty" if out.is_dir() else "is a file"
            raise UsageError(f"{out} {what}, and nothing is ever overwritten: give a new or empty folder with --out")


@torch.no_grad()
def _compare(found: Function, expected: Callable[[Tensor], Tensor], images: Tensor, what: str) -> float:
    """The largest difference of a logit between two functions.

    Raises:
        ExportError: it is more than rounding.
    """
    worst = 0.0
    for part in (images, images[:1]):
        wanted, got = expected(part), found(part)
        if got.shape != wanted.shape:
            raise ExportError(f"{what} gives {list(got.shape)} where the model gives {list(wanted.shape)}; not written")
        difference, largest = float((got - wanted).abs().max()), float(wanted.abs().max())
        if not difference <= TOLERANCE * largest:  # also where it is not a number
            raise ExportError(
                f"{what} is not the run's model: on {len(part)} images a logit differs by {difference:.2g}, and only "
                f"{TOLERANCE * largest:.2g} is rounding. Nothing was written; please report it"
            )
        worst = max(worst, difference)
    return worst
