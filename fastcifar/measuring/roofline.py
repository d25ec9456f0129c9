"""The least time each layer could take on this device, and the time it takes.

Bytes and operations follow from the model's shapes. Every tensor that an op takes or gives counts once, read or
written, in the compute dtype; a second look at a map for its statistics, and what a cache saves between two ops, do
not. The floor is the longer of two times: the bytes at the speed of a copy of as many, the operations at the speed of a
large matrix product. Both speeds are measured in the same run, as the best of many. A layer's time is a median, of the
layer by itself, on tensors that it has just seen, as the copy has.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.config import Config
from fastcifar.cpu import MatmulPointwise
from fastcifar.loaders import ResidentLoader
from fastcifar.measuring.kernels import (
    AUGMENTATION,
    BLOCK,
    COLOURS,
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
from fastcifar.ops import batch_norm_relu, depthwise_block
from fastcifar.ops.separable_block import separable_block
from fastcifar.session import Session
from fastcifar.target import Target

NORM_FLOPS = (6, 10)
"""BN and ReLU on a number: forward (statistics 3, scale and shift 2, ReLU 1), backward (the value again 2, its mask 1,
the two sums 3, the gradient 4)."""
UPDATE_FLOPS = 6  # weight decay, momentum, step: a product and a sum each
AUGMENT_FLOPS = 2  # scale and shift of a pixel's channel; MixUp doubles it

COPY_BYTES = tuple(2**exponent for exponent in range(12, 30))
"""Sizes of the copies that are measured, read and written together: 4 KiB, which is the cost of a call, to 512 MiB."""

Shape = tuple[int, ...]
Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What must at least be done for a batch."""

    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """FLOP a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Layer:
    """What the engine runs as one op or, without fused ops, a function of the model; or another part of the step.

    Attributes:
        name: kind, channels, map and stride, such as `depthwise 64 @32x32 s2`.
        modules: names of the model's modules that it computes, in order; of the first layer of this shape.
        count: how many of this shape there are.
        in_shape: of the batch.
        macs: multiply-accumulates, forward.
        forward, backward: the work of one of them; backward is None where there is none.
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
        yield "forward", self.forward
        if self.backward is not None:
            yield "backward", self.backward


@dataclass(frozen=True)
class Part:
    """A convolution, BN or linear layer as the model's forward meets it."""

    name: str
    module: nn.Module
    in_shape: Shape
    out_shape: Shape

    @property
    def inputs(self) -> int:
        return math.prod(self.in_shape)

    @property
    def outputs(self) -> int:
        return math.prod(self.out_shape)

    @property
    def weights(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def macs(self) -> int:
        if isinstance(self.module, nn.BatchNorm2d):
            return 0
        # every weight but a bias meets every output position of its channel once
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.numel() * self.outputs // self.out_shape[1]


def walk(width_mult: float, num_classes: int, batch_size: int) -> list[Part]:
    """The model's layers with parameters, in order, with the shapes of a batch. Nothing is computed."""
    parts: list[Part] = []
    with torch.device("meta"):
        model = MobileNet(num_classes, width_mult)
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):

                def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                    parts.append(Part(name, module, tuple(inputs[0].shape), tuple(output.shape)))

                module.register_forward_hook(note)
        model(torch.empty(batch_size, 3, 32, 32))
    return parts


def list_layers(target: Target, num_classes: int = 100) -> list[Layer]:
    """The layers as the target's engine runs them, those of one shape as one, and the other parts of a step.

    With `engine = fused` a BN belongs to the depthwise block that it starts. What torch.compile fuses is its own
    choice: `compiled` has the layers of `eager`.
    """
    config, size = target.config, target.dtype.itemsize
    parts = walk(config.width_mult, num_classes, config.batch_size)
    layers, rest = [], parts
    while rest:
        first, *others = rest
        if isinstance(first.module, nn.BatchNorm2d) and config.engine == "fused" and len(others) > 1:
            length = 4 if config.fuse_pointwise else 3
            layers.append(_block(rest[:length], size))
            rest = rest[length:]
        else:
            layers.append(_head(first, parts[-2].out_shape, size) if len(rest) == 1 else _single(first, size))
            rest = others
    merged: dict[str, Layer] = {}
    for layer in layers:
        known = merged.get(layer.name)
        merged[layer.name] = replace(known, count=known.count + 1) if known else layer
    casts = [_casts(parts, size)] if config.precision != "fp32" else []
    return [*merged.values(), *casts, _optimizer(parts, config), _augmentation(config, size)]


