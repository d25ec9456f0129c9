"""The depthwise layers of MobileNet at width 1.0 on 32x32 images, and inputs for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16] + ([torch.float16] if DEVICE == "cuda" else [])
LAYERS = [
    (32, 32, 1),
    (64, 32, 2),
    (128, 16, 1),
    (128, 16, 2),
    (256, 8, 1),
    (256, 8, 2),
    (512, 4, 1),
    (512, 4, 2),
    (1024, 2, 1),
]
"""(channels, height and width, stride). Each shape is listed once; the network has 512 channels on 4x4 five times."""


@dataclass(frozen=True)
class Case:
    """One layer at one batch size and dtype.

    Attributes:
        batch: the number of images.
        channels: the number of channels.
        size: the height and width of the input map.
        stride: the stride of the convolution.
        dtype: the dtype of the activations.
    """

    batch: int
    channels: int
    size: int
    stride: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.channels}@{self.size}x{self.size} s{self.stride} N={self.batch}"

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    @property
    def out_channels(self) -> int:
        """The channels after the block's pointwise convolution."""
        return self.channels * (2 if self.stride == 2 or self.channels == 32 else 1)

    def activation(self, size: int) -> Tensor:
        x = torch.randn(self.batch, self.channels, size, size, device=DEVICE)
        return x.to(self.dtype).to(memory_format=torch.channels_last)

    def per_channel(self) -> Tensor:
        return torch.rand(self.channels, device=DEVICE) + 0.5

    def weight(self) -> Tensor:
        return torch.randn(self.channels, 1, 3, 3, device=DEVICE) / 3

    def block_weights(self) -> list[Tensor]:
        """Of the whole block: gamma, beta, depthwise, gamma, beta, pointwise."""
        pointwise = torch.randn(self.out_channels, self.channels, 1, 1, device=DEVICE) / self.channels**0.5
        norms = [self.per_channel() for _ in range(4)]
        return [*norms[:2], self.weight(), *norms[2:], pointwise]

    def bytes(self, *sizes: int) -> int:
        """The bytes of maps of this layer's batch, channels and dtype, with these heights and widths."""
        return sum(self.batch * self.channels * size * size for size in sizes) * self.dtype.itemsize

    def block_bytes(self, weights: Iterable[Tensor]) -> int:
        """The least bytes of the whole block, forward and backward, as `fastcifar profile` counts them.

        Forward these are u, y between the two convolutions, the output and the convolutions' weights; backward the same
        with the output's gradient in its place, and the gradients of u and of the weights.
        """
        out = self.batch * self.out_channels * self.out_size**2 * self.dtype.itemsize
        maps = self.bytes(*[self.size] * 3, *[self.out_size] * 2) + 2 * out
        return maps + 3 * sum(weight.nbytes for weight in weights if weight.ndim == 4)


def cases(full: bool) -> list[Case]:
    """The cases to run: every layer at each batch size and dtype of the full run, or of the short run."""
    batches = {dtype: (128, 512) if full else (128,) for dtype in DTYPES}
    if DEVICE == "cuda" and not full:
        batches = {torch.bfloat16: (128,)}
    return [Case(n, *layer, dtype) for dtype, sizes in batches.items() for n in sizes for layer in LAYERS]
