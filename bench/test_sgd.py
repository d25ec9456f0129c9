"""The optimizer's step over the network's 83 tensors, beside torch.optim.SGD and the casts that our op also does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import DEVICE, DTYPES
from torch import Tensor

from fastcifar import ops
from fastcifar.model import build_model

LR, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4


def state(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Parameters, gradients, momentum buffers, rounded copies. The products' weights have copies and such gradients."""
    params = [p.detach() for p in build_model(100, 1.0, 0).to(DEVICE).parameters()]
    narrow = [dtype if p.dim() in (2, 4) and p.shape[1] > 1 else torch.float32 for p in params]
    grads = [torch.randn_like(p, dtype=d) for p, d in zip(params, narrow, strict=True)]
    rounded = [p.to(d) if d != torch.float32 else p.new_empty(0) for p, d in zip(params, narrow, strict=True)]
    return params, grads, [torch.zeros_like(p) for p in params], rounded


@pytest.mark.parametrize("case", ["width 1.0"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sgd(race: Any, benchmark: Any, case: str, dtype: torch.dtype) -> None:
    benchmark.group = f"sgd with Nesterov momentum, {dtype}"
    params, grads, buffers, rounded = state(dtype)
    lr, decays = torch.tensor(LR, device=DEVICE), [DECAY] * len(params)

    def ours() -> None:
        ops.sgd(params, grads, buffers, rounded, lr, decays, MOMENTUM, True)

    def peer(lr: Tensor | float, **how: bool) -> Callable[[], None]:
        mine = [p.clone().requires_grad_() for p in params]
        optimizer = torch.optim.SGD(mine, lr, MOMENTUM, weight_decay=DECAY, nesterov=True, **how)
        narrow = [i for i, r in enumerate(rounded) if r.numel()]
        copies, theirs = [rounded[i].clone() for i in narrow], [mine[i].detach() for i in narrow]
        wide = [torch.empty_like(t) for t in theirs]
        for p, grad in zip(mine, grads, strict=True):
            p.grad = grad.float()

        def call() -> None:
            if narrow:  # gradients brought to float32, and the weights rounded for the next step
                torch._foreach_copy_(wide, [grads[i] for i in narrow])
            optimizer.step()
            if narrow:
                torch._foreach_copy_(copies, theirs)

        return call

    # `foreach` reads a rate that is a tensor on the host, which no graph may
    peers = {"torch fused": peer(lr, fused=True), "torch foreach": peer(LR, foreach=True)}
    size = sum(
        p.numel() * 16 + g.numel() * g.element_size() + r.numel() * r.element_size()
        for p, g, r in zip(params, grads, rounded, strict=True)
    )
    race(ours, peers, size, DEVICE)
