"""The plain depthwise convolution beside PyTorch's: oneDNN on the CPU, cuDNN and PyTorch's own kernel on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, Case, cases

from fastcifar.ops import dwconv3x3

backward = torch.ops.fastcifar._dwconv3x3_backward
LIBRARY = "cuDNN" if DEVICE == "cuda" else "oneDNN"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("case", cases(metafunc.config.getoption("--full")), ids=str)


def peers(call: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    def without_cudnn() -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return call()

    return {LIBRARY: call} | ({"native": without_cudnn} if DEVICE == "cuda" else {})


def test_forward(race: Any, benchmark: Any, case: Case) -> None:
    benchmark.group = f"dwconv3x3 forward, {case.dtype}"
    x, w = case.activation(case.size), case.weight()
    narrow, stride = w.to(case.dtype), case.stride
    rivals = peers(lambda: F.conv2d(x, narrow, stride=stride, padding=1, groups=case.channels))
    race(lambda: dwconv3x3(x, w, stride), rivals, case.bytes(case.size, case.out_size), DEVICE)


@pytest.mark.parametrize("need_x, need_w", [(True, False), (False, True), (True, True)], ids=["x", "w", "both"])
def test_backward(race: Any, benchmark: Any, case: Case, need_x: bool, need_w: bool) -> None:
    wanted = "both gradients" if need_x and need_w else "input gradient" if need_x else "weight gradient"
    benchmark.group = f"dwconv3x3 {wanted}, {case.dtype}"
    x, w, grad = case.activation(case.size), case.weight(), case.activation(case.out_size)
    narrow, strides = w.to(case.dtype), [case.stride] * 2

    def library() -> Any:
        return torch.ops.aten.convolution_backward(
            grad, x, narrow, None, strides, [1, 1], [1, 1], False, [0, 0], case.channels, [need_x, need_w, False]
        )

    num_bytes = case.bytes(case.out_size, *[case.size] * (need_x + need_w))
    race(lambda: backward(grad, x, w, case.stride, need_x, need_w), peers(library), num_bytes, DEVICE)
