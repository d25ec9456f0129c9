"""A whole MobileNet block, forward and backward: two BN, two ReLU, the depthwise and the pointwise convolution.

A case begins and ends where the fused engine's blocks do: from the raw output of one pointwise product to the raw
output of the next product. `depthwise_block` followed by PyTorch's product is timed beside eager. On CUDA its peers are
also `separable_block`, which includes the product, and torch.compile; on the CPU, with --full, torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, Case, cases
from torch import Tensor

from fastcifar.ops import depthwise_block, separable_block

EPS = 1e-5
Block = Callable[..., Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("case", cases(metafunc.config.getoption("--full")), ids=str)


def eager(
    u: Tensor, g0: Tensor, b0: Tensor, w: Tensor, g1: Tensor, b1: Tensor, pointwise: Tensor, stride: int
) -> Tensor:
    h = F.relu(F.batch_norm(u, None, None, g0, b0, True, 0.1, EPS), inplace=True)
    if DEVICE == "cpu":  # oneDNN's bfloat16 gradients with stride 2 take 100 times as long
        y = F.conv2d(h.float(), w, stride=stride, padding=1, groups=u.shape[1]).to(u.dtype)
    else:
        y = F.conv2d(h, w.to(u.dtype), stride=stride, padding=1, groups=u.shape[1])
    z = F.relu(F.batch_norm(y, None, None, g1, b1, True, 0.1, EPS), inplace=True)
    return F.conv2d(z, pointwise.to(u.dtype))


def depthwise_and_product(
    u: Tensor, g0: Tensor, b0: Tensor, w: Tensor, g1: Tensor, b1: Tensor, pointwise: Tensor, stride: int
) -> Tensor:
    z = depthwise_block(u, g0, b0, w, g1, b1, EPS, stride)[0]
    return F.linear(z.permute(0, 2, 3, 1), pointwise.flatten(1).to(z.dtype)).permute(0, 3, 1, 2)


def test_block(race: Any, request: pytest.FixtureRequest, benchmark: Any, case: Case) -> None:
    benchmark.group = f"whole block forward + backward, {case.dtype}"
    u, weights = case.activation(case.size), case.block_weights()
    inputs = [tensor.requires_grad_() for tensor in (u, *weights)]
    grad = torch.randn(case.batch, case.out_channels, case.out_size, case.out_size, device=DEVICE).to(case.dtype)
    grad = grad.to(memory_format=torch.channels_last)
    # In training the block before passes on the moments of its output.
    wide, count = u.detach().float(), u.numel() / case.channels
    mean, var = wide.mean((0, 2, 3)), wide.var((0, 2, 3), correction=0)
    rows = torch.stack((torch.full_like(mean, count), mean, var * count))[None]

    def whole(*block: Any) -> Tensor:
        *tensors, stride = block
        return separable_block(*tensors, EPS, stride, rows)[0]

    def run(block: Block) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(block(*inputs, case.stride), inputs, grad)

    rivals = {"separable_block": run(whole)} if DEVICE == "cuda" else {}
    rivals["eager"] = run(eager)
    if DEVICE == "cuda" or request.config.getoption("--full"):
        torch.compiler.reset()
        rivals["compiled"] = run(torch.compile(eager, dynamic=False))
    race(run(depthwise_and_product), rivals, case.block_bytes(weights), DEVICE)
