"""Pointwise convolutions as matrix products. On CUDA their weights' gradients are computed beside the rest of backward.

Only the optimizer needs these gradients, while the gradients of the inputs are one chain, whose depthwise kernels leave
half of a large GPU idle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


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
        """a @ b, which nothing may read before `join`."""
        result = a.new_empty(a.shape[0], b.shape[1])  # of the current stream's memory, where it is used and freed
        with self.working((a, b)):
            return torch.mm(a, b, out=result)

    def join(self) -> None:
        """Makes the current stream wait for all work so far."""
        if self._used:  # else a captured stream would wait for one that is not captured
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._used.clear()


def pointwise(z: Tensor, weight: Tensor, side: SideStream | None = None) -> Tensor:
    """A 1x1 convolution computed as a matrix product over channels_last memory.

    Args:
        z: [N, C, H, W].
        weight: [out_channels, C, 1, 1], of z's dtype.
        side: computes the gradient of `weight`, which nothing may read before `SideStream.join`; None if it is
            computed like all others.

    Returns:
        [N, out_channels, H, W].
    """
    if side is not None:
        return cast(Tensor, _Product.apply(z, weight, side))  # type: ignore[no-untyped-call]
    return F.linear(z.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)


class _Product(torch.autograd.Function):
    """`pointwise`, with the same calls of the library as there; of the two in backward one is on the side stream."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, side: SideStream) -> Tensor:
        ctx.save_for_backward(z, weight)
        ctx.side = side
        return _maps(F.linear(_pixels(z), weight.flatten(1)), z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, weight = ctx.saved_tensors
        pixels, grads = _pixels(z), _pixels(grad)
        grad_z = grads.mm(weight.flatten(1))
        # After it, beside the depthwise kernels: two products at once would each have half of the GPU.
        grad_weight = ctx.side.product(grads.t(), pixels)
        return _maps(grad_z, z), grad_weight.view_as(weight), None


def _pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last memory -> [N * H * W, C], a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _maps(pixels: Tensor, like: Tensor) -> Tensor:
    """[N * H * W, channels] -> [N, channels, H, W], a view, with N, H and W of `like`."""
    n, _, h, w = like.shape
    return pixels.view(n, h, w, -1).permute(0, 3, 1, 2)
