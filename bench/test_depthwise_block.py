"""BN, ReLU, depthwise convolution, BN and ReLU as one op, forward and backward.

The peers compute the same result: eager, the extension's single ops and, with --full, torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, Case, cases
from torch import Tensor

from fastcifar.ops import batch_norm_relu, depthwise_block, dwconv3x3

EPS = 1e-5
Block = Callable[..., Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("case", cases(metafunc.config.getoption("--full")), ids=str)


def fused(u: Tensor, g0: Tensor, b0: Tensor, w: Tensor, g1: Tensor, b1: Tensor, stride: int) -> Tensor:
    return depthwise_block(u, g0, b0, w, g1, b1, EPS, stride)[0]


def single_ops(u: Tensor, g0: Tensor, b0: Tensor, w: Tensor, g1: Tensor, b1: Tensor, stride: int) -> Tensor:
    h = batch_norm_relu(u, g0, b0, EPS)[0]
    return batch_norm_relu(dwconv3x3(h, w, stride), g1, b1, EPS)[0]


def eager(u: Tensor, g0: Tensor, b0: Tensor, w: Tensor, g1: Tensor, b1: Tensor, stride: int) -> Tensor:
    h = F.relu(F.batch_norm(u, None, None, g0, b0, True, 0.1, EPS), inplace=True)
    if DEVICE == "cpu":  # oneDNN's bfloat16 gradients with stride 2 take 100 times as long
        y = F.conv2d(h.float(), w, stride=stride, padding=1, groups=u.shape[1]).to(u.dtype)
    else:
        y = F.conv2d(h, w.to(u.dtype), stride=stride, padding=1, groups=u.shape[1])
    return F.relu(F.batch_norm(y, None, None, g1, b1, True, 0.1, EPS), inplace=True)


@pytest.mark.parametrize("forward_only", [True, False], ids=["forward", "both"])
def test_block(race: Any, request: pytest.FixtureRequest, benchmark: Any, case: Case, forward_only: bool) -> None:
    benchmark.group = f"depthwise_block {'forward' if forward_only else 'forward + backward'}, {case.dtype}"
    weights = [case.per_channel(), case.per_channel(), case.weight(), case.per_channel(), case.per_channel()]
    inputs = [tensor.requires_grad_() for tensor in (case.activation(case.size), *weights)]
    grad = case.activation(case.out_size)

    def run(block: Block) -> Callable[[], Any]:
        def call() -> Any:
            if forward_only:
                with torch.no_grad():
                    return block(*inputs, case.stride)
            return torch.autograd.grad(block(*inputs, case.stride), inputs, grad)

        return call

    rivals = {"eager": run(eager), "single ops": run(single_ops)}
    if request.config.getoption("--full"):
        torch.compiler.reset()
        rivals["compiled"] = run(torch.compile(eager))
    # Forward: u, y and z. Backward: u, y, the gradients of z and of u.
    num_bytes = case.bytes(case.size, case.out_size, case.out_size)
    if not forward_only:
        num_bytes += case.bytes(case.size, case.size, case.out_size, case.out_size)
    race(run(fused), rivals, num_bytes, DEVICE)
