"""The middle of the network, all 13 blocks forward and backward, as one op on the CPU.

From the raw output of the stem, with its moments, to the raw output of the last pointwise product and its moments. The
peer is `separable_block` called for one block after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import DEVICE, LAYERS, Case, cases
from torch import Tensor

from fastcifar.ops import separable_block, separable_blocks
from fastcifar.ops._moments import merge_rows, rows_of

EPS = 1e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    first = [case for case in cases(metafunc.config.getoption("--full")) if case.channels == LAYERS[0][0]]
    metafunc.parametrize("case", first, ids=lambda case: f"N={case.batch} {case.dtype}")


def whole(u: Tensor, rows: Tensor, parameters: list[Tensor], strides: list[int]) -> Tensor:
    v, v_rows, _ = separable_blocks(u, rows, parameters, EPS, strides)
    return _used(v, v_rows)


def in_turn(u: Tensor, rows: Tensor, parameters: list[Tensor], strides: list[int]) -> Tensor:
    for i, stride in enumerate(strides):
        u, rows, *_ = separable_block(u, *parameters[6 * i : 6 * i + 6], EPS, stride, rows)
    return _used(u, rows)


def _used(v: Tensor, rows: Tensor) -> Tensor:
    """A number that has a gradient in both, as after the head."""
    mean, var = merge_rows(rows)
    return v.mean() + mean.mean() + var.mean()


@pytest.mark.skipif(DEVICE == "cuda", reason="separable_blocks is for the CPU")
def test_blocks(race: Any, benchmark: Any, case: Case) -> None:
    benchmark.group = f"all blocks forward + backward, {case.dtype}"
    layers = [layer for layer in LAYERS for _ in range(5 if layer == (512, 4, 1) else 1)]
    u = case.activation(case.size)
    rows, parameters, num_bytes = rows_of(u), [], 0
    for channels, size, stride in layers:
        block = Case(case.batch, channels, size, stride, case.dtype)
        weights = block.block_weights()
        parameters += weights
        num_bytes += block.block_bytes(weights)
    inputs = [tensor.requires_grad_() for tensor in (u, rows, *parameters)]
    strides = [stride for *_, stride in layers]

    def run(blocks: Callable[..., Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(blocks(inputs[0], inputs[1], inputs[2:], strides), inputs)

    race(run(whole), {"separable_block": run(in_turn)}, num_bytes, DEVICE)