def _single(part: Part, size: int) -> Layer:
    x, y, w, macs = part.inputs, part.outputs, part.weights, part.macs
    _, channels, height, width = part.in_shape
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
        backward = Work(size * (x + y + w), 2 * macs)  # images need no gradient
    return Layer(name, kind, (part.name,), 1, part.in_shape, macs, forward, backward)


def _block(parts: Sequence[Part], size: int) -> Layer:
    """BN, ReLU, depthwise, BN, ReLU and, in a separable block, pointwise. y, the second BN's input, is written too."""
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


def _casts(parts: Sequence[Part], size: int) -> Layer:
    """The weights of convolutions and products to the compute dtype, and their gradients back to float32."""
    count = sum(part.weights for part in parts if part.macs)
    work = Work((4 + size) * count, count)
    return Layer("weights to and fro", COPIES, (), 1, (count,), 0, work, work)


def _optimizer(parts: Sequence[Part], config: Config) -> Layer:
    """Weight, gradient and momentum are read, weight and momentum written."""
    count = sum(part.weights for part in parts)
    work = Work(4 * count * (5 if config.momentum else 3), UPDATE_FLOPS * count)
    return Layer(OPTIMIZER, OPTIMIZER, (), 1, (count,), 0, work, None)


def _augmentation(config: Config, size: int) -> Layer:
    """Bytes become normalised images; with MixUp there are two of them for each."""
    shape = (config.batch_size, 3, 32, 32)
    count, sources = math.prod(shape), 2 if config.mixup_alpha else 1
    work = Work(count * (sources + size), AUGMENT_FLOPS * sources * count)
    return Layer(AUGMENTATION, AUGMENTATION, (), 1, shape, 0, work, None)


# ---- the device ----


@dataclass(frozen=True)
class Roofs:
    """What this device reached.

    Attributes:
        copies: (bytes read and written, bytes a second) of each copy, by size.
        flops_per_second: of a large matrix product in the compute dtype.
    """

    copies: tuple[tuple[int, float], ...]
    flops_per_second: float

    @property
    def memory(self) -> float:
        """Bytes a second of the largest copy, which no cache holds."""
        return self.copies[-1][1]

    @property
    def cache(self) -> float:
        """Bytes a second of the fastest copy."""
        return max(rate for _, rate in self.copies)

    def bytes_per_second(self, num_bytes: int) -> float:
        """Of a copy of that size; between two measured ones by the logarithm of the size."""
        sizes = [math.log(size) for size, _ in self.copies]
        rates = [rate for _, rate in self.copies]
        x = min(max(math.log(num_bytes), sizes[0]), sizes[-1])
        right = min(max(bisect.bisect_left(sizes, x), 1), len(sizes) - 1)
        share = (x - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return rates[right - 1] + share * (rates[right] - rates[right - 1])

    def is_memory_bound(self, work: Work) -> bool:
        return work.bytes / self.bytes_per_second(work.bytes) >= work.flops / self.flops_per_second

    def seconds(self, work: Work) -> float:
        """The floor."""
        return max(work.bytes / self.bytes_per_second(work.bytes), work.flops / self.flops_per_second)


def measure_roofs(
    device: torch.device, dtype: torch.dtype, copy_bytes: Sequence[int] = COPY_BYTES, side: int | None = None
) -> Roofs:
    """The best of many copies of each size, and of many products of two square matrices with that many rows."""
    copies = []
    for num_bytes in copy_bytes:
        source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device)
        copies.append((num_bytes, num_bytes / _best(partial(torch.empty_like(source).copy_, source), device)))
    side = side or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = partial(torch.mm, a, b, out=torch.empty_like(a))
    return Roofs(tuple(copies), 2 * side**3 / _best(product, device))


