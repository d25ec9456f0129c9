"""Pointwise convolutions as matrix products. On CUDA their weights' gradients are computed beside the rest of backward.

Only the optimizer needs these gradients, while the gradients of the inputs are one chain, whose kernels wait for each
other and leave parts of a large GPU idle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Aside = Callable[[Sequence[Tensor]], AbstractContextManager[object]]
"""Makes a context for work that only the optimizer or the next step needs, from the tensors that the work reads."""


def in_place(inputs: Sequence[Tensor]) -> AbstractContextManager[object]:
    """An `Aside` whose work is done where it stands."""
    return contextlib.nullcontext()


class SideStream:
    """A CUDA stream for work whose results are not needed before `join`.

    Args:
        device: where it works.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._used: list[Tensor] = []

    @contextlib.contextmanager
    def working(self, inputs: Sequence[Tensor]) -> Iterator[None]:
        """A context whose work is done on this stream, when all earlier work has been done.

        Args:
            inputs: what the work reads of the current stream's tensors. They are kept until `join`: PyTorch's
                allocator, which knows no reader on another stream, would give their memory to the next tensors.
        """
        self._used += inputs
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, which nothing may read before `join`.

        Args:
            a: [rows, length], or [batch, rows, length].
            b: [length, columns], or [batch, length, columns].

        Returns:
            [rows, columns], or [batch, rows, columns].
        """
        result = a.new_empty(*a.shape[:-1], b.shape[-1])  # of the current stream's memory, where it is used and freed
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        with self.working((a, b)):
            return multiply(a, b, out=result)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of the rows of x, which nothing may read before `join`."""
        result = x.new_empty(x.shape[1])
        with self.working((x,)):
            return torch.sum(x, 0, out=result)

    def join(self) -> None:
        """Makes the current stream wait for all work so far."""
        if self._used:  # else a captured stream would wait for one that is not captured
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._used.clear()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, side: SideStream | None = None) -> Tensor:
    """`F.linear` over rows.

    Args:
        x: [rows, channels].
        weight: [out_channels, channels], of x's dtype.
        bias: [out_channels], of x's dtype; None: none.
        side: computes the gradients of `weight` and `bias`, which nothing may read before `SideStream.join`; None if
            they are computed like all others.

    Returns:
        [rows, out_channels].
    """
    if side is None:
        return F.linear(x, weight, bias)
    return cast(Tensor, _Linear.apply(x, weight, bias, side))  # type: ignore[no-untyped-call]


def pointwise(z: Tensor, weight: Tensor, side: SideStream | None = None) -> Tensor:
    """A 1x1 convolution computed as a matrix product over channels_last memory.

    Args:
        z: [N, C, H, W].
        weight: [out_channels, C, 1, 1], of z's dtype.
        side: as for `linear`.

    Returns:
        [N, out_channels, H, W].
    """
    if side is None:
        return F.linear(z.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
    n, channels, h, w = z.shape
    pixels = z.permute(0, 2, 3, 1).reshape(-1, channels)
    return linear(pixels, weight.flatten(1), None, side).view(n, h, w, -1).permute(0, 3, 1, 2)


class _Linear(torch.autograd.Function):
    """`F.linear`, with the same calls of the library as there; of those in backward one is on the current stream."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, side: SideStream) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.side, ctx.has_bias = side, bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad.mm(weight)
        # After it, beside the depthwise kernels: two products at once would each have half of the GPU.
        grad_weight = ctx.side.product(grad.t(), x)
        return grad_x, grad_weight, ctx.side.sum(grad) if ctx.has_bias else None, None
