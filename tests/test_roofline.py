"""The roofline: bytes and operations compared with known facts and a count by hand; floors from measured roofs."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny import tiny_config
from torch import Tensor

from fastcifar import ops
from fastcifar.config import Config
from fastcifar.measuring import layer_times, roofs
from fastcifar.measuring.cell import random_images
from fastcifar.measuring.kernels import BLOCK, DEPTHWISE, HEAD, NORM, POINTWISE, SEPARABLE, STEM
from fastcifar.measuring.layer_times import time_layer
from fastcifar.measuring.layers import Layer, Work, list_layers, walk
from fastcifar.measuring.roofline import rows_of
from fastcifar.measuring.roofs import Roofs, measure_roofs
from fastcifar.measuring.timing import time_calls
from fastcifar.model import build_model, count_macs, count_parameters
from fastcifar.session import Session
from fastcifar.target import Target

pytestmark = pytest.mark.machine

CPU = torch.device("cpu")


def layers_of(**settings: object) -> list[Layer]:
    return list_layers(
        Target(Config.model_validate({"device": "cpu", "precision": "fp32", "engine": "eager", **settings}))
    )


def macs(layers: list[Layer]) -> int:
    return sum(layer.count * layer.macs for layer in layers)


def test_the_walk_adds_up_to_the_known_facts() -> None:
    parts = walk(1.0, 100, 1)
    assert sum(part.weights for part in parts) == 3_309_476
    assert sum(part.macs for part in parts) == count_macs() == 46_446_592
    assert sum(part.outputs for part in parts if isinstance(part.module, torch.nn.Conv2d)) == 411_648
    assert len(parts) == 1 + 1 + 13 * 4 + 1


@pytest.mark.parametrize(
    "engine, own_products",
    [("eager", False), ("fused", False), ("fused", True), ("compiled", False)],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 128])
def test_every_layer_is_counted_once_however_it_is_fused(
    monkeypatch: pytest.MonkeyPatch, engine: str, own_products: bool, batch_size: int
) -> None:
    monkeypatch.setattr(Target, "fuses_pointwise", own_products)
    layers = layers_of(batch_size=batch_size, engine=engine)
    assert macs(layers) == 46_446_592 * batch_size
    kinds = {
        kind: sum(layer.count for layer in layers if layer.kind == kind) for kind in (layer.kind for layer in layers)
    }
    expected = {
        "eager": {STEM: 1, DEPTHWISE: 13, POINTWISE: 13, NORM: 27, HEAD: 1},
        "compiled": {STEM: 1, DEPTHWISE: 13, POINTWISE: 13, NORM: 27, HEAD: 1},
        "fused": {STEM: 1, BLOCK: 13, POINTWISE: 13, HEAD: 1},
    }[engine]
    if own_products:
        expected = {STEM: 1, SEPARABLE: 13, HEAD: 1}
    assert {kind: count for kind, count in kinds.items() if kind in expected} == expected
    assert len(kinds) == len(expected) + 2  # optimizer and augmentation
    assert count_parameters(build_model(100, 1.0, 0)) == layers[-2].in_shape[0]


def test_bytes_and_operations_of_a_layer_as_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "fuses_pointwise", False)
    eager = {layer.name: layer for layer in layers_of(batch_size=2)}
    x = 2 * 64 * 32 * 32
    y = x // 4
    assert eager["depthwise 64 @32x32 s2"].forward == Work(4 * (x + y + 9 * 64), 2 * 9 * y)
    assert eager["depthwise 64 @32x32 s2"].backward == Work(4 * (x + y + x + 2 * 9 * 64), 4 * 9 * y)
    assert eager["pointwise 32->64 @32x32"].forward == Work(4 * (x // 2 + x + 32 * 64), 2 * 32 * x)
    assert eager["BN and ReLU 64 @32x32"].backward == Work(4 * 3 * x, 10 * x)
    assert eager["stem 3->32 @32x32"].backward == Work(4 * (2 * 3072 + x // 2 + 3 * 9 * 32), 2 * 27 * x // 2)
    grey = next(layer for layer in layers_of(batch_size=2, channels=1) if layer.kind == STEM)
    assert grey.forward == Work(4 * (2 * 1024 + x // 2 + 9 * 32), 2 * 9 * x // 2) and grey.name == "stem 1->32 @32x32"
    assert eager["depthwise 512 @4x4 s1"].count == 5
    assert eager["optimizer"].forward.bytes == 4 * 5 * 3_309_476
    half = {layer.name: layer for layer in layers_of(batch_size=2, engine="fused", precision="bf16")}
    block = half["depthwise block 64 @32x32 s2"]
    assert block.forward == Work(2 * (x + y + y + 9 * 64), 2 * 9 * y + 6 * (x + y))
    assert block.backward == Work(2 * (y + x + y + x + 2 * 9 * 64), 4 * 9 * y + 10 * (x + y))
    last = 2 * 1024 * 2 * 2
    head = half["BN, ReLU, pooling, head 1024->100"]
    assert head.forward == Work(2 * (last + 2048), 7 * last)
    assert head.backward == Work(2 * (2 * last + 3 * 2048 + 2 * 102_500), 6 * 2 * 102_400 + 10 * last)
    assert half["augmentation"].forward.bytes == 2 * 3072 * (1 + 2)
    bn_weights = 2 * sum(
        part.out_shape[1] for part in walk(1.0, 100, 1) if isinstance(part.module, torch.nn.BatchNorm2d)
    )
    assert "weights to and fro" not in half, "the optimizer writes the weights of products in 16 bits"
    half = {layer.name: layer for layer in layers_of(batch_size=2, engine="eager", precision="bf16")}
    assert half["weights to and fro"].in_shape == (3_309_476 - bn_weights,)


def test_the_layers_of_a_gpu_are_its_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.target._has_fast_bf16", lambda device: True)
    names = [layer.name for layer in layers_of(device="cuda", engine="fused", precision="bf16")]
    assert names[0] == "stem 3->32 @32x32" and names[1] == "separable block 32->64 @32x32 s1"
    assert names[3] == "separable block 128->128 @16x16 s1" and names[4] == "depthwise block 128 @16x16 s2"
    assert names[-3:] == ["BN, ReLU, pooling, head 1024->100", "optimizer", "augmentation"]


def test_a_floor_is_the_longer_of_two_times_at_the_speed_of_a_copy_of_that_size() -> None:
    best = Roofs(((1_000, 100.0), (100_000, 10.0)), flops_per_second=50.0)
    assert (best.memory, best.cache) == (10.0, 100.0)
    assert best.bytes_per_second(10_000) == pytest.approx(55)
    assert (best.bytes_per_second(10), best.bytes_per_second(10**9)) == (100.0, 10.0)
    assert best.seconds(Work(1_000, 100)) == pytest.approx(10) and best.is_memory_bound(Work(1_000, 100))
    assert best.seconds(Work(1_000, 5_000)) == pytest.approx(100) and not best.is_memory_bound(Work(1_000, 5_000))


@pytest.mark.parametrize("engine", ["eager", "fused"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels", [3, 1])
def test_every_layer_of_a_tiny_model_is_timed(
    engine: str, precision: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        layer_times, "time_calls", lambda calls, device: [[(call(), 1.0 + i)[1]] for i, call in enumerate(calls)]
    )
    target = Target.of(tiny_config(engine=engine, precision=precision, mixup_alpha=0.2, channels=channels))
    session = Session(target, 100)
    session.feed(random_images(64), print)
    before = {name: tensor.clone() for name, tensor in session.engine.model.named_parameters()}
    layers = list_layers(target)
    times = [time_layer(layer, session) for layer in layers]
    for layer, seconds in zip(layers, times, strict=True):
        assert seconds == ([1.0, 2.0] if layer.backward else [1.0]), layer.name
    for name, tensor in session.engine.model.named_parameters():
        assert torch.equal(tensor, before[name]), name
    rows = rows_of(layers, Roofs(((1_000, 1e9), (10**9, 1e9)), 1e12), times)
    assert len(rows) == sum(1 + (layer.backward is not None) for layer in layers)


def test_roofs_of_this_device() -> None:
    best = measure_roofs(CPU, torch.float32, copy_bytes=(2**16, 2**20), side=64)
    assert [size for size, _ in best.copies] == [2**16, 2**20]
    assert all(math.isfinite(rate) and rate > 1e6 for _, rate in best.copies) and best.flops_per_second > 1e6


@pytest.mark.parametrize("fastest", [0, 1])
def test_the_fastest_product_counts(fastest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's product or its 1x1 convolution: which of them is slow differs from processor to processor."""
    results: list[Tensor] = []

    def times(calls: Sequence[Callable[[], Tensor]], device: torch.device) -> list[list[float]]:
        results[:] = [call() for call in calls]
        return [[2.0, 1.0] if i == fastest else [4.0, 3.0] for i in range(len(calls))]

    monkeypatch.setattr(roofs, "time_calls", times)
    found = measure_roofs(CPU, torch.float32, copy_bytes=(2**12,), side=8)
    assert found.flops_per_second == 2 * 8**3
    assert [len(r.flatten()) for r in results] == [64, 64], "products of one size"


