"""Batch normalisation in training mode with the ReLU after it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import accumulate_dtype, define, empty_channels_last


def batch_norm_relu(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """BN over the batch's own statistics, then ReLU.

    Equal to `F.relu(F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps))`, with the statistics returned:
    whoever calls updates the running ones of all layers together.

    Arguments:
        x: [N, C, H, W], float32 or bfloat16 (on CUDA also float16); read in channels_last, copied there if it is not.
        gamma, beta: float32 [C].
        eps: added to the variance.

    Returns (z, mean, var): z in x's shape and dtype, channels_last; float32 [C] mean and biased variance of x, not
    differentiable. An empty batch has mean 0 and variance 0.
    """
    z, mean, var = _forward(x, gamma, beta, eps)
    return z, mean, var


def batch_norm_relu_ref(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x_wide = x.to(accumulate_dtype(x))
    mean, var = batch_statistics(x_wide)
    z = F.relu(normalize(x_wide, gamma, beta, mean, var, eps))
    return z.to(x.dtype).contiguous(memory_format=torch.channels_last), mean, var


def batch_norm_relu_backward_ref(
    grad_z: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `batch_norm_relu`: (grad_x in x's shape and dtype, grad_gamma, grad_beta float32 [C])."""
    x_wide = x.to(accumulate_dtype(x))
    positive = normalize(x_wide, gamma, beta, mean, var, eps) > 0
    grad_x, grad_gamma, grad_beta = normalize_backward(
        grad_z.to(x_wide.dtype) * positive, x_wide, gamma, mean, var, eps
    )
    return grad_x.to(x.dtype).contiguous(memory_format=torch.channels_last), grad_gamma, grad_beta


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, 0 for an empty batch."""
    count = max(1, x.numel() // x.shape[1])
    mean = x.sum((0, 2, 3)) / count
    var = (x - mean[:, None, None]).square().sum((0, 2, 3)) / count
    return mean, var


def normalize(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    scale = gamma * torch.rsqrt(var + eps)
    return x * scale[:, None, None] + (beta - mean * scale)[:, None, None]


def normalize_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `normalize` over its own batch's statistics with respect to (x, gamma, beta)."""
    count = max(1, x.numel() // x.shape[1])
    rstd = torch.rsqrt(var + eps)
    x_hat = (x - mean[:, None, None]) * rstd[:, None, None]
    grad_beta = grad.sum((0, 2, 3))
    grad_gamma = (grad * x_hat).sum((0, 2, 3))
    centred = grad - (grad_beta[:, None, None] + x_hat * grad_gamma[:, None, None]) / count
    return centred * (gamma * rstd)[:, None, None], grad_gamma, grad_beta


def _fake(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return empty_channels_last(x, tuple(x.shape)), gamma.new_empty(gamma.shape), gamma.new_empty(gamma.shape)


def _backward_fake(
    grad_z: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_channels_last(x, tuple(x.shape)), gamma.new_empty(gamma.shape), gamma.new_empty(gamma.shape)


_forward = define(
    "batch_norm_relu(Tensor x, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor, Tensor)",
    batch_norm_relu_ref,
    _fake,
)
_backward = define(
    "_batch_norm_relu_backward(Tensor grad_z, Tensor x, Tensor gamma, Tensor beta, Tensor mean, Tensor var, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    batch_norm_relu_backward_ref,
    _backward_fake,
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
