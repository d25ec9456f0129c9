"""The least work of each layer of a step, in bytes and operations, computed from the shapes of the model alone.

Every input and output tensor of an op counts once, in the compute dtype. Reading a map a second time for its statistics
does not count. Caches are ignored: a tensor counts again for each op that reads it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastcifar.config import Config
from fastcifar.measuring.kernels import (
    AUGMENTATION,
    BLOCK,
    COPIES,
    DEPTHWISE,
    HEAD,
    NORM,
    OPTIMIZER,
    POINTWISE,
    SEPARABLE,
    STEM,
)
from fastcifar.model import MobileNet
from fastcifar.ops.separable_block import suits
from fastcifar.target import Target

NORM_FLOPS = (6, 10)
"""Operations of BN and ReLU on one number, forward and backward. Forward: statistics 3, scale and shift 2, ReLU 1.
Backward: computing the value again 2, the mask of ReLU 1, two sums 3, the gradient 4."""
UPDATE_FLOPS = 6  # a product and a sum each for weight decay, momentum and step
AUGMENT_FLOPS = 2  # scale and shift of a pixel's channel; MixUp doubles it
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """The least work for a batch.

    Attributes:
        bytes: the bytes read and written.
        flops: the floating-point operations.
    """

    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Layer:
    """One op of the step, for all places of the model that have its shape.

    With fused ops a layer is what the engine runs as one op. Otherwise it is one module of the model. Optimizer,
    augmentation and casts are layers too.

    Attributes:
        name: kind, channels, map and stride, such as `depthwise 64 @32x32 s2`.
        kind: one of `kernels.KINDS`.
        modules: the names of the model's modules that the layer computes, in order, at its first place.
        count: the number of places with this shape.
        in_shape: the shape of the input of a batch.
        macs: the multiply-accumulates of the forward.
        forward: the work of the forward, at one place.
        backward: the work of the backward, at one place; None if there is no backward.
    """

    name: str
    kind: str
    modules: tuple[str, ...]
    count: int
    in_shape: Shape
    macs: int
    forward: Work
    backward: Work | None

    def directions(self) -> Iterator[tuple[str, Work]]:
        """`forward` and, if there is one, `backward`, each with its work."""
        yield "forward", self.forward
        if self.backward is not None:
            yield "backward", self.backward


@dataclass(frozen=True)
class Part:
    """A convolution, BN or linear module of the model.

    Attributes:
        name: the module's name in the model.
        module: the module.
        in_shape: the shape of its input, for a batch.
        out_shape: the shape of its output, for a batch.
    """

    name: str
    module: nn.Module
    in_shape: Shape
    out_shape: Shape

    @property
    def inputs(self) -> int:
        """The number of input values."""
        return math.prod(self.in_shape)

    @property
    def outputs(self) -> int:
        """The number of output values."""
        return math.prod(self.out_shape)

    @property
    def weights(self) -> int:
        """The number of trainable values."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def macs(self) -> int:
        """The multiply-accumulates of the forward; 0 for BN."""
        if isinstance(self.module, nn.BatchNorm2d):
            return 0
        # Every weight, except a bias, is used once for each output position of its channel.
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.numel() * self.outputs // self.out_shape[1]


@functools.lru_cache(maxsize=16)  # an ablation asks for the same few again and again
def walk(width_mult: float, num_classes: int, batch_size: int, channels: int = 3) -> tuple[Part, ...]:
    """The model's modules that have parameters, in the order of the forward. Nothing is computed.

    Args:
        width_mult: as for `MobileNet`.
        num_classes: as for `MobileNet`.
        batch_size: the number of images in a batch.
        channels: as for `MobileNet`.

    Returns:
        Each module with the shapes of its input and output for a batch.
    """
    parts: list[Part] = []
    with torch.device("meta"):
        model = MobileNet(num_classes, width_mult, channels)
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):

                def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                    parts.append(Part(name, module, tuple(inputs[0].shape), tuple(output.shape)))

                module.register_forward_hook(note)
        model(torch.empty(batch_size, 3, 32, 32))
    return tuple(parts)


def list_layers(target: Target, num_classes: int = 100) -> list[Layer]:
    """The layers of a step as the target's engine runs them, followed by casts, optimizer and augmentation.

    With `engine = fused` each depthwise block includes the BN before it, the last BN and ReLU are one op with the
    pooling, and the optimizer writes the weights in the compute dtype too, in place of casts. `compiled` has the layers
    of `eager`, because torch.compile chooses by itself what it fuses.

    Args:
        target: the settled config and its device.
        num_classes: as for `MobileNet`.

    Returns:
        One layer for each shape.
    """
    config, size = target.config, target.dtype.itemsize
    parts = walk(config.width_mult, num_classes, config.batch_size, config.channels)
    layers, rest = [], list(parts)
    while rest:
        first, *others = rest
        if isinstance(first.module, nn.BatchNorm2d) and config.engine == "fused" and len(others) > 1:
            conv, _, product = others[:3]
            shapes = conv.in_shape[1], product.out_shape[1], *conv.in_shape[2:]
            whole = target.fuses_pointwise and (target.device.type == "cpu" or suits(*shapes))
            length = 4 if whole else 3
            layers.append(_block(rest[:length], size))
            rest = rest[length:]
        elif len(rest) == 2 and config.engine == "fused":
            layers.append(_pooled_head(rest, size))
            rest = []
        else:
            layers.append(_head(first, parts[-2].out_shape, size) if len(rest) == 1 else _single(first, size))
            rest = others
    merged: dict[str, Layer] = {}
    for layer in layers:
        known = merged.get(layer.name)
        merged[layer.name] = replace(known, count=known.count + 1) if known else layer
    casts = [_casts(parts, size)] if config.precision != "fp32" and config.engine != "fused" else []
    return [*merged.values(), *casts, _optimizer(parts, config), _augmentation(config, size)]


