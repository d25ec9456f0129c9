"""The first convolution, forward and weight gradient, beside PyTorch's. PyTorch's forward leaves no statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, DTYPES

from fastcifar.model import STEM_CHANNELS
from fastcifar.ops import stem

SIZE = 32


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("case", [128, 1024] if DEVICE == "cuda" else [128], ids="N={}".format)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "weight gradient"])
def test_stem(race: Any, benchmark: Any, case: int, dtype: torch.dtype, direction: str) -> None:
    benchmark.group = f"stem {direction}, {dtype}"
    images = torch.randn(case, 3, SIZE, SIZE, device=DEVICE).to(dtype).to(memory_format=torch.channels_last)
    w = torch.randn(STEM_CHANNELS, 3, 3, 3, device=DEVICE)
    peer_w = w.to(dtype).to(memory_format=torch.channels_last)
    grad = torch.randn(case, STEM_CHANNELS, SIZE, SIZE, device=DEVICE).to(dtype).to(memory_format=torch.channels_last)
    num_bytes = (images.numel() + grad.numel()) * dtype.itemsize
    if direction == "forward":
        rivals = {"eager": lambda: F.conv2d(images, peer_w, padding=1)}
        race(lambda: stem(images, w), rivals, num_bytes, DEVICE)
    else:
        ones, wanted = [1, 1], [False, True, False]
        backward = torch.ops.aten.convolution_backward
        rivals = {"eager": lambda: backward(grad, images, peer_w, None, ones, ones, ones, False, [0, 0], 1, wanted)}
        race(lambda: torch.ops.fastcifar._stem_backward(grad, images, w), rivals, num_bytes, DEVICE)
