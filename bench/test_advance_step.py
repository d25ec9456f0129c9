"""The step's learning rate and the counters in one launch, beside PyTorch's two calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import DEVICE

from fastcifar import ops


@pytest.mark.parametrize("case", ["a run of 100,000 steps"])
def test_advance_step(race: Any, benchmark: Any, case: str) -> None:
    benchmark.group = "advance_step"
    counters, lr = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.zeros(1, device=DEVICE)
    lrs = torch.rand(100_000, device=DEVICE)

    def ours() -> None:
        ops.advance_step(counters, lrs, lr)

    def torchs() -> None:
        torch.index_select(lrs, 0, counters[1:].clamp_(max=len(lrs) - 1), out=lr)
        counters.add_(1)

    race(ours, {"torch": torchs}, 40, DEVICE)
