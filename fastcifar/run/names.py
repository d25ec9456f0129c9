"""The names of what lies in a run folder; `fastcifar.run.folder` says what each holds."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG, ENVIRONMENT, SUMMARY, POINTER, LOCK = (
    "config.toml", "environment.json", "summary.json", "checkpoint.json", ".lock",
)  # fmt: skip
METRICS_JSONL, METRICS_CSV, PREDICTIONS = "metrics.jsonl", "metrics.csv", "predictions.npz"
TENSORS, STATE = "tensors.safetensors", "state.json"

EPOCH_KEYS = (
    "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_second", "train_seconds",
)  # fmt: skip
"""What every line of the metrics holds, in this order. Accuracies go from 0 to 1, `train_seconds` is the training clock
since epoch 1, and `val_*` are null where the epoch was not evaluated."""

ALWAYS_WRITTEN = (
    "preset", "data", "val_size", "split_seed", "mean", "std", "crop_padding", "flip", "mixup_alpha", "width_mult",
    "epochs", "batch_size", "lr", "momentum", "weight_decay", "seed", "device", "precision", "engine",
)  # fmt: skip
"""Settings that every version has written to config.toml. A file without one was cut, and a default is no answer."""


def advice(folder: Path) -> str:
    """What the message about a full disk ends with.

    Args:
        folder: the run folder. A run that has no settings there yet has nothing to go on with.
    """
    if os.path.isfile(folder / CONFIG):
        return "What was saved before is intact: make room, then continue with --resume."
    return "The run has not begun: make room, then give the command again."