@pytest.mark.parametrize(
    "isa, of_bf16, of_fp32",
    [("amx", 12.0, 2.0), ("amx", 3.0, 1.0), ("avx512_bf16", 12.0, 1.0), (None, 12.0, 1.0)],
)
def test_float32_is_as_fast_as_six_products_of_bfloat16_where_it_is_made_of_them(
    isa: str | None, of_bf16: float, of_fp32: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: on AMX a fused step in float32 could be faster than its floor."""
    speeds = {torch.float32: 1.0, torch.bfloat16: of_bf16, torch.uint8: 1.0}
    monkeypatch.setattr(ops, "cpu_isa", lambda: isa)
    monkeypatch.setattr(roofs, "time_calls", lambda calls, device: [[1 / speeds[call().dtype]] for call in calls])
    for dtype, speed in ((torch.float32, of_fp32), (torch.bfloat16, of_bf16)):
        assert measure_roofs(CPU, dtype, copy_bytes=(2**12,), side=8).flops_per_second == speed * 2 * 8**3


def test_calls_take_turns() -> None:
    order: list[int] = []
    times = time_calls([lambda: order.append(0), lambda: order.append(1)], CPU, seconds=0.0)
    assert order == [0, 1] * (len(order) // 2) and [len(t) for t in times] == [5, 5]
