"""The best speeds of a device: copies of many sizes, and the fastest of large matrix products."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from fastcifar import ops
from fastcifar.measuring.layers import Work
from fastcifar.measuring.timing import Call, time_calls

COPY_BYTES = tuple(2**exponent for exponent in range(12, 30))
"""Sizes of the measured copies: bytes read and written together, 4 KiB (which times the call itself) to 512 MiB."""
_PARTS = 6
"""Of how many products of bfloat16 the extension makes one of float32 in AMX's tile registers (csrc/cpu/product.h)."""


@dataclass(frozen=True)
class Roofs:
    """The best speeds that a device reached.

    Attributes:
        copies: for each copy the bytes read and written, and the bytes per second; the smallest copy first.
        flops_per_second: the speed of the fastest large matrix product in the compute dtype, or of one that is made of
            several in a narrower dtype.
    """

    copies: tuple[tuple[int, float], ...]
    flops_per_second: float

    @property
    def memory(self) -> float:
        """Bytes per second of the largest copy, which fits no cache."""
        return self.copies[-1][1]

    @property
    def cache(self) -> float:
        """Bytes per second of the fastest copy."""
        return max(rate for _, rate in self.copies)

    def bytes_per_second(self, num_bytes: int) -> float:
        """Bytes per second of a copy of `num_bytes`, interpolated over the logarithm of the size."""
        sizes = [math.log(size) for size, _ in self.copies]
        rates = [rate for _, rate in self.copies]
        x = min(max(math.log(num_bytes), sizes[0]), sizes[-1])
        right = min(max(bisect.bisect_left(sizes, x), 1), len(sizes) - 1)
        share = (x - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return rates[right - 1] + share * (rates[right] - rates[right - 1])

    def is_memory_bound(self, work: Work) -> bool:
        """Whether the bytes of `work` take longer than its operations."""
        return work.bytes / self.bytes_per_second(work.bytes) >= work.flops / self.flops_per_second

    def seconds(self, work: Work) -> float:
        """The least seconds for `work`."""
        return max(work.bytes / self.bytes_per_second(work.bytes), work.flops / self.flops_per_second)


def measure_roofs(
    device: torch.device, dtype: torch.dtype, copy_bytes: Sequence[int] = COPY_BYTES, side: int | None = None
) -> Roofs:
    """Measures the speeds of a device. The best of many measurements counts.

    On the CPU the product is a 1x1 convolution too: PyTorch's own product in float32 uses no AVX-512 on AMD's
    processors, where it has half the convolution's speed, so that a step would be faster than its floor. For the same
    reason float32 has at least the speed of bfloat16 divided by `_PARTS` where the extension multiplies it so.

    Args:
        device: the device.
        dtype: the dtype of the matrix product.
        copy_bytes: the sizes of the copies, in bytes read and written.
        side: the number of rows of the two square matrices; None is 8192 on CUDA and 2048 on the CPU.
    """
    copies = []
    for num_bytes in copy_bytes:
        source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device)
        copies.append((num_bytes, num_bytes / _best([partial(torch.empty_like(source).copy_, source)], device)))
    side = side or (8192 if device.type == "cuda" else 2048)
    flops = _flops_per_second(device, dtype, side)
    if device.type == "cpu" and dtype == torch.float32 and ops.cpu_isa() == "amx":
        flops = max(flops, _flops_per_second(device, torch.bfloat16, side) / _PARTS)
    return Roofs(tuple(copies), flops)


def _flops_per_second(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """The speed of the fastest product of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products: list[Call] = [partial(torch.mm, a, b, out=torch.empty_like(a))]
    if device.type == "cpu":
        pixels = a.view(1, 1, side, side).permute(0, 3, 1, 2)
        products.append(partial(F.conv2d, pixels, b.view(side, side, 1, 1)))
    return 2 * side**3 / _best(products, device)


def _best(calls: Sequence[Call], device: torch.device) -> float:
    return min(min(times) for times in time_calls(calls, device))
