"""The model card: what an exported model is, where it comes from, how good it is and how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fastcifar
from fastcifar.checkpoint import Weights
from fastcifar.config import Config, groups
from fastcifar.exporting.formats import Format
from fastcifar.run import schema
from fastcifar.run.facts import best_epoch, device_model
from fastcifar.run.folder import RunFolder
from fastcifar.spelling import format_value


def card(
    run: RunFolder, images: schema.Images, fmt: Format, facts: Mapping[str, Any], weights: Weights, checked: str
) -> str:
    """The text of README.md, in Markdown with the front matter of Hugging Face's model cards.

    Args:
        run: the run.
        images: what its images and classes are.
        fmt: the format of the exported file.
        facts: what config.json holds.
        weights: which of the run's weights the model has, as for `checkpoint.chosen`.
        checked: how the file was compared with the run's model, in a sentence.
    """
    config, summary, environment = run.config, run.summary() or {}, run.environment
    size, channels = images.size, facts["channels"]
    superclasses = f" in {len(images.superclass_names)} superclasses" if images.superclass_names else ""
    measured = {split: summary.get(f"{split}_accuracy") for split in ("test", "val", "train")}
    which = ", a moving average of the weights" if config.ema_decay else ""
    if weights == "best" and (best := best_epoch(run.records)) is not None:
        measured = {"val": best["val_accuracy"]}  # the summary's are those of the last weights
        which += ", the one with the best validation accuracy"
    accuracies = [f"| {split} | {share:.2%} |" for split, share in measured.items() if share is not None]
    tested = "The test images were measured once, after the last epoch."
    if measured.get("test") is None:
        tested = "These weights were not measured on the test images."
    device = device_model(environment) or config.device
    colours = "red, green, blue" if channels == 3 else "grey"
    return f"""\
---
library_name: fastcifar
pipeline_tag: image-classification
tags: [mobilenet, image-classification, {fmt.file.rpartition(".")[2]}]
---

# MobileNetV1, width {config.width_mult:g}, on {images.name}

It classifies images of {size} x {size} pixels into {len(images.class_names)} classes{superclasses}. It was trained by
fastcifar {environment.get("fastcifar", fastcifar.__version__)}, and has {facts["parameters"]:,} parameters.

## Accuracy

{_table(accuracies)}

{tested} The model is of epoch {facts["epoch"]} of {config.epochs}{which}.

## Use

`images` is float32 [N, {channels}, {size}, {size}] from 0 to 1 ({colours}): bytes divided by 255. `logits` is float32
[N, {len(images.class_names)}]; their softmax is a probability for each of the `classes` in config.json.

```python
{fmt.usage}```

{checked}

## Training

{device}, torch {environment.get("torch", "?")}, images with the digest `{run.dataset_digest[:12]}`, run `{run.id}`.

| setting | value |
|---|---|
{_settings(config)}

## Limits

The model knows its {len(images.class_names)} classes alone: it names one of them for any picture. Nothing was measured
on other images than those of {images.name}. Its probabilities are not calibrated.
"""


def _table(accuracies: list[str]) -> str:
    if not accuracies:
        return "The run is not finished: no accuracy was recorded."
    return "\n".join(["| images | accuracy |", "|---|---|", *accuracies])


def _settings(config: Config) -> str:
    names = [name for group in ("data", "augmentation", "model", "optimisation") for name in groups()[group]]
    left_out = {"data", "mirror"}  # a path of the machine that trained it
    return "\n".join(f"| {name} | {format_value(getattr(config, name))} |" for name in names if name not in left_out)
