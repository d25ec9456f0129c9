"""What is done to a command before it starts: signals at a step, kills at a time, savers that are wrong on purpose.

A campaign that does not catch the wrong savers proves nothing of the right one.
"""

import os
import signal
from collections.abc import Mapping
from typing import Any

from fastcifar import files, trainer
from fastcifar.run import checkpoint
from fastcifar.run.encoding import described, to_json


def nothing() -> None:
    """Leaves the program as it is."""


def stop_at(step: int, number: int) -> None:
    """Sends the process a signal when it has taken so many steps."""
    images, taken = trainer.Display.images, 0

    def count(self: trainer.Display, count: int) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), number)
        images(self, count)

    trainer.Display.images = count  # type: ignore[method-assign]


def die_after(seconds: float) -> None:
    """Ends the process by a signal that nobody catches."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def in_place() -> None:
    """Writes each checkpoint over the one before it."""

    def save(self: checkpoint.Checkpoint, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        folder = self._folder / "checkpoint-1"
        folder.mkdir(exist_ok=True)
        contents = {
            "tensors.safetensors": checkpoint._to_safetensors(tensors),
            "state.json": to_json({"tensors": list(tensors), "state": dict(state)}),
        }
        digests = {name: described(content) for name, content in contents.items()} | dict(self._settings)
        pointer = {"format": 2, "run_id": self._run_id, "folder": folder.name, "files": digests}
        for name, content in contents.items():
            files.write(folder / name, content)
        files.write(self._folder / "checkpoint.json", to_json(pointer))

    checkpoint.Checkpoint.save = save  # type: ignore[method-assign]


def unsynced() -> None:
    """Forces nothing to disk: a kill does no harm then, but a power cut does."""
    os.fsync = lambda descriptor: None
