"""BN, ReLU and the mean over the last map as one op, beside PyTorch's three ops."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, DTYPES, LAYERS, Case

from fastcifar.ops import batch_norm_relu_pool

EPS = 1e-5
BATCHES = (128, 1024) if DEVICE == "cuda" else (128,)


@pytest.mark.parametrize("case", [Case(n, *LAYERS[-1], dtype) for dtype in DTYPES for n in BATCHES], ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_pool(race: Any, benchmark: Any, case: Case, direction: str) -> None:
    benchmark.group = f"batch_norm_relu_pool {direction}, {case.dtype}"
    inputs = [case.activation(case.size), case.per_channel(), case.per_channel()]
    grad = torch.randn(case.batch, case.channels, device=DEVICE).to(case.dtype)
    _, mean, var = batch_norm_relu_pool(*inputs, EPS)
    peer = [tensor.clone().requires_grad_() for tensor in inputs]

    def eager() -> torch.Tensor:
        z = F.relu(F.batch_norm(peer[0], None, None, peer[1], peer[2], True, 0.1, EPS), inplace=True)
        return F.avg_pool2d(z, z.shape[-2:]).flatten(1)

    if direction == "forward":
        race(lambda: batch_norm_relu_pool(*inputs, EPS), {"eager": eager}, case.bytes(case.size), DEVICE)
    else:
        # On CUDA in a stream of its own, as in test_batch_norm_relu.py
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else nullcontext():  # type: ignore[no-untyped-call]
            pooled = eager()
        rivals = {"eager": lambda: torch.autograd.grad(pooled, peer, grad, retain_graph=True)}
        arguments = (grad, *inputs, mean, var, EPS)
        num_bytes = case.bytes(case.size, case.size)
        race(lambda: torch.ops.fastcifar._batch_norm_relu_pool_backward(*arguments), rivals, num_bytes, DEVICE)
