"""The gradient of the loss and the epoch's totals as one op, beside the op of the loss and its backward, and eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import DEVICE, DTYPES
from torch import Tensor

from fastcifar import ops
from fastcifar.batch import Batch
from fastcifar.engines.eager import loss_and_sums

CLASSES, SMOOTHING = 100, 0.1


@pytest.mark.parametrize("case", ["N=128", "N=512", "N=128 mixed", "N=512 mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixup_cross_entropy_gradient(race: Any, benchmark: Any, case: str, dtype: torch.dtype) -> None:
    benchmark.group = f"mixup_cross_entropy_gradient, {dtype}"
    batch, mixed = int(case.split()[0][2:]), "mixed" in case
    logits = torch.randn(batch, CLASSES, device=DEVICE).to(dtype).requires_grad_()
    labels, partner_labels = torch.randint(0, CLASSES, (2, batch), device=DEVICE)
    mixing = (partner_labels, torch.tensor(0.3, device=DEVICE)) if mixed else (None, None)
    totals = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    one = torch.ones((), device=DEVICE)

    def fused() -> Tensor:
        return ops.mixup_cross_entropy_gradient(logits.detach(), labels, *mixing, SMOOTHING, one, totals)

    def apart() -> tuple[Tensor, Tensor]:
        loss, _, sums = ops.mixup_cross_entropy(logits, labels, *mixing, SMOOTHING)
        return loss, sums

    def eager() -> tuple[Tensor, Tensor]:
        return loss_and_sums(logits, Batch(logits, labels, *mixing), SMOOTHING)

    def run(loss_of: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], Any]:
        def call() -> Any:
            loss, sums = loss_of()
            totals.add_(sums)
            return torch.autograd.grad(loss, logits, one)

        return call

    race(fused, {"loss and backward": run(apart), "eager": run(eager)}, 2 * batch * CLASSES * dtype.itemsize, DEVICE)
    benchmark.extra_info["images"] = batch
