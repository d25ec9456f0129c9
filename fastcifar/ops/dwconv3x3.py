"""The plain 3x3 depthwise convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define, empty_channels_last


def dwconv3x3(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """3x3 depthwise convolution, padding 1, no bias, accumulated in float32.

    Equal to `F.conv2d(x, w.to(x.dtype), stride=stride, padding=1, groups=x.shape[1])`, except that a float32 `w` is
    not rounded to a narrower `x.dtype` first.

    Arguments:
        x: [N, C, H, W], float32 or bfloat16 (on CUDA also float16); read in channels_last, copied there if it is not.
        w: [C, 1, 3, 3], float32 or x's dtype.
        stride: 1 or 2.

    Returns y: [N, C, (H - 1) // stride + 1, (W - 1) // stride + 1], x's dtype, channels_last.
    """
    y: Tensor = _forward(x, w, stride)
    return y


def dwconv3x3_ref(x: Tensor, w: Tensor, stride: int) -> Tensor:
    dtype = accumulate_dtype(x)
    y = F.conv2d(x.to(dtype), w.to(dtype), stride=stride, padding=1, groups=x.shape[1])
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)


def dwconv3x3_backward_ref(
    grad_y: Tensor, x: Tensor, w: Tensor, stride: int, need_grad_x: bool, need_grad_w: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `dwconv3x3`: (grad_x in x's shape and dtype, grad_w in w's), an empty tensor for one not needed."""
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


def output_shape(x: Tensor, stride: int) -> tuple[int, int, int, int]:
    n, c, h, w = x.shape
    return n, c, (h - 1) // stride + 1, (w - 1) // stride + 1


def _fake(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return empty_channels_last(x, output_shape(x, stride))


def _backward_fake(
    grad_y: Tensor, x: Tensor, w: Tensor, stride: int, need_grad_x: bool, need_grad_w: bool
) -> tuple[Tensor, Tensor]:
    return (
        empty_channels_last(x, tuple(x.shape)) if need_grad_x else x.new_empty(0),
        w.new_empty(w.shape) if need_grad_w else w.new_empty(0),
    )


_forward = define("dwconv3x3(Tensor x, Tensor w, int stride) -> Tensor", dwconv3x3_ref, _fake)
_backward = define(
    "_dwconv3x3_backward(Tensor grad_y, Tensor x, Tensor w, int stride, bool need_grad_x, bool need_grad_w)"
    " -> (Tensor, Tensor)",
    dwconv3x3_backward_ref,
    _backward_fake,
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