def _best(call: Call, device: torch.device) -> float:
    [times] = time_calls([call], device)
    return min(times)


# ---- time ----


def time_calls(calls: Sequence[Call], device: torch.device, seconds: float = 0.15) -> list[list[float]]:
    """Seconds of each of `calls`, at least five times, in turns, so that what disturbs one disturbs all.

    On CUDA each is captured in a graph, many times in a row, and replayed between events: no host clock can time a
    kernel, and eager launches would measure the host.
    """
    if device.type == "cuda":
        runs = [_captured(call) for call in calls]
    else:
        runs = [_timed(call) for call in calls]
    for run in runs * 2:  # caches, pages, threads
        run()
    once = sum(run() for run in runs)
    rounds = min(50, max(5, round(seconds / max(once, 1e-6))))
    turns = [[run() for run in runs] for _ in range(rounds)]
    return [list(times) for times in zip(*turns, strict=True)]


def _timed(call: Call) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def _captured(call: Call, launches: int = 20) -> Callable[[], float]:
    """Runs a graph that holds `call` so many times; returns the seconds of one. All of it is on one stream."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # handles, workspaces and choices of algorithm are made lazily
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(launches):
            call()

    def run() -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / launches

    return run


def time_layer(layer: Layer, session: Session) -> list[float]:
    """Median seconds of one such layer forward and, where it has one, backward (of both, less forward).

    An eager layer's backward brings its weight's gradient back to float32, as in training. Its weight is cast already;
    on CUDA each time, because a captured backward must not reach what another stream has cast.
    """
    config, device, dtype = session.target.config, session.target.device, session.target.dtype
    engine, loader = session.engine, session.loader
    if layer.kind == AUGMENTATION:
        if not isinstance(loader, ResidentLoader):  # whose batches come ready, and in order
            return []
        loader.begin(1)
        return _medians([lambda: loader.batch(0)], device)
    if layer.kind == OPTIMIZER:
        for parameter in engine.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        medians = _medians([engine.optimizer.step], device)
        engine.optimizer.zero_grad(set_to_none=True)
        return medians
    if layer.kind == COPIES:
        weights = [p.detach().clone() for p in engine.model.parameters() if p.ndim > 1]  # the way back rounds them
        casts = [torch.empty_like(w, dtype=dtype) for w in weights]
        together = config.engine == "fused"
        return _medians([lambda: _copy(casts, weights, together), lambda: _copy(weights, casts, together)], device)
    x = torch.randn(layer.in_shape, device=device).to(dtype)
    x = x.contiguous(memory_format=session.target.memory_format)
    x.requires_grad_(layer.kind != STEM)
    modules = [engine.model.get_submodule(name) for name in layer.modules]
    if config.engine == "fused":
        modules = [_in_dtype(module, dtype) for module in modules]
    forward = _function(layer, modules, fused=config.engine == "fused")
    targets = [p for module in modules for p in module.parameters()] + ([x] if x.requires_grad else [])
    cast = torch.autocast(device.type, dtype, config.precision != "fp32", cache_enabled=device.type == "cpu")
    with cast:
        grad = torch.randn_like(forward(x))

        def both() -> object:
            return torch.autograd.grad(forward(x), targets, grad)

        there, and_back = _medians([lambda: forward(x), both], device)
    return [there, max(and_back - there, 0.0)]


def _medians(calls: Sequence[Call], device: torch.device) -> list[float]:
    return [statistics.median(times) for times in time_calls(calls, device)]


def _copy(targets: list[Tensor], sources: list[Tensor], together: bool) -> None:
    """As the engine does it: the fused one in a single call, autocast one by one."""
    if together:
        torch._foreach_copy_(targets, sources)
    else:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def _in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A convolution or linear layer with its weight in `dtype`, as the fused engine has it; others as they are."""
    if isinstance(module, nn.BatchNorm2d) or getattr(module, "groups", 1) > 1:
        return module
    module = copy.deepcopy(module)
    assert isinstance(module.weight, Tensor)
    module.weight = nn.Parameter(module.weight.to(dtype))
    return module


