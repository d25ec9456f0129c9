"""Batch norm over the images of all processes that train a run together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastcifar.ops._library import accumulate_dtype
from fastcifar.ops._moments import merge_rows
from fastcifar.ops.batch_norm_relu import normalize


def synchronise(model: nn.Module) -> None:
    """Makes every batch norm of a model one over the batch of all processes, in place."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Until the context ends, batch norm is over each process's own images, so that no process waits for another."""
    norms = [module for module in model.modules() if isinstance(module, SynchronisedBatchNorm)]
    for norm in norms:
        norm.apart = True
    try:
        yield
    finally:
        for norm in norms:
            norm.apart = False


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics in training are of the images of all processes.

    PyTorch's SyncBatchNorm is for CUDA only, and needs the counter of batches that the model does without.

    Attributes:
        apart: whether the statistics are of this process's images alone.
    """

    apart = False

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape and dtype."""
        if not self.training or self.apart:
            return super().forward(input)
        output, mean, var, count = _Normalised.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        return cast(Tensor, output)


class _Normalised(torch.autograd.Function):
    """(x, gamma, beta, eps) -> the normalised x, and the mean, variance and count of all processes' pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(accumulate_dtype(x))
        mean = wide.mean((0, 2, 3))
        deviations = (wide - mean[:, None, None]).square().sum((0, 2, 3))
        own = torch.stack((torch.full_like(mean, x.numel() / x.shape[1]), mean, deviations))
        rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, own)
        all_rows = torch.stack(rows)
        mean, var = merge_rows(all_rows)
        count = all_rows[:, 0, 0].sum()
        ctx.save_for_backward(x, gamma, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return normalize(wide, gamma, beta, mean, var, eps).to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mean, var, count = ctx.saved_tensors
        rstd = torch.rsqrt(var + ctx.eps)
        x_hat = (x.to(mean.dtype) - mean[:, None, None]) * rstd[:, None, None]
        grad = grad.to(mean.dtype)
        own = torch.stack((grad.sum((0, 2, 3)), (grad * x_hat).sum((0, 2, 3))))
        everyone = own.clone()
        dist.all_reduce(everyone)
        centred = grad - (everyone[0][:, None, None] + x_hat * everyone[1][:, None, None]) / count
        grad_x = centred * (gamma * rstd)[:, None, None]
        return grad_x.to(x.dtype), own[1], own[0], None
