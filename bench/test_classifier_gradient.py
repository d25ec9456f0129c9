"""Classifier, loss and the classifier's gradients as one op, beside the library's products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, DTYPES
from torch import Tensor

from fastcifar import ops
from fastcifar.ops.classifier_gradient import suits

CHANNELS, CLASSES, SMOOTHING = 1024, 100, 0.1


@pytest.mark.parametrize("case", ["N=128", "N=512", "N=128 mixed", "N=512 mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_classifier_gradient(race: Any, benchmark: Any, case: str, dtype: torch.dtype) -> None:
    benchmark.group = f"classifier_gradient, {dtype}"
    batch, mixed = int(case.split()[0][2:]), "mixed" in case
    pooled = torch.rand(batch, CHANNELS, device=DEVICE).to(dtype)
    if not suits(pooled, CLASSES):
        pytest.skip(f"no kernel for {dtype} on this {DEVICE}")
    weight, bias = torch.randn(CLASSES, CHANNELS + 1, device=DEVICE).to(dtype).split((CHANNELS, 1), 1)
    weight, bias = weight.contiguous(), bias.flatten()
    labels, partner_labels = torch.randint(0, CLASSES, (2, batch), device=DEVICE)
    mixing = (partner_labels, torch.tensor(0.3, device=DEVICE)) if mixed else (None, None)
    targets = labels, *mixing, SMOOTHING, torch.ones((), device=DEVICE)
    totals = torch.zeros(2, dtype=torch.float64, device=DEVICE)

    def fused() -> tuple[Tensor, Tensor, Tensor]:
        return ops.classifier_gradient(pooled, weight, bias, *targets, totals)

    def apart() -> tuple[Tensor, Tensor, Tensor]:
        grad = ops.mixup_cross_entropy_gradient(F.linear(pooled, weight, bias), *targets, totals)
        return grad.mm(weight), grad.t().mm(pooled), grad.sum(0)

    moved = 2 * (batch + CLASSES) * CHANNELS
    race(fused, {"apart": apart}, moved * dtype.itemsize, DEVICE)
    benchmark.extra_info["images"] = batch