def _function(layer: Layer, modules: Sequence[Any], *, fused: bool) -> Callable[[Tensor], Tensor]:
    """What the engine computes in place of `modules`."""
    first = modules[0]
    if layer.kind in (BLOCK, SEPARABLE):
        norm, conv, norm1, *pointwise = modules
        bns = (norm.weight, norm.bias, conv.weight, norm1.weight, norm1.bias)
        if pointwise:
            return lambda u: separable_block(u, *bns, pointwise[0].weight, norm.eps, conv.stride[0])[0]
        return lambda u: depthwise_block(u, *bns, norm.eps, conv.stride[0])[0]
    if layer.kind == NORM:
        if fused:
            return lambda u: batch_norm_relu(u, first.weight, first.bias, first.eps)[0]
        return lambda x: F.relu(first(x), inplace=True)
    if layer.kind == HEAD:
        return lambda x: first(F.avg_pool2d(x, x.shape[-2:]).flatten(1))
    if layer.kind == POINTWISE and fused:
        return MatmulPointwise(first)
    return first  # type: ignore[no-any-return]


# ---- the result ----


@dataclass(frozen=True)
class Row:
    """One direction of a layer: its least work, floor and time, each for one of `layer.count`."""

    layer: Layer
    direction: str
    work: Work
    floor_seconds: float
    memory_bound: bool
    seconds: float | None

    @property
    def times_floor(self) -> float | None:
        return None if self.seconds is None else self.seconds / self.floor_seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer.name,
            "kind": self.layer.kind,
            "count": self.layer.count,
            "direction": self.direction,
            "bytes": self.work.bytes,
            "flops": self.work.flops,
            "floor_seconds": self.floor_seconds,
            "bound": "memory" if self.memory_bound else "compute",
            "seconds": self.seconds,
            "times_floor": self.times_floor,
        }


def rows_of(layers: Sequence[Layer], roofs: Roofs, times: Sequence[Sequence[float] | None]) -> list[Row]:
    """A row for each direction of each layer; `times` as `time_layer` gives them, None where not measured."""
    rows = []
    for layer, seconds in zip(layers, times, strict=True):
        for (direction, work), taken in itertools.zip_longest(layer.directions(), seconds or ()):
            rows.append(Row(layer, direction, work, roofs.seconds(work), roofs.is_memory_bound(work), taken))
    return rows


