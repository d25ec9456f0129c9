"""What is said of a run in several places, found out in one: its speed, and what it ran on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def images_per_second(records: Iterable[Mapping[str, Any]]) -> float | None:
    """Training images a second over all epochs of a run, on the training clock.

    Args:
        records: the epochs, with the keys of `names.EPOCH_KEYS`.

    Returns:
        None where no time was measured.
    """
    images = before = 0.0
    for record in records:
        images += record["images_per_second"] * (record["train_seconds"] - before)
        before = record["train_seconds"]
    return images / before if before else None


def best_epoch(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record of the epoch with the highest validation accuracy, the first one where several are equal.

    Args:
        records: the epochs, with the keys of `names.EPOCH_KEYS`.

    Returns:
        None where no epoch was validated.
    """
    validated = [record for record in records if record["val_accuracy"] is not None]
    return max(validated, key=lambda record: float(record["val_accuracy"]), default=None)


def device_model(environment: Mapping[str, Any]) -> str | None:
    """The name of the GPU that a run was on, or that of the processor.

    Args:
        environment: as `environment.collect` gives it; anything may be missing.

    Returns:
        None where neither is known.
    """
    for part, key in (("gpu", "name"), ("cpu", "model")):
        facts = environment.get(part)
        if isinstance(facts, Mapping) and facts.get(key):
            return str(facts[key])
    return None
