"""The depthwise convolution as a module for any network: `DepthwiseConv3x3`, and `convert` for whole models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcifar.ops.dwconv3x3 import dwconv3x3

_KERNELS = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}
"""The dtypes of images that `dwconv3x3` takes, by the type of device."""


class DepthwiseConv3x3(nn.Conv2d):
    """A drop-in for `nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels)`, computed by `dwconv3x3`.

    It is an `nn.Conv2d` with the same parameters, initial values and state_dict, and it obeys autocast and
    torch.compile as one. It is fastest in a model in channels_last (`model.to(memory_format=torch.channels_last)`);
    other inputs are copied, and so are their outputs, which have the input's memory format. Under autocast a float32
    weight is not rounded. PyTorch computes what has no kernels: other dtypes than these, and float16 on the CPU.

    Args:
        channels: the number of input and of output channels.
        stride: 1 or 2.
        bias: whether a learnable number is added to each channel.
        device: of the parameters; None means PyTorch's default device.
        dtype: of the parameters, float32, bfloat16 or, on CUDA, float16; None means PyTorch's default dtype.

    Raises:
        ValueError: the stride is neither 1 nor 2.
    """

    def __init__(
        self,
        channels: int,
        stride: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if stride not in (1, 2):
            raise ValueError(f"stride = {stride!r}: expected 1 or 2")
        super().__init__(
            channels, channels, 3, stride, padding=1, groups=channels, bias=bias, device=device, dtype=dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] or [C, H, W] -> the same with (H - 1) // stride + 1 rows and (W - 1) // stride + 1 columns.

        Raises:
            RuntimeError: the input has another shape; the message names it.
        """
        if input.dim() == 3:
            return self(input[None])[0]  # type: ignore[no-any-return]
        device, dtype = input.device.type, input.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:  # autocast leaves float64 alone, too
            dtype = torch.get_autocast_dtype(device)
        if dtype not in _KERNELS.get(device, ()):
            return super().forward(input)
        output = dwconv3x3(input.to(dtype), self.weight, self.stride[0])
        if not input.is_contiguous(memory_format=torch.channels_last):
            output = output.contiguous()
        return output if self.bias is None else output + self.bias.to(output.dtype)[:, None, None]


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. Printed, it is a line for what was replaced and a line for each convolution that was left.

    Attributes:
        replaced: the names of the convolutions that are now a `DepthwiseConv3x3`.
        left: for each grouped convolution that does not fit, by name, the reason.
    """

    replaced: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"depthwise convolutions replaced: {len(self.replaced)}; grouped convolutions left: {len(self.left)}"]
        return "\n".join([*lines, *(f"  {name or 'the model itself'}: {why}" for name, why in self.left.items())])


def convert(model: nn.Module) -> Conversion:
    """Makes a `DepthwiseConv3x3` of every convolution of a model that fits. Its parameters and outputs stay the same.

    A convolution is changed in place. It keeps its parameters, its hooks and its place in the model, so that an
    optimizer that was made before still trains it. Convolutions without groups are not looked at.

    Args:
        model: any module, changed in place.

    Returns:
        What was replaced, and what was left and why.
    """
    replaced, left = [], {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, DepthwiseConv3x3):
            continue
        if why := _why_unfit(module):
            if module.groups > 1:
                left[name] = why
        else:
            module.__class__ = DepthwiseConv3x3
            replaced.append(name)
    return Conversion(tuple(replaced), left)


def _why_unfit(conv: nn.Conv2d) -> str:
    """Why `conv` does not compute what a `DepthwiseConv3x3` computes; empty if it does."""
    if type(conv) is not nn.Conv2d:
        return f"a {type(conv).__name__}, which may compute something else than nn.Conv2d"
    if not conv.groups == conv.in_channels == conv.out_channels:
        return f"{conv.in_channels} channels to {conv.out_channels} in {conv.groups} groups, not one group a channel"
    wanted: dict[str, list[object]] = {
        "kernel_size": [(3, 3)],
        "stride": [(1, 1), (2, 2)],
        "padding": [(1, 1), "same"],
        "dilation": [(1, 1)],
        "padding_mode": ["zeros"],
    }
    for name, allowed in wanted.items():
        if getattr(conv, name) not in allowed:
            return f"{name} = {getattr(conv, name)}, not {' or '.join(map(str, allowed))}"
    if conv.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {str(conv.weight.dtype).removeprefix('torch.')}, not float32, bfloat16 or float16"
    return ""
