"""MobileNetV1 for small images, and nothing about how fast it runs.

Howard et al. 2017, https://arxiv.org/abs/1704.04861, with a stride-1 stem and four stride-2 blocks, so that a 32x32
image becomes a 2x2 map. At width 1.0 and 100 classes: 3,309,476 parameters, 46.4 M multiply-accumulates an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Init = Literal["default", "dirac"]

STEM_CHANNELS = 32
# (out_channels, stride) of the 13 depthwise-separable blocks
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    # Nothing reads the counter, because the momentum is a constant. Counting would be 27 kernels a step.
    norm.num_batches_tracked = None
    return norm


class DepthwiseSeparable(nn.Module):
    """Depthwise 3x3 -> BN -> ReLU -> pointwise 1x1 -> BN -> ReLU: [N, C, H, W] -> [N, out, H/stride, W/stride].

    Args:
        in_channels: C.
        out_channels: out.
        stride: of the depthwise convolution, 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise: nn.Module = nn.Conv2d(
            in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
        )
        self.norm1 = _norm(in_channels)
        self.pointwise: nn.Module = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out, H/stride, W/stride]."""
        x = F.relu(self.norm1(self.depthwise(x)), inplace=True)
        return F.relu(self.norm2(self.pointwise(x)), inplace=True)


class MobileNet(nn.Module):
    """MobileNetV1 with PyTorch's default initialisation: images [N, 3, S, S] -> logits [N, num_classes].

    Args:
        num_classes: the number of outputs of the linear head.
        width_mult: multiplies every number of channels; the product is rounded down, and is at least 8.
        channels: of the images that the stem sees: 3, or 1, which is the first of those that are given.
    """

    def __init__(self, num_classes: int = 100, width_mult: float = 1.0, channels: int = 3) -> None:
        super().__init__()

        def width(channels: int) -> int:
            return max(8, int(channels * width_mult))

        self.stem = nn.Conv2d(channels, width(STEM_CHANNELS), 3, padding=1, bias=False)
        channels = width(STEM_CHANNELS)
        self.norm = _norm(channels)
        blocks = []
        for out, stride in BLOCKS:
            blocks.append(DepthwiseSeparable(channels, width(out), stride))
            channels = width(out)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images [N, 3, S, S], or [N, 1, S, S] with channels = 1 -> logits [N, num_classes]."""
        x = F.relu(self.norm(self.stem(images[:, : self.stem.in_channels])), inplace=True)
        for block in self.blocks:
            x = block(x)
        # Not x.mean((2, 3)): convolutions do not recognise the strides of a mean's gradient as channels_last.
        x = F.avg_pool2d(x, x.shape[-2:]).flatten(1)
        logits: Tensor = self.head(x)
        return logits


def build_model(num_classes: int, width_mult: float, seed: int, channels: int = 3, init: Init = "default") -> MobileNet:
    """A MobileNet whose initial weights depend on the seed alone: they are drawn on the CPU for every device.

    Args:
        num_classes: as for `MobileNet`.
        width_mult: as for `MobileNet`.
        seed: a whole number from 0.
        channels: as for `MobileNet`.
        init: `default`, PyTorch's initialisation; or `dirac`, which then makes every pointwise convolution that keeps
            the number of channels the identity. The other weights are the same for both.

    Returns:
        The model, on the CPU, in training mode. PyTorch's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MobileNet(num_classes, width_mult, channels)
    if init == "dirac":
        for block in model.blocks:
            weight = block.get_parameter("pointwise.weight")
            if weight.shape[0] == weight.shape[1]:
                nn.init.dirac_(weight)
    return model


@torch.no_grad()
def copy_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies weights and statistics into those of a model.

    Not by `load_state_dict`, which asks for the counters of batch norm that this model does without.

    Args:
        model: its tensors are overwritten.
        tensors: by the name in `model.state_dict()`. What is not named stays.
    """
    own = model.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable numbers: BN scale and shift count, running statistics do not."""
    return sum(p.numel() for p in model.parameters())


def count_macs(num_classes: int = 100, width_mult: float = 1.0) -> int:
    """The multiply-accumulates of the convolutions and the head for one 32x32 image.

    Args:
        num_classes: as for `MobileNet`.
        width_mult: as for `MobileNet`.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        MobileNet(num_classes, width_mult).eval()(torch.empty(1, 3, 32, 32))
    return int(counter.get_total_flops()) // 2
