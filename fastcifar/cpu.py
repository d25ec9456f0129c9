"""What makes a training step fast on a CPU without the extension: allocator settings and two faster convolutions.

Measured on two cores with AVX-512 and AMX, width 1.0, batch 128 (`pytest bench/ --benchmark-only`): the malloc settings
1.3x, pointwise as a matrix product another 1.1x, bf16 with depthwise kept in fp32 another 1.4x.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.model import DepthwiseSeparable, MobileNet

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_GIB, _INT_MAX = 2**30, 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed buffers. Otherwise it returns them to the system, and each step faults them in again.

    This holds for the whole process until it exits. Peak memory is unchanged, but it is held until exit.

    Returns:
        Whether glibc took the settings; False without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _GIB) and mallopt(_M_TRIM_THRESHOLD, _INT_MAX))


class MatmulPointwise(nn.Module):
    """A 1x1 convolution computed as one matrix product over channels_last memory, without oneDNN's reorders.

    Args:
        conv: a 1x1 convolution without bias; its weight is shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] channels_last -> [N, out, H, W] channels_last."""
        x_nhwc = x.permute(0, 2, 3, 1)
        return F.linear(x_nhwc, self.weight.flatten(1)).permute(0, 3, 1, 2)


class Fp32Depthwise(nn.Module):
    """A depthwise convolution that computes in float32 under autocast too.

    In bf16 oneDNN computes the input gradient at stride 2, and the weight gradient of 2x2 maps, with a generic kernel
    that is 100 to 700 times slower. The two casts cost a hundredth of what they save.

    Args:
        conv: a depthwise convolution without bias; its weight is shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.stride, self.padding, self.groups = conv.weight, conv.stride, conv.padding, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H/stride, W/stride], in the dtype of `x`."""
        with torch.autocast("cpu", enabled=False):
            y = F.conv2d(x.to(self.weight.dtype), self.weight, None, self.stride, self.padding, groups=self.groups)
        return y.to(x.dtype)


def tune(model: MobileNet, *, products: bool = True) -> None:
    """Replaces the convolutions of every block of `model` by the faster ones above, in place.

    The parameters, their names and the function of the model stay the same.

    Args:
        model: changed in place.
        products: whether matrix products are faster than 1x1 convolutions here (see
            `machine.Cpu.has_slow_library_products`).
    """
    for block in model.blocks:
        assert isinstance(block, DepthwiseSeparable)
        depthwise, pointwise = block.depthwise, block.pointwise
        assert isinstance(depthwise, nn.Conv2d) and isinstance(pointwise, nn.Conv2d)
        block.depthwise = Fp32Depthwise(depthwise)
        if products:
            block.pointwise = MatmulPointwise(pointwise)
