"""The first convolution, forward and weight gradient, beside PyTorch's. PyTorch's forward leaves no statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, DTYPES

from fastcifar.model import STEM_CHANNELS
from fastcifar.ops import stem

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="an op for the CPU alone")
SIZE = 32


@pytest.mark.parametrize("case", [128], ids="N={}".format)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "weight gradient"])
def test_stem(race: Any, benchmark: Any, case: int, dtype: torch.dtype, direction: str) -> None:
    benchmark.group = f"stem {direction}, {dtype}"
    images = torch.randn(case, 3, SIZE, SIZE).to(dtype).to(memory_format=torch.channels_last)
    w = torch.randn(STEM_CHANNELS, 3, 3, 3)
    peer_w = w.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(case, STEM_CHANNELS, SIZE, SIZE).to(dtype).to(memory_format=torch.channels_last)
    num_bytes = (images.numel() + grad.numel()) * dtype.itemsize
    if direction == "forward":
        rivals = {"eager": lambda: F.conv2d(images, peer_w, padding=1)}
        race(lambda: stem(images, w), rivals, num_bytes, DEVICE)
    else:
        u = F.conv2d(images, peer_w, padding=1)
        rivals = {"eager": lambda: torch.autograd.grad(u, peer_w, grad, retain_graph=True)}
        race(lambda: torch.ops.fastcifar._stem_backward(grad, images, w), rivals, num_bytes, DEVICE)
