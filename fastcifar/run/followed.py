"""A run as all but the first of several processes see it: the first process writes its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.config import Config

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


class FollowedRun:
    """Takes what training writes to a `RunFolder`, and writes nothing. The folder may be on another machine.

    Args:
        path: the run folder, for messages.
        config: the settings.

    Attributes:
        id: empty; the first process knows the run's.
        records: the epochs that this process has seen.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config, self.id = path, config, ""
        self.records: list[dict[str, Any]] = []

    def append(self, record: Mapping[str, Any]) -> None:
        """Keeps an epoch's record."""
        self.records.append(dict(record))

    def has_checkpoint(self) -> bool:
        """False: there is none here."""
        return False

    def save_checkpoint(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def write_predictions(self, predictions: Mapping[str, NDArray[Any]]) -> None:
        """Writes nothing."""