def draw_roofline(rows: Sequence[Row], roofs: Roofs, path_stem: Path, title: str, most: int = 10) -> list[Path]:
    """Draws the measured `rows` under the roofs, to `path_stem`.svg and .png: FLOP a byte against FLOP a second.

    A point's area is its share of the time. The `most` that lose most time over their floors are numbered, and named
    at the side.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    points = [_Point(row, row.work.intensity, row.work.flops / row.seconds) for row in rows if row.seconds]
    total = sum(point.seconds for point in points)
    style: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**style, "svg.hashsalt": "fastcifar"}):
        figure = Figure(figsize=(12, 6.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes, side = figure.subplots(1, 2, width_ratios=[5, 2])
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xscale="log", yscale="log", xlabel="FLOP a byte that must be read or written", ylabel="FLOP/s reached")
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(color="#ececec")
        axes.set_axisbelow(True)
        axes.set_xlim(min(p.x for p in points) / 1.6, max(p.x for p in points) * 1.6)
        axes.set_ylim(min(p.y for p in points) / 2.5, max([roofs.flops_per_second, *(p.y for p in points)]) * 2)
        for p in sorted(points, key=lambda p: -p.seconds):
            colour = COLOURS[p.row.layer.kind]
            face = "none" if p.row.direction == "backward" else colour
            axes.scatter(p.x, p.y, s=16 + 1200 * p.seconds / total, facecolors=face, edgecolors=colour, lw=1.5)
        worst = sorted(points, key=lambda p: -p.lost)[:most]
        _name(side, worst)
        _legend(side, [p.row.layer.kind for p in points])
        figure.draw_without_rendering()  # gives the axes their place, from which distances and slopes on paper follow
        _number(axes, worst)
        _draw_roofs(axes, roofs)
        paths = [Path(f"{path_stem}{ending}") for ending in (".svg", ".png")]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=120)
    return paths


@dataclass(frozen=True)
class _Point:
    row: Row
    x: float
    y: float

    @property
    def seconds(self) -> float:
        return self.row.layer.count * (self.row.seconds or 0.0)

    @property
    def lost(self) -> float:
        return self.seconds - self.row.layer.count * self.row.floor_seconds


def _number(axes: Any, points: Sequence[_Point]) -> None:
    """Writes the points' numbers beside them, those of neighbours one below the other."""
    to_points = 72 / axes.get_figure().dpi
    places = {n: axes.transData.transform((p.x, p.y)) * to_points for n, p in enumerate(points, 1)}
    written: list[tuple[float, float]] = []
    for number in sorted(places, key=lambda n: -places[n][1]):
        (x, y), p = places[number], points[number - 1]
        at = min([y + 3, *(other - 11 for near, other in written if abs(near - x) < 25)])
        written.append((x, at))
        axes.annotate(
            str(number),
            (p.x, p.y),
            xytext=(17, at - y),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=COLOURS[p.row.layer.kind],
            arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkA": 1, "shrinkB": 3},
        )


def _name(side: Any, points: Sequence[_Point]) -> None:
    side.axis("off")
    side.text(0, 1, "most time over the floor", transform=side.transAxes, va="top", fontweight="bold", fontsize=9)
    for number, p in enumerate(points, 1):
        layer, row = p.row.layer, p.row
        times = f" (x{layer.count})" if layer.count > 1 else ""
        side.text(
            0,
            1 - 0.06 * number,
            f"{number}  {layer.name}{times}, {row.direction}\n"
            f"    {p.seconds * 1e3:.2f} ms, {row.times_floor or 0:.1f} times the floor",
            transform=side.transAxes,
            va="top",
            fontsize=8,
            color=COLOURS[layer.kind],
            linespacing=1.3,
        )


def _draw_roofs(axes: Any, roofs: Roofs) -> None:
    low, high = axes.get_xlim()
    peak, grey = roofs.flops_per_second, "#555555"
    for rate, name, dashes in ((roofs.memory, "memory", "-"), (roofs.cache, "cache", "--")):
        ends = [low / 100, peak / rate]
        axes.plot(ends, [x * rate for x in ends], dashes, color=grey, lw=1.2, zorder=1)
        (x0, y0), (x1, y1) = axes.transData.transform([(x, x * rate) for x in ends])
        left, right = max(low, axes.get_ylim()[0] / rate), min(high, peak / rate)  # of its visible part
        at = left * (max(right, left) / left) ** 0.25
        axes.text(
            at,
            at * rate * 1.12,
            f"copy, {name}: {rate / 1e9:,.0f} GB/s",
            rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
            rotation_mode="anchor",
            ha="center",
            color=grey,
            fontsize=9,
            clip_on=True,
        )
    axes.plot([peak / roofs.cache, high * 100], [peak, peak], color=grey, lw=1.2, zorder=1)
    axes.text(
        high / 1.1, peak * 1.08, f"matrix product: {peak / 1e12:,.2f} TFLOP/s", ha="right", color=grey, fontsize=9
    )


def _legend(axes: Any, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    def dot(colour: str, label: str, face: str) -> Line2D:
        return Line2D([], [], ls="", marker="o", color=colour, markerfacecolor=face, label=label)

    handles = [dot(COLOURS[kind], kind, COLOURS[kind]) for kind in dict.fromkeys(kinds)]
    handles += [dot("#333333", "forward", "#333333"), dot("#333333", "backward", "none")]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 0), frameon=False, fontsize=9, ncols=2)
