"""Whether the models are right as often as they are sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastcifar.report import figures
from fastcifar.report.document import Block, Figure, Table
from fastcifar.report.drawing import colour_of
from fastcifar.report.markup import plain
from fastcifar.report.predictions import NUM_BINS, Predictions
from fastcifar.report.results import Trial
from fastcifar.report.wording import file_name, label, mean_and_sd, span
from fastcifar.stats import describe


def calibration_blocks(trials: Sequence[Trial], predictions: Mapping[str, list[Predictions]]) -> list[Block]:
    panels, rows, data = [], [], []
    names: list[str] = []
    for trial in trials:
        runs = predictions[trial.label]
        errors = describe([run.reliability().expected_calibration_error for run in runs]).within(0, 1)
        confidence = describe([float(run.confidence.mean()) for run in runs])
        accuracy = describe([float(run.correct.mean()) for run in runs])
        gap = confidence.mean - accuracy.mean
        leaning = "too sure" if gap > 0 else "not sure enough"
        alt = (
            f"Reliability diagram of {trial.label}: expected calibration error {100 * errors.mean:.2f} %, "
            f"mean confidence {100 * confidence.mean:.2f} %, accuracy {100 * accuracy.mean:.2f} %"
        )
        name = f"calibration-{file_name(trial.label, names)}"
        names.append(name.removeprefix("calibration-"))
        title = f"{label(trial.label, 24)}, ECE {100 * errors.mean:.1f} %"
        colour = colour_of(trial.name)
        panels.append(figures.draw_reliability(name, title, Predictions.pooled(runs).reliability(), colour, alt))
        loss = trial.sample("test_loss")
        rows.append(
            [
                plain(trial.label),
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