def _single(part: Part, size: int) -> Layer:
    x, y, w, macs = part.inputs, part.outputs, part.weights, part.macs
    batch_size, channels, height, width = in_shape = part.in_shape
    where = f"@{height}x{width}"
    if isinstance(part.module, nn.BatchNorm2d):
        forward = Work(size * (x + y), NORM_FLOPS[0] * x)
        backward = Work(size * (2 * x + y), NORM_FLOPS[1] * x)
        return Layer(f"{NORM} {channels} {where}", NORM, (part.name,), 1, part.in_shape, macs, forward, backward)
    conv = part.module
    assert isinstance(conv, nn.Conv2d)
    forward = Work(size * (x + y + w), 2 * macs)
    backward = Work(size * (2 * x + y + 2 * w), 4 * macs)
    if conv.groups > 1:
        kind, name = DEPTHWISE, f"{DEPTHWISE} {channels} {where} s{conv.stride[0]}"
    elif conv.kernel_size == (1, 1):
        kind, name = POINTWISE, f"{POINTWISE} {channels}->{part.out_shape[1]} {where}"
    else:
        kind, name = STEM, f"{STEM} {channels}->{part.out_shape[1]} {where}"
        in_shape = (batch_size, 3, height, width)  # a stem of one channel takes the first of the batch's
        backward = Work(size * (x + y + w), 2 * macs)  # images need no gradient
    return Layer(name, kind, (part.name,), 1, in_shape, macs, forward, backward)


def _block(parts: Sequence[Part], size: int) -> Layer:
    """BN, ReLU, depthwise, BN, ReLU and, in a separable block, pointwise. The second BN's input, y, is written too."""
    conv, last = parts[1], parts[-1]
    u, y, out = conv.inputs, conv.outputs, last.outputs
    w, macs = sum(p.weights for p in parts if p.macs), sum(p.macs for p in parts)
    _, channels, height, width = conv.in_shape
    kind = BLOCK if len(parts) == 3 else SEPARABLE
    to = "" if kind == BLOCK else f"->{last.out_shape[1]}"
    return Layer(
        f"{kind} {channels}{to} @{height}x{width} s{height // conv.out_shape[2]}",
        kind,
        tuple(p.name for p in parts),
        1,
        conv.in_shape,
        macs,
        Work(size * (u + y + out + w), 2 * macs + NORM_FLOPS[0] * (u + y)),
        Work(size * (2 * u + y + out + 2 * w), 4 * macs + NORM_FLOPS[1] * (u + y)),
    )


def _head(part: Part, map_shape: Shape, size: int) -> Layer:
    """Average pooling of the last map and the linear layer; the loss after it is too small to count."""
    x, pooled, y, w, macs = math.prod(map_shape), part.inputs, part.outputs, part.weights, part.macs
    return Layer(
        f"pooling, head {part.in_shape[1]}->{part.out_shape[1]}",
        HEAD,
        (part.name,),
        1,
        map_shape,
        macs,
        Work(size * (x + y + w), 2 * macs + x),
        Work(size * (x + pooled + y + 2 * w), 4 * macs + x),
    )


def _pooled_head(parts: Sequence[Part], size: int) -> Layer:
    """The last BN and ReLU, pooled by the same op; and the linear layer, one op with the loss, which is backward."""
    norm, linear = parts
    x, pooled, w, macs = norm.inputs, linear.inputs, linear.weights, linear.macs
    return Layer(
        f"BN, ReLU, pooling, head {linear.in_shape[1]}->{linear.out_shape[1]}",
        HEAD,
        (norm.name, linear.name),
        1,
        norm.in_shape,
        macs,
        Work(size * (x + pooled), (NORM_FLOPS[0] + 1) * x),
        Work(size * (2 * x + 3 * pooled + 2 * w), 6 * macs + NORM_FLOPS[1] * x),
    )


def _casts(parts: Sequence[Part], size: int) -> Layer:
    """Casting the weights of convolutions and products to the compute dtype, and their gradients back to float32."""
    count = sum(part.weights for part in parts if part.macs)
    work = Work((4 + size) * count, count)
    return Layer("weights to and fro", COPIES, (), 1, (count,), 0, work, work)


def _optimizer(parts: Sequence[Part], config: Config) -> Layer:
    """The update: weight, gradient and momentum are read; weight and momentum are written.

    With `engine = fused` in 16 bits these are as many bytes for a product's weight: its gradient has 16 bits, and the
    weight is written in 16 bits too.
    """
    count = sum(part.weights for part in parts)
    work = Work(4 * count * (5 if config.momentum else 3), UPDATE_FLOPS * count)
    return Layer(OPTIMIZER, OPTIMIZER, (), 1, (count,), 0, work, None)


def _augmentation(config: Config, size: int) -> Layer:
    """Making the batch: bytes become normalised images; with MixUp each image is made of two."""
    shape = (config.batch_size, 3, 32, 32)
    count, sources = math.prod(shape), 2 if config.mixup_alpha else 1
    work = Work(count * (sources + size), AUGMENT_FLOPS * sources * count)
    return Layer(AUGMENTATION, AUGMENTATION, (), 1, shape, 0, work, None)
