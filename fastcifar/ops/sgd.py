"""A step of SGD with momentum for all parameters, in one pass, which also leaves their rounded copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcifar.ops._library import define


def sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    rounded: Sequence[Tensor],
    lr: Tensor,
    weight_decays: Sequence[float],
    momentum: float,
    nesterov: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Updates parameters and momentum buffers in place, with coupled weight decay and dampening 0.

    Equal to a step of `torch.optim.SGD(fused=True)` on the CPU to the last bit, on every device (but for a tensor's
    last few elements, where PyTorch itself rounds in another way than before them, and for the instruction set
    `generic`, which has no fused multiply-add): `g = grad + decay * p`, `v = momentum * v + g`,
    `p = p - lr * (g + momentum * v if nesterov else v)` in float32.

    Args:
        params: float32, each contiguous or channels_last.
        grads: of each parameter, in its shape and strides; float32 or, if there is a rounded copy, of the copy's dtype.
        momentum_buffers: float32, of each parameter, in its shape and strides; may be empty if momentum is 0.
        rounded: of each parameter a copy in bfloat16 (on CUDA also float16), in its shape and strides, which is
            written; an empty tensor where there is none. An empty list: no copies.
        lr: float32, one number, the learning rate. It is read on the device.
        weight_decays: of each parameter.
        momentum: the weight of the previous momentum, 0 for none.
        nesterov: whether the step looks ahead.
        grad_scale: float32, one number that the gradients are divided by; None for 1.
        found_inf: float32, one number; nothing is changed if it is not 0. None for 0.

    Raises:
        RuntimeError: an argument has another length, shape, strides, dtype or device; the message names it.
    """
    _sgd(params, grads, momentum_buffers, rounded, lr, weight_decays, momentum, nesterov, grad_scale, found_inf)


def sgd_ref(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    rounded: Sequence[Tensor],
    lr: Tensor,
    weight_decays: Sequence[float],
    momentum: float,
    nesterov: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """`sgd` in plain PyTorch."""
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        p, g = param.detach(), grad.to(param.dtype)
        g = g / grad_scale if grad_scale is not None else g
        g = g + p * weight_decays[i] if weight_decays[i] else g
        v = momentum_buffers[i] * momentum + g if momentum else g
        new = p - lr.view(()) * (g + v * momentum if momentum and nesterov else v)
        if found_inf is not None:
            new = torch.where(found_inf.view(()) == 0, new, p)
            v = torch.where(found_inf.view(()) == 0, v, momentum_buffers[i]) if momentum else v
        p.copy_(new)
        if momentum:
            momentum_buffers[i].copy_(v)
        if len(rounded) and rounded[i].numel():
            rounded[i].copy_(new)


_sgd = define(
    "sgd(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] rounded, Tensor lr,"
    " float[] weight_decays, float momentum, bool nesterov, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()",
    sgd_ref,
)
