"""The plain 3x3 depthwise convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define


def dwconv3x3(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """3x3 depthwise convolution, padding 1, no bias, accumulated in float32.

    Equal to `F.conv2d(x, w.to(x.dtype), stride=stride, padding=1, groups=x.shape[1])`, except that a float32 `w` is
    not rounded to a narrower `x.dtype` first.

    Args:
        x: [N, C, H, W], float32 or bfloat16 (on CUDA also float16), best in channels_last; else it is copied.
        w: [C, 1, 3, 3], float32 or x's dtype.
        stride: 1 or 2.

    Returns:
        y: [N, C, (H - 1) // stride + 1, (W - 1) // stride + 1], x's dtype, channels_last.

    Raises:
        RuntimeError: an argument has another shape, dtype, value or device; the message names it with its value.
    """
    y: Tensor = _forward(x, w, stride)
    return y


def dwconv3x3_ref(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """`dwconv3x3` in plain PyTorch."""
    dtype = accumulate_dtype(x)
    y = F.conv2d(x.to(dtype), w.to(dtype), stride=stride, padding=1, groups=x.shape[1])
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)


def dwconv3x3_backward_ref(
    grad_y: Tensor, x: Tensor, w: Tensor, stride: int, need_grad_x: bool, need_grad_w: bool
) -> tuple[Tensor, Tensor]:
    """The backward of `dwconv3x3` in plain PyTorch.

    Args:
        grad_y: the gradient of y, in its shape and dtype.
        x: as in the forward; so are w and stride.
        need_grad_x: whether the gradient of x is wanted.
        need_grad_w: whether the gradient of w is wanted.

    Returns:
        grad_x: x's shape and dtype, channels_last; of shape [0] where it is not wanted.
        grad_w: w's shape and dtype; of shape [0] where it is not wanted.
    """
    dtype = accumulate_dtype(x)
    grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
        grad_y.to(dtype),
        x.to(dtype),
        w.to(dtype),
        None,
        [stride, stride],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        x.shape[1],
        [need_grad_x, need_grad_w, False],
    )
    return (
        grad_x.to(x.dtype).contiguous(memory_format=torch.channels_last) if need_grad_x else x.new_empty(0),
        grad_w.to(w.dtype).contiguous() if need_grad_w else w.new_empty(0),
    )


_forward = define("dwconv3x3(Tensor x, Tensor w, int stride) -> Tensor", dwconv3x3_ref)
_backward = define(
    "_dwconv3x3_backward(Tensor grad_y, Tensor x, Tensor w, int stride, bool need_grad_x, bool need_grad_w)"
    " -> (Tensor, Tensor)",
    dwconv3x3_backward_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, ctx.stride = inputs
    ctx.save_for_backward(x, w)


def _autograd(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    need_x, need_w, _ = ctx.needs_input_grad
    grad_x, grad_w = _backward(grad_y, x, w, ctx.stride, need_x, need_w)
    return grad_x if need_x else None, grad_w if need_w else None, None


torch.library.register_autograd("fastcifar::dwconv3x3", _autograd, setup_context=_setup_context)
