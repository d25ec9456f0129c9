"""The running statistics of the network's 27 BNs, updated in one pass, beside PyTorch's calls for lists of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import DEVICE
from torch import nn

from fastcifar import ops
from fastcifar.model import build_model

MOMENTUM = 0.1


@pytest.mark.parametrize("case", ["width 1.0"])
def test_update_statistics(race: Any, benchmark: Any, case: str) -> None:
    benchmark.group = "update_statistics"
    norms = [m for m in build_model(100, 1.0, 0).to(DEVICE).modules() if isinstance(m, nn.BatchNorm2d)]
    running_means, running_vars = ([getattr(m, f"running_{name}") for m in norms] for name in ("mean", "var"))
    means, variances = ([torch.rand_like(t) for t in running_means] for _ in range(2))
    counts = [2**17 - i for i in range(len(norms))]

    def ours() -> None:
        ops.update_statistics(running_means, running_vars, means, variances, counts, MOMENTUM)

    def foreach() -> None:
        unbiased = torch._foreach_mul(variances, [n / (n - 1) for n in counts])
        torch._foreach_lerp_([*running_means, *running_vars], [*means, *unbiased], MOMENTUM)

    race(ours, {"torch foreach": foreach}, 6 * sum(t.numel() * 4 for t in means), DEVICE)
