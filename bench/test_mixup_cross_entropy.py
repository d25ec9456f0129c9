"""The loss of a step with its gradient and counts: one op forward and one backward, beside a dozen ops in eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, DTYPES
from torch import Tensor

from fastcifar import ops

CLASSES, SMOOTHING = 100, 0.1
Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.mark.parametrize("case", ["N=128", "N=512", "N=128 mixed", "N=512 mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixup_cross_entropy(race: Any, benchmark: Any, case: str, dtype: torch.dtype) -> None:
    benchmark.group = f"mixup_cross_entropy forward + backward, {dtype}"
    batch, mixed = int(case.split()[0][2:]), "mixed" in case
    logits = torch.randn(batch, CLASSES, device=DEVICE).to(dtype).requires_grad_()
    labels, partner_labels = torch.randint(0, CLASSES, (2, batch), device=DEVICE)
    lam = torch.tensor(0.3, device=DEVICE)
    totals = torch.zeros(2, dtype=torch.float64, device=DEVICE)

    def fused(logits: Tensor) -> tuple[Tensor, Tensor]:
        mixing = (partner_labels, lam) if mixed else (None, None)
        loss, _, sums = ops.mixup_cross_entropy(logits, labels, *mixing, SMOOTHING)
        return loss, sums

    def eager(logits: Tensor) -> tuple[Tensor, Tensor]:
        wide = logits.float()
        predicted = wide.detach().argmax(1)
        loss = F.cross_entropy(wide, labels, label_smoothing=SMOOTHING)
        correct = (predicted == labels).sum().float()
        if mixed:
            loss = torch.lerp(F.cross_entropy(wide, partner_labels, label_smoothing=SMOOTHING), loss, lam)
            correct = torch.lerp((predicted == partner_labels).sum().float(), correct, lam)
        return loss, torch.stack((loss.detach() * batch, correct))

    def run(loss_of: Loss) -> Callable[[], Any]:
        def call() -> Any:
            loss, sums = loss_of(logits)
            totals.add_(sums)
            return torch.autograd.grad(loss, logits)

        return call

    race(run(fused), {"eager": run(eager)}, 3 * batch * CLASSES * dtype.itemsize, DEVICE)
    benchmark.extra_info["images"] = batch
