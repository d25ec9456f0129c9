"""Batch normalisation in training mode with the ReLU after it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define


def batch_norm_relu(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """BN over the batch's own statistics, then ReLU.

    Equal to `F.relu(F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps))`. The statistics are returned
    too: the caller updates the running statistics of all layers together.

    Args:
        x: [N, C, H, W], float32 or bfloat16 (on CUDA also float16), best in channels_last; else it is copied.
        gamma: float32 [C].
        beta: float32 [C].
        eps: added to the variance.

    Returns:
        z: x's shape and dtype, channels_last.
        mean: float32 [C], of x; not differentiable; 0 for an empty batch.
        var: float32 [C], the biased variance of x; not differentiable; 0 for an empty batch.

    Raises:
        RuntimeError: an argument has another shape, dtype or device; the message names it with its value.
    """
    z, mean, var = _forward(x, gamma, beta, eps)
    return z, mean, var


def batch_norm_relu_ref(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm_relu` in plain PyTorch."""
    x_wide = x.to(accumulate_dtype(x))
    mean, var = batch_statistics(x_wide)
    z = F.relu(normalize(x_wide, gamma, beta, mean, var, eps))
    return z.to(x.dtype).contiguous(memory_format=torch.channels_last), mean, var


def batch_norm_relu_backward_ref(
    grad_z: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of `batch_norm_relu` in plain PyTorch.

    Args:
        grad_z: the gradient of z, in its shape and dtype.
        x: as in the forward; so are gamma, beta and eps.
        mean: as the forward returned it; so is var.

    Returns:
        grad_x: x's shape and dtype, channels_last.
        grad_gamma: float32 [C].
        grad_beta: float32 [C].
    """
    x_wide = x.to(accumulate_dtype(x))
    positive = normalize(x_wide, gamma, beta, mean, var, eps) > 0
    grad_x, grad_gamma, grad_beta = normalize_backward(
        grad_z.to(x_wide.dtype) * positive, x_wide, gamma, mean, var, eps
    )
    return grad_x.to(x.dtype).contiguous(memory_format=torch.channels_last), grad_gamma, grad_beta


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, H, W], 0 for an empty batch."""
    count = max(1, x.numel() // x.shape[1])
    mean = x.sum((0, 2, 3)) / count
    var = (x - mean[:, None, None]).square().sum((0, 2, 3)) / count
    return mean, var


def normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * gamma + beta for x [N, C, H, W] and one of each of the others a channel."""
    scale = gamma * torch.rsqrt(var + eps)
    return x * scale[:, None, None] + (beta - mean * scale)[:, None, None]


def normalize_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of `normalize` where mean and var are those of x: the gradients of (x, gamma, beta)."""
    count = max(1, x.numel() // x.shape[1])
    rstd = torch.rsqrt(var + eps)
    x_hat = (x - mean[:, None, None]) * rstd[:, None, None]
    grad_beta = grad.sum((0, 2, 3))
    grad_gamma = (grad * x_hat).sum((0, 2, 3))
    centred = grad - (grad_beta[:, None, None] + x_hat * grad_gamma[:, None, None]) / count
    return centred * (gamma * rstd)[:, None, None], grad_gamma, grad_beta


_forward = define(
    "batch_norm_relu(Tensor x, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor, Tensor)",
    batch_norm_relu_ref,
)
_backward = define(
    "_batch_norm_relu_backward(Tensor grad_z, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor var, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    batch_norm_relu_backward_ref,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gamma, beta, ctx.eps = inputs
    _, mean, var = output
    ctx.save_for_backward(x, gamma, beta, mean, var)
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_z: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_z is None:
        return None, None, None, None
    return *_backward(grad_z, *ctx.saved_tensors, ctx.eps), None


torch.library.register_autograd("fastcifar::batch_norm_relu", _autograd, setup_context=_setup_context)
