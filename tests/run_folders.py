"""Run folders as training leaves them, made in milliseconds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.published import CIFAR100 as CIFAR100_SET
from fastcifar.data.published import CIFAR100_SUPERCLASSES
from fastcifar.presets import load_preset
from fastcifar.run.folder import RunFolder
from fastcifar.run.names import EPOCH_KEYS, METRICS_JSONL

CIFAR100 = str(CIFAR100_SET.digest)
COMMAND = ("fastcifar", "train", "--data", "/home/somebody/data/cifar100.npz")


def make_run(
    path: Path,
    preset: str,
    /,
    seed: int = 0,
    *,
    digest: str = CIFAR100,
    epochs_done: int | None = None,
    finished: bool = True,
    labels: Sequence[int] = (),
    command: Sequence[str] = COMMAND,
    summary: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Makes a run of `preset` with `settings`, finished by default. With `labels`, three in four predictions are right.

    The values of `summary` replace made-up ones. The accuracies of the last epoch are the report's, plus seed / 1000.
    """
    config = load_preset(preset).model_copy(
        update={"device": "cpu", "engine": "fused", "precision": "bf16", "seed": seed, "data": "gone.npz", **settings}
    )
    run = RunFolder.create(config, path, command, digest)
    last = config.epochs if epochs_done is None else epochs_done
    records = [record(epoch, config.epochs, seed) for epoch in range(1, last + 1)]
    (path / METRICS_JSONL).write_text("".join(json.dumps(line) + "\n" for line in records))  # at once: quicker
    if finished and last == config.epochs:
        end = records[-1]
        result: dict[str, Any] = {key: end[key] for key in EPOCH_KEYS[2:6]}
        result |= {"epochs": last, "test_loss": 2.0, "test_accuracy": 0.4 + seed / 1000, "parameters": 3_309_476}
        result |= {"train_seconds": end["train_seconds"], "compile_seconds": 0.5, "process_seconds": 1.5 * last}
        if labels:
            arrays = predictions(labels, seed)
            run.write_predictions(arrays)
            result["test_accuracy"] = float((arrays["labels"] == arrays["predicted"]).mean())
        run.write_summary(result | (summary or {}))
    run.close()
    return path


def without_digests(path: Path) -> None:
    """Makes the run in `path` one of an earlier version, which knew no digest of the settings."""
    facts = json.loads((path / "environment.json").read_text())
    for name in ("config_sha256", "crc32"):
        del facts[name]
    (path / "environment.json").write_text(json.dumps(facts))
    pointer = json.loads((path / "checkpoint.json").read_text())
    for name in ("config.toml", "environment.json"):
        del pointer["files"][name]
    (path / "checkpoint.json").write_text(json.dumps(pointer | {"format": 1}))


def record(epoch: int, epochs: int, seed: int) -> dict[str, Any]:
    progress = epoch / epochs
    values = (
        epoch, 0.05, 4.6 * math.exp(-2 * progress), 0.5 * progress, 4.5 * math.exp(-1.5 * progress) + seed / 100,
        0.45 * progress + seed / 1000, 2000.0, 1.0 * epoch,
    )  # fmt: skip
    return dict(zip(EPOCH_KEYS, values, strict=True))


def predictions(labels: Sequence[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Predictions that name the next class for every fourth image."""
    true = np.asarray(labels)
    wrong = (np.arange(len(true)) + seed) % 4 == 0
    predicted = np.where(wrong, (true + 1) % (true.max() + 1), true)
    confidence = np.random.default_rng(seed).uniform(0.3, 0.99, len(true))
    return {
        "labels": true,
        "predicted": predicted,
        "confidence": confidence.astype(np.float32),
        "label_probability": np.where(wrong, 1 - confidence, confidence).astype(np.float32),
    }


def fake_cifar100() -> Dataset:
    """Grey images with CIFAR-100's class names and digest: 12,000 training images and 500 test images."""

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int64) % 100
        images = np.broadcast_to((labels * 2).astype(np.uint8)[:, None, None, None], (count, 32, 32, 3))
        return Split(np.ascontiguousarray(images), labels)

    names = CIFAR100_SET.class_names
    above = {name: group for group, members in CIFAR100_SUPERCLASSES.items() for name in members.split()}
    groups = tuple(sorted(CIFAR100_SUPERCLASSES))
    of = tuple(groups.index(above[name]) for name in names)
    return Dataset("cifar100", split(12_000), split(500), names, groups, of, CIFAR100)
