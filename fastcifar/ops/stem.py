"""The network's first convolution with the statistics of its output.

On the CPU it keeps oneDNN out of a step: oneDNN's weight gradient in bfloat16 waits for its threads by spinning, and
took 50 times as long beside one busy process. On an H200 cuDNN's forward took 28 us at batch 128 in bfloat16, and its
weight gradient 53 us in seven kernels, while the memory needs 4 us for either.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define
from fastcifar.ops._moments import rows_of, whole_gradient


def stem(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """3x3 convolution of images with stride 1 and padding 1, no bias, summed in float32.

    Equal to `F.conv2d(x, w.to(x.dtype), padding=1)`, except that a float32 `w` is not rounded to a narrower `x.dtype`
    first. In training images need no gradient: where it is asked for, plain PyTorch computes it.

    Args:
        x: [N, 3, H, W], N at least 1, float32 or bfloat16 (on CUDA also float16), best in channels_last; else it is
            copied.
        w: [C, 3, 3, 3], float32 or x's dtype.

    Returns:
        u: [N, C, H, W] in x's dtype, channels_last.
        u_rows: float32 [rows, 3, C], partial counts, means and sums of squared deviations of u as it was rounded, for
            the next op. Differentiable: the next op may return the gradient through u's statistics as theirs.

    Raises:
        RuntimeError: an argument has another shape, dtype or device; the message names it with its value.
    """
    u, u_rows = _forward(x, w)
    return u, u_rows


def stem_ref(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`stem` in plain PyTorch."""
    wide = accumulate_dtype(x)
    u = F.conv2d(x.to(wide), w.to(wide), padding=1).to(x.dtype)
    return u.contiguous(memory_format=torch.channels_last), rows_of(u)


def stem_backward_ref(
    grad_u: Tensor,
    x: Tensor,
    w: Tensor,
    grad_u_rows: Tensor | None = None,
    u: Tensor | None = None,
    u_rows: Tensor | None = None,
) -> Tensor:
    """The gradient of w in plain PyTorch.

    Args:
        grad_u: the gradient of u, in its shape and dtype.
        x: as in the forward; so is w.
        grad_u_rows: the gradient of u_rows in its shape, of which only the first row counts; None: there is none.
        u: as the forward returned it; needed with grad_u_rows.
        u_rows: as u.

    Returns:
        In w's shape and dtype, and in channels_last where w is.
    """
    wide, ones = accumulate_dtype(x), [1, 1]
    grad_u = whole_gradient(grad_u, grad_u_rows, u, u_rows)
    _, grad_w, _ = torch.ops.aten.convolution_backward(
        grad_u.to(wide), x.to(wide), w.to(wide), None, ones, ones, ones, False, [0, 0], 1, [False, True, False]
    )
    channels_last = not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return grad_w.to(w.dtype).contiguous(memory_format=layout)  # type: ignore[no-any-return]


_forward = define("stem(Tensor x, Tensor w) -> (Tensor, Tensor)", stem_ref)
_backward = define(
    "_stem_backward(Tensor grad_u, Tensor x, Tensor w, Tensor? grad_u_rows=None, Tensor? u=None, Tensor? u_rows=None)"
    " -> Tensor",
    stem_backward_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_u: Tensor | None, grad_u_rows: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_u is None and grad_u_rows is None:
        return None, None
    x, w, u, u_rows = ctx.saved_tensors
    need_x, need_w = ctx.needs_input_grad
    if grad_u is None:
        grad_u = torch.zeros_like(u)
    moments = (None, None, None) if grad_u_rows is None else (grad_u_rows, u, u_rows)
    grad_x = None
    if need_x:
        whole = whole_gradient(grad_u, *moments)
        grad_x = F.conv_transpose2d(whole, w.to(whole.dtype), padding=1).to(x.dtype)
    return grad_x, _backward(grad_u, x, w, *moments) if need_w else None


torch.library.register_autograd("fastcifar::stem", _autograd, setup_context=_setup_context)
