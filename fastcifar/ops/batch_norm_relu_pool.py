"""The end of the network's last block: BN, ReLU and the mean over the whole map.

PyTorch's backward of the pooling alone takes as long as 28 copies of the map on a CPU, and on a GPU longer than
this op's whole backward. On CUDA there is no gradient of u_rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define
from fastcifar.ops._moments import merge_rows, rows_gradient, through_statistics
from fastcifar.ops.batch_norm_relu import batch_norm_relu_backward_ref, batch_statistics, normalize


def batch_norm_relu_pool(
    u: Tensor, gamma: Tensor, beta: Tensor, eps: float, u_rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """BN over the batch's own statistics, ReLU, and the mean over all pixels of an image.

    Equal to `batch_norm_relu(u, gamma, beta, eps)[0].mean((2, 3))`, except that the numbers are not rounded before
    their mean.

    Args:
        u: [N, C, H, W], N at least 1, float32, bfloat16 or on CUDA float16, best in channels_last; else it is copied.
        gamma: float32 [C].
        beta: float32 [C].
        eps: added to the variance.
        u_rows: float32 [rows, 3, C], partial counts, means and sums of squared deviations of u, the first row not
            empty: the `v_rows` of the block before; None: they are computed here. The gradient that comes through u's
            statistics is that of u_rows if they require one, else a part of u's.

    Returns:
        pooled: [N, C] in u's dtype.
        mean: float32 [C], of u; not differentiable.
        var: float32 [C], the biased variance of u; not differentiable.

    Raises:
        RuntimeError: an argument has another shape, dtype or device; the message names it with its value.
    """
    pooled, mean, var = _forward(u, gamma, beta, eps, u_rows)
    return pooled, mean, var


def batch_norm_relu_pool_ref(
    u: Tensor, gamma: Tensor, beta: Tensor, eps: float, u_rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm_relu_pool` in plain PyTorch."""
    wide = u.to(accumulate_dtype(u))
    mean, var = batch_statistics(wide) if u_rows is None else merge_rows(u_rows)
    return F.relu(normalize(wide, gamma, beta, mean, var, eps)).mean((2, 3)).to(u.dtype), mean, var


def batch_norm_relu_pool_backward_ref(
    grad_pooled: Tensor,
    u: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    u_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward of `batch_norm_relu_pool` in plain PyTorch.

    Args:
        grad_pooled: the gradient of pooled, in its shape and dtype.
        u: as in the forward; so are gamma, beta and eps.
        mean: as the forward returned it; so is var.
        u_rows: as in the forward, to have the gradient through u's statistics apart; None: it is a part of u's.

    Returns:
        grad_u: u's shape and dtype, channels_last.
        grad_gamma: float32 [C].
        grad_beta: float32 [C].
        grad_u_rows: u_rows' shape and dtype, 0 for its counts; of shape [0] without them.
    """
    share = grad_pooled.to(accumulate_dtype(u))[:, :, None, None] / (u.shape[2] * u.shape[3])
    wide = u.to(share.dtype)
    grad = share.expand(u.shape)
    grad_u, grad_gamma, grad_beta = batch_norm_relu_backward_ref(grad, wide, gamma, beta, mean, var, eps)
    grad_u_rows = gamma.new_empty(0)
    if u_rows is not None:
        scale = gamma * torch.rsqrt(var + eps)
        grad_u = grad * (normalize(wide, gamma, beta, mean, var, eps) > 0) * scale[:, None, None]
        grad_u = grad_u.contiguous(memory_format=torch.channels_last)
        through = through_statistics(gamma, var, eps, grad_gamma, grad_beta, u_rows[:, 0].sum(0))
        grad_u_rows = rows_gradient(u_rows, mean, *through)
    return grad_u.to(u.dtype), grad_gamma, grad_beta, grad_u_rows


_forward = define(
    "batch_norm_relu_pool(Tensor u, Tensor gamma, Tensor beta, float eps, Tensor? u_rows=None)"
    " -> (Tensor, Tensor, Tensor)",
    batch_norm_relu_pool_ref,
)
_backward = define(
    "_batch_norm_relu_pool_backward(Tensor grad_pooled, Tensor u, Tensor gamma, Tensor beta, Tensor mean, Tensor var,"
    " float eps, Tensor? u_rows=None) -> (Tensor, Tensor, Tensor, Tensor)",
    batch_norm_relu_pool_backward_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, gamma, beta, ctx.eps, u_rows = inputs
    _, mean, var = output
    ctx.save_for_backward(u, gamma, beta, mean, var, u_rows)
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_pooled: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_pooled is None:
        return None, None, None, None, None
    *tensors, u_rows = ctx.saved_tensors
    # Omitted arguments are not counted. On CUDA the gradient through the statistics is a part of u's.
    apart = u_rows is not None and ctx.needs_input_grad[4] and u_rows.device.type == "cpu"
    *grads, grad_u_rows = _backward(grad_pooled, *tensors, ctx.eps, u_rows if apart else None)
    return *grads, None, grad_u_rows if apart else None


torch.library.register_autograd("fastcifar::batch_norm_relu_pool", _autograd, setup_context=_setup_context)
