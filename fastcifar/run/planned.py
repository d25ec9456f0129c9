"""A run that somebody wants, and what has become of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["finished", "cut", "failed", "pruned", "missing"]
"""`cut`: begun, and not finished (it may be running); `failed`: it ended with an error; `pruned`: a search gave it up;
`missing`: nothing on disk."""


@dataclass(frozen=True)
class PlannedRun:
    """One run that a study wants, finished or not.

    Attributes:
        trial: the name of the study's trial: a preset's, or one of the user's own.
        seed: the run's seed.
        path: its run folder, which exists unless `state` is `missing` (and then may be half made).
        epochs: how many it is to have.
        state: see `State`.
        epochs_done: how many lines its metrics have.
        reason: why it failed or was given up, in one line; empty otherwise.
    """

    trial: str
    seed: int
    path: Path
    epochs: int
    state: State = "missing"
    epochs_done: int = 0
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it is not to be trained any more."""
        return self.state in ("finished", "pruned")

    @property
    def name(self) -> str:
        """`final-s0`: the name of its run folder and, with `.log`, of its log."""
        return f"{self.trial}-s{self.seed}"
