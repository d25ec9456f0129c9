"""The depthwise convolution of evaluation, with a folded BN and a ReLU before it and after it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define
from fastcifar.ops.dwconv3x3 import dwconv3x3_ref


def dwconv3x3_affine_relu(
    u: Tensor, scale0: Tensor, shift0: Tensor, w: Tensor, scale1: Tensor, shift1: Tensor, stride: int
) -> Tensor:
    """`depthwise_block` with fixed statistics, each BN folded into a scale and a shift.

    Equal to `F.relu(dwconv3x3(F.relu(u * scale0 + shift0), w, stride) * scale1 + shift1)` (scales and shifts as
    [C, 1, 1]) in float32, rounded once at the end. Not differentiable.

    Args:
        u: [N, C, H, W], float32 or bfloat16 (on CUDA also float16), best in channels_last; else it is copied.
        scale0: float32 [C], of the BN of u.
        shift0: float32 [C], of the BN of u.
        w: [C, 1, 3, 3], float32 or u's dtype.
        scale1: float32 [C], of the BN of the convolution's output.
        shift1: float32 [C], of the BN of the convolution's output.
        stride: 1 or 2.

    Returns:
        z: [N, C, (H - 1) // stride + 1, (W - 1) // stride + 1], u's dtype, channels_last.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    z: Tensor = _forward(u, scale0, shift0, w, scale1, shift1, stride)
    return z


def dwconv3x3_affine_relu_ref(
    u: Tensor, scale0: Tensor, shift0: Tensor, w: Tensor, scale1: Tensor, shift1: Tensor, stride: int
) -> Tensor:
    """`dwconv3x3_affine_relu` in plain PyTorch."""
    h = F.relu(u.to(accumulate_dtype(u)) * scale0[:, None, None] + shift0[:, None, None])
    z = F.relu(dwconv3x3_ref(h, w, stride) * scale1[:, None, None] + shift1[:, None, None])
    return z.to(u.dtype).contiguous(memory_format=torch.channels_last)


_forward = define(
    "dwconv3x3_affine_relu(Tensor u, Tensor scale0, Tensor shift0, Tensor w, Tensor scale1, Tensor shift1, int stride)"
    " -> Tensor",
    dwconv3x3_affine_relu_ref,
)
