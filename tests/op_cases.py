"""What the tests of the compiled ops share: devices, dtypes, shapes, and all of `fastcifar.ops.cases`.

Run as a program, this file checks every op on a few shapes. A process chooses its instruction set only once, so that
the tests start this program once for each instruction set.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastcifar import ops
from fastcifar.ops._library import device_types_of
from fastcifar.ops.cases import *  # noqa: F403
from fastcifar.ops.cases import Arguments, calls, check, end_calls

DEVICES = [d for d in ("cpu", "cuda") if ops.available(d) and (d == "cpu" or torch.cuda.is_available())]
CUDA_OPS = {name for name, device_types in device_types_of.items() if "cuda" in device_types}
DTYPES = {"cpu": [torch.float32, torch.bfloat16], "cuda": [torch.float32, torch.bfloat16, torch.float16]}
CHANNELS = [1, 3, 65, 129]
MAPS = [(1, 1), (2, 2), (5, 7), (33, 31)]
# Beyond awkward sizes: several tiles of rows, many parts of a sum, blocks cut by channels
SHAPES = [(n, c, h, w) for c in CHANNELS for h, w in MAPS for n in ((2,) if h < 33 else (1,))]
SHAPES += [(40, 129, 5, 7), (33, 3, 16, 16), (5, 40, 32, 32), (70, 64, 4, 4)]

if "cuda" in DEVICES:  # the references in float32 are float32
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"

needs_kernels = pytest.mark.skipif(not DEVICES, reason=f"no compiled kernels: {ops.why_unavailable()}")
kinds = pytest.mark.parametrize(
    "device, dtype", [(device, dtype) for device in DEVICES for dtype in DTYPES[device]], ids=str
)
devices = pytest.mark.parametrize("device", DEVICES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
strides = pytest.mark.parametrize("stride", [1, 2])
opcheck_cases = pytest.mark.parametrize(
    "device, dtype, stride",
    [
        pytest.param(device, dtype, stride, marks=[] if dtype == torch.float32 and stride == 1 else pytest.mark.slow)
        for device in DEVICES
        for dtype in DTYPES[device]
        for stride in (1, 2)
    ],
    ids=str,
)
"""Seconds each: the quick tests have one for each device."""


def loss_arguments(
    rows: int, classes: int, dtype: torch.dtype, mixed: bool, smoothing: float = 0.1, device: str = "cpu"
) -> Arguments:
    """(logits, labels, partner_labels, lam, label_smoothing)"""
    logits = torch.randn(rows, classes).mul(3).add(5).to(dtype)
    labels, partner_labels = torch.randint(0, classes, (2, rows))
    if rows > 2:  # several equal logits are the largest, and the first one is the prediction; both labels are equal
        logits[0, [classes // 2, classes - 1]] = 30
        labels[0], partner_labels[0] = classes // 2, classes - 1
        partner_labels[1] = labels[1]
    mixing = (partner_labels.to(device), torch.tensor(0.3, device=device)) if mixed else (None, None)
    return logits.to(device), labels.to(device), *mixing, smoothing


def classifier_arguments(
    rows: int, channels: int, classes: int, dtype: torch.dtype, mixed: bool, **more: Any
) -> Arguments:
    """The arguments of `classifier_gradient`. Of the first row several logits are the largest; see `loss_arguments`."""
    logits, *targets = loss_arguments(rows, classes, dtype, mixed, **more)
    device = logits.device
    pooled, weight = torch.rand(rows, channels).to(dtype), torch.randn(classes, channels).mul(channels**-0.5).to(dtype)
    bias = torch.randn(classes).to(dtype)
    if rows > 2:
        pooled[0] = 0
        bias[[classes // 2, classes - 1]] = 9
    totals = torch.tensor([1000.1, 77.7], dtype=torch.float64)
    grad_loss = torch.tensor(1024.0)
    return *(t.to(device) for t in (pooled, weight, bias)), *targets, grad_loss.to(device), totals.to(device)


def check_all() -> None:
    for shape in [(2, 3, 5, 7), (2, 65, 2, 2), (3, 129, 4, 4), (2, 33, 33, 31), (0, 3, 2, 2), (40, 129, 5, 7)]:
        for dtype in DTYPES["cpu"]:
            for stride in (1, 2):
                torch.manual_seed(0)
                for name, arguments in calls(shape, dtype, stride):
                    check(name, arguments)
            for name, arguments in end_calls(shape, dtype) if shape[0] else ():
                check(name, arguments)
    for dtype in DTYPES["cpu"]:
        for numbers in ((13, 37, 131), (40, 256, 100)):
            check("classifier_gradient", classifier_arguments(*numbers, dtype, True))


if __name__ == "__main__":
    check_all()
    print(ops.cpu_isa())
