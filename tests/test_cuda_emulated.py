"""The CUDA kernels, launchers and ops, compiled for the CPU (emu/cuda_emu.h). No GPU and no nvcc are needed."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import emulator
import pytest
import torch
import torch.nn.functional as F
from op_cases import (
    CUDA_OPS,
    classifier_arguments,
    pool_calls,
    rows_of_halves,
    separable_calls,
    sgd_arguments,
    statistics_arguments,
    stem_calls,
    updated,
)
from torch import Tensor

from fastcifar import ops
from fastcifar.augment import normalization_table
from fastcifar.errors import FastcifarError
from fastcifar.ops._library import check_schema, references
from fastcifar.ops._moments import merge_rows
from fastcifar.ops.cases import calls as calls_of_cases
from fastcifar.ops.cases import check as check_case
from fastcifar.ops.cases import check_into, results

pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to build the emulated kernels"),
    pytest.mark.sanitized,
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 3, 5, 7), (2, 65, 5, 7), (1, 129, 2, 2), (3, 64, 2, 2), (2, 34, 4, 4), (1, 1, 1, 1), (1, 6, 33, 31)]
SHAPES += [(2, 34, 8, 7)]  # tiles fill its rows and not, with stride 2, its columns
# The last ones have maps that a cluster keeps: of one, two and eight blocks, the last of which have few images or none;
# 8x8 in 16 bits only
SHAPES += [(2, 32, 16, 8), (5, 16, 4, 4), (20, 32, 4, 4), (70, 16, 2, 2), (5, 16, 8, 8), (70, 24, 8, 8)]
# channels, height and width, stride, channels of the pointwise product
LAYERS = [(32, 32, 1, 64), (64, 32, 2, 128), (128, 16, 1, 128), (128, 16, 2, 256), (256, 8, 1, 256), (256, 8, 2, 512)]
LAYERS += [(512, 4, 1, 512)] * 5 + [(512, 4, 2, 1024), (1024, 2, 1, 1024)]
EPS = 1e-5


class Emulated:
    """The ops of the emulated library, and the emulator's own settings."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(library)
        self.ops = torch.ops.fastcifar_emulated
        self.knobs = ctypes.CDLL(str(library))

    def __call__(self, name: str, *args: Any, seed: int = 1) -> tuple[Tensor, ...]:
        self.knobs.emu_set_seed(seed)
        result = getattr(self.ops, name)(*args)
        return result if isinstance(result, tuple) else (result,)

    def launches(self, name: str, *args: Any) -> int:
        """The number of kernels that the op launches. The kernels do not run."""
        before = self.knobs.emu_launches()
        self.knobs.emu_set_idle(True)
        self(name, *args)
        self.knobs.emu_set_idle(False)
        return int(self.knobs.emu_launches() - before)


@pytest.fixture(scope="module")
def emulated() -> Iterator[Emulated]:
    library = os.environ.get("FASTCIFAR_EMULATED_LIBRARY") or emulator.build(emulator.PLAIN)
    yield Emulated(Path(library))


@pytest.fixture
def before_hopper(emulated: Emulated) -> Iterator[Emulated]:
    """The same on a GPU whose blocks cannot form clusters."""
    emulated.knobs.emu_set_cluster_limit(1)
    yield emulated
    emulated.knobs.emu_set_cluster_limit(16)


@pytest.fixture
def portable_clusters(emulated: Emulated) -> Iterator[Emulated]:
    """The same on a GPU whose clusters have no more blocks than every GPU's with clusters."""
    emulated.knobs.emu_set_cluster_limit(8)
    yield emulated
    emulated.knobs.emu_set_cluster_limit(16)


def activation(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


def block_arguments(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(u, gamma0, beta0, w, gamma1, beta1)"""
    c = shape[1]
    gamma0, beta0, gamma1, beta1 = (torch.randn(c) + 0.5 for _ in range(4))
    return activation(*shape, dtype=dtype), gamma0, beta0, torch.randn(c, 1, 3, 3), gamma1, beta1


def calls(shape: tuple[int, int, int, int], dtype: torch.dtype, stride: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every op with arguments of this shape."""
    n, c, h, w = shape
    u, gamma0, beta0, weight, gamma1, beta1 = block_arguments(shape, dtype)
    grad = activation(n, c, (h - 1) // stride + 1, (w - 1) // stride + 1, dtype=dtype)
    yield "dwconv3x3", (u, weight, stride)
    for need_x, need_w in ((True, True), (True, False), (False, True)):
        yield "_dwconv3x3_backward", (grad, u, weight, stride, need_x, need_w)
    yield "batch_norm_relu", (u, gamma0, beta0, EPS)
    _, y, *statistics = references["depthwise_block"](u, gamma0, beta0, weight, gamma1, beta1, EPS, stride)
    yield "_batch_norm_relu_backward", (activation(*shape, dtype=dtype), u, gamma0, beta0, *statistics[:2], EPS)
    yield "depthwise_block", (u, gamma0, beta0, weight, gamma1, beta1, EPS, stride)
    yield "depthwise_block", (u, gamma0, beta0, weight, gamma1, beta1, EPS, stride, statistics[0], statistics[1])
    if n:
        rows = rows_of_halves(u)
        yield "depthwise_block", (u, gamma0, beta0, weight, gamma1, beta1, EPS, stride, None, None, rows)
    arguments = (grad, u, y, gamma0, beta0, weight, gamma1, beta1, *statistics, EPS, stride)
    yield "_depthwise_block_backward", arguments
    yield "dwconv3x3_affine_relu", (u, gamma0, beta0, weight, gamma1, beta1, stride)


def without_gradients_of_moments(calls: Iterable[tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Those of the calls of a pool for which a GPU has kernels; only the CPU has such gradients."""
    yield from ((name, args) for name, args in calls if len(args) != 8)


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def wide(args: tuple[Any, ...]) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


def check(emulated: Emulated, name: str, args: tuple[Any, ...]) -> None:
    """Checks that an output is as close to float64 as the PyTorch reference in the op's own dtypes."""
    got, reference, truth = emulated(name, *args), references[name](*args), references[name](*wide(args))
    if isinstance(reference, Tensor):
        reference, truth = (reference,), (truth,)
    # A block's inner ReLU may differ where float32 and float64 differ in a sign; its grad_u is rounded twice.
    block = name in ("_depthwise_block_backward", "_separable_block_backward")
    slack = 1e-4 if block else 2e-6
    for i, (g, r, t) in enumerate(zip(got, reference, truth, strict=True)):
        assert g.dtype == r.dtype and g.shape == r.shape, (name, i)
        weight = g.shape[1:] in ((1, 3, 3), (3, 3, 3))
        assert g.dim() != 4 or weight or g.is_contiguous(memory_format=torch.channels_last), (name, i)
        if g.numel() and t.norm() < 1e-9:  # the gradient of a BN over a single number
            assert g.double().abs().max() < 1e-3, (name, i)
        elif g.numel():
            if g.dim() == 3 and not name.startswith("_"):  # partial moments, however many rows they are in
                assert g.shape == r.shape, name
                g, r, t = (torch.cat(merge_rows(rows)) for rows in (g, r, t))
            limit = (6 if block and i == 0 else 2.5) * error(r, t) + slack
            assert error(g, t) <= limit, f"{name}, output {i}: error {error(g, t):.2e}, allowed {limit:.2e}"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ops_agree_with_their_references(
    emulated: Emulated, dtype: torch.dtype, stride: int, shape: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    for name, args in calls(shape, dtype, stride):
        check(emulated, name, args)
        if name in ("depthwise_block", "_depthwise_block_backward"):
            check_into(name, args, emulated.ops)


# All but the last two, whose rows are not whole vectors, run on the (emulated) tensor cores except in float32. The
# second, third and fifth have too many channels for both products of the backward in one kernel, and the third for a
# streamed forward too. The fourth has more tiles than warps and blocks, and a last one that is cut.
@pytest.mark.parametrize(
    "shape, out_channels",
    [
        ((2, 32, 8, 8), 64),
        ((5, 136, 4, 4), 200),
        ((2, 264, 4, 4), 272),
        pytest.param((521, 8, 9, 9), 24, marks=pytest.mark.slow),
        ((9, 128, 5, 7), 144),
        ((3, 72, 5, 7), 120),
        ((70, 40, 11, 11), 96),
        ((3, 64, 5, 7), 70),
        ((2, 3, 5, 7), 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_separable_block_agrees_with_its_reference(
    emulated: Emulated, dtype: torch.dtype, stride: int, shape: tuple[int, int, int, int], out_channels: int
) -> None:
    torch.manual_seed(0)
    for name, args in separable_calls(block_arguments(shape, dtype), out_channels, stride):
        check(emulated, name, args)


# The last three: all eight blocks of a cluster have images, the last one few; as many pixels as a 4x4 map
@pytest.mark.parametrize(
    "shape",
    [*SHAPES, (120, 32, 2, 2), (128, 16, 4, 4), (33, 16, 8, 2)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pool_agrees_with_its_reference(
    emulated: Emulated, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    _, c, h, w = shape
    is_kept = h * w in (4, 16) and c % 16 == 0
    for name, args in without_gradients_of_moments(pool_calls(shape, dtype)):
        if len(args) == 5:
            args[4][:, 1] += 1  # other means than x has: those that are given count
        check(emulated, name, args)
        assert emulated.launches(name, *args) == (1 if is_kept or len(args) == 5 else 2)
        assert all(map(torch.equal, emulated(name, *args, seed=0), emulated(name, *args, seed=2)))


# The last four: tiles cut on both sides, and fewer blocks than rows of moments, and far fewer than tiles. Where the
# weight has the images' 16 bits, the second and the last run on the (emulated) tensor cores, and some of SHAPES do.
@pytest.mark.parametrize(
    "shape",
    [*SHAPES, (1, 34, 35, 70), (24, 40, 18, 34), (300, 2, 2, 2), (300, 8, 2, 2)],
    ids=lambda s: "x".join(map(str, s)),
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stem_agrees_with_its_reference(
    emulated: Emulated, dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    for name, args in stem_calls(shape, dtype):
        check(emulated, name, args)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_pixel_of_a_stem_is_in_its_moments(emulated: Emulated, dtype: torch.dtype) -> None:
    """Each pixel counts once, the first row is not empty, and rows that no block writes are empty."""
    shapes = [(2, 3, 5, 7), (300, 2, 2, 2), (9, 48, 33, 31), (72, 34, 16, 16)]
    for shape in shapes if dtype == torch.float32 else [(1, 8, 5, 6), (300, 8, 2, 2), (9, 48, 33, 34)]:
        n, c, h, w = shape
        images, weight = activation(n, 3, h, w, dtype=dtype), torch.randn(c, 3, 3, 3).to(dtype)
        _, rows = emulated("stem", images, weight)
        assert torch.equal(rows[:, 0].sum(0), torch.full((c,), float(n * h * w))) and (rows[0, 0] > 0).all(), shape
        assert not rows[(rows[:, 0] == 0).all(1)].any(), shape


@pytest.mark.parametrize("stride", [1, 2])
def test_an_empty_batch(emulated: Emulated, stride: int) -> None:
    for name, args in calls((0, 3, 5, 7), torch.float32, stride):
        assert emulated.launches(name, *args) == 0
        got, reference = emulated(name, *args), references[name](*args)
        for g, r in zip(got, reference if isinstance(reference, tuple) else (reference,), strict=True):
            torch.testing.assert_close(g, r)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_partial_rows_than_a_block_merges(emulated: Emulated, dtype: torch.dtype) -> None:
    """Large batches of few channels: clusters merge the rows."""
    torch.manual_seed(0)
    for name, args in calls((150, 2, 16, 8), dtype, 1):
        check(emulated, name, args)
    u, gamma0, beta0, *_ = block_arguments((150, 2, 16, 8), dtype)
    assert emulated.launches("batch_norm_relu", u, gamma0, beta0, EPS) == 2


@pytest.mark.slow
def test_a_warp_with_several_tiles_of_many_channels(before_hopper: Emulated) -> None:
    """Without clusters there are no more blocks of a streamed product than rows of moments."""
    torch.manual_seed(0)
    shape = (130, 72, 9, 9)
    for name, args in separable_calls(block_arguments(shape, torch.bfloat16), 72, 1):
        check(before_hopper, name, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_before_hopper(before_hopper: Emulated, dtype: torch.dtype) -> None:
    """Without clusters a kernel merges many rows, and small maps take two or three kernels."""
    torch.manual_seed(0)
    for shape in ((150, 2, 16, 8), (5, 16, 4, 4), (3, 64, 2, 2), (3, 16, 8, 8)):
        pools = without_gradients_of_moments(pool_calls(shape, dtype))
        for name, args in (*calls(shape, dtype, 1), *pools):
            check(before_hopper, name, args)
    for name, args in stem_calls((9, 40, 18, 34), dtype):
        check(before_hopper, name, args)
    u, gamma0, beta0, *_ = block_arguments((150, 2, 16, 8), dtype)
    assert before_hopper.launches("batch_norm_relu", u, gamma0, beta0, EPS) == 3
    small, gamma, beta, *rest = block_arguments((5, 16, 4, 4), dtype)
    assert before_hopper.launches("depthwise_block", small, gamma, beta, *rest, EPS, 1) == 3
    assert before_hopper.launches("batch_norm_relu_pool", small, gamma, beta, EPS) == 2


def test_where_clusters_have_eight_blocks(portable_clusters: Emulated) -> None:
    """A cluster has eight channels of maps of 8x8 pixels, and sixteen of others."""
    torch.manual_seed(0)
    for side, channels, stride in ((8, 24, 1), (8, 8, 2), (4, 16, 1)):
        shape = (70, channels, side, side)
        for name, args in calls(shape, torch.bfloat16, stride):
            check(portable_clusters, name, args)
        block = block_arguments(shape, torch.bfloat16)
        assert portable_clusters.launches("depthwise_block", *block, EPS, stride) == 1


def test_no_more_kernels_than_planned(emulated: Emulated) -> None:
    expected = {"dwconv3x3": [1], "_dwconv3x3_backward": [2, 1, 2], "batch_norm_relu": [2]}
    expected |= {"_batch_norm_relu_backward": [2], "depthwise_block": [3, 2, 2], "_depthwise_block_backward": [3]}
    expected |= {"dwconv3x3_affine_relu": [1]}
    counted: dict[str, list[int]] = {}
    expected |= {"separable_block": [3, 2], "_separable_block_backward": [4, 4]}
    expected |= {"stem": [1, 1], "_stem_backward": [2, 2, 2]}
    shape = (2, 64, 16, 8)
    separable = separable_calls(block_arguments(shape, torch.bfloat16), 64, 1)
    stems = stem_calls(shape, torch.bfloat16)
    for name, args in (*calls(shape, torch.bfloat16, 1), *separable, *stems):
        counted.setdefault(name, []).append(emulated.launches(name, *args))
    assert {name: counts for name, counts in counted.items() if name in expected} == expected


def test_no_more_kernels_in_a_step_than_planned(emulated: Emulated) -> None:
    """The network's 13 blocks at batch 128, where launching a kernel takes as long as running it.

    With `depthwise_block` the pointwise products do not count: they are 13 more launches forward and 26 backward. With
    `separable_block` they are part of the op.
    """
    counted = {"depthwise_block": [0, 0], "separable_block": [0, 0]}
    for i, (channels, size, stride, out_channels) in enumerate(LAYERS):
        block = block_arguments((128, channels, size, size), torch.bfloat16)
        y = activation(128, channels, size // stride, size // stride, dtype=torch.bfloat16)
        grad = activation(128, out_channels, size // stride, size // stride, dtype=torch.bfloat16)
        pointwise, statistics = torch.ones(out_channels, channels, 1, 1), [torch.ones(channels)] * 4
        rows = torch.ones(9, 3, channels)  # the stem or the block before passes them on
        given = (None, None, rows) if i == 0 else ()  # between two depthwise_blocks is PyTorch's product
        u, *parameters = block
        for name, forward, backward in (
            ("depthwise_block", (*block, EPS, stride, *given), (y, u, y, *parameters, *statistics, EPS, stride)),
            (
                "separable_block",
                (*block, pointwise, EPS, stride, rows),
                (grad, u, y, *parameters, pointwise, *statistics, EPS, stride),
            ),
        ):
            counted[name][0] += emulated.launches(name, *forward)
            counted[name][1] += emulated.launches(f"_{name}_backward", *backward)
    assert counted == {"depthwise_block": [24, 25], "separable_block": [37, 76]}


def test_bitwise_the_same_in_any_order_of_threads_and_blocks(emulated: Emulated) -> None:
    torch.manual_seed(0)
    shape = (2, 34, 5, 6)
    separable = separable_calls(block_arguments(shape, torch.bfloat16), 36, 1)
    stems = (call for s in (shape, (24, 34, 18, 34), (300, 40, 2, 2)) for call in stem_calls(s, torch.bfloat16))
    planes = (call for s in (1, 2) for call in calls((20, 8, 8, 8), torch.bfloat16, s) if "depthwise" in call[0])
    for name, args in (*calls(shape, torch.bfloat16, 1), *separable, *stems, *planes):
        first = emulated(name, *args, seed=0)
        for seed in (1, 2):
            for a, b in zip(first, emulated(name, *args, seed=seed), strict=True):
                assert torch.equal(a, b), name


def test_statistics_survive_a_large_mean(emulated: Emulated) -> None:
    x = (torch.randn(8, 4, 8, 8) + torch.tensor([0.0, 1e2, 1e4, -1e4])[:, None, None]).contiguous(
        memory_format=torch.channels_last
    )
    _, mean, var = emulated("batch_norm_relu", x, torch.ones(4), torch.zeros(4), EPS)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)
    weight = torch.zeros(4, 3, 3, 3)
    weight[:, :, 1, 1] = torch.randn(4, 3)
    weight[:, 2, 1, 1] = 1
    u, rows = emulated("stem", x[:, :3], weight)
    mean, var = merge_rows(rows)
    torch.testing.assert_close(mean.double(), u.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), u.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("size, dtype", [(8, torch.bfloat16), (4, torch.float32), (2, torch.float32)])
def test_statistics_of_a_small_map_survive_a_large_mean(emulated: Emulated, size: int, dtype: torch.dtype) -> None:
    """A cluster has all of a channel. More images than it holds take other kernels."""
    torch.manual_seed(0)
    u, gamma0, _, weight, gamma1, beta1 = block_arguments((70, 32, size, size), dtype)
    u += torch.linspace(-1e4, 1e4, 32)[:, None, None]
    weight[:] = 0
    weight[:, :, 1, 1] = 1e3  # y is 1e3 * (norm(u) + 100), a large mean too
    arguments = (u, gamma0, torch.full((32,), 100.0), weight, gamma1, beta1, EPS, 1)
    _, y, mean0, var0, mean1, var1 = emulated("depthwise_block", *arguments)
    _, *of_pool = emulated("batch_norm_relu_pool", *arguments[:3], EPS)
    for x, mean, var in ((u, mean0, var0), (y, mean1, var1), (u, *of_pool)):
        torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(var.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)
    check(emulated, "_batch_norm_relu_pool_backward", (torch.randn(70, 32).to(dtype), *arguments[:3], *of_pool, EPS))
    assert emulated.launches("depthwise_block", *arguments) == 1
    many = u[:1].expand(129, 32, size, size).contiguous(memory_format=torch.channels_last)
    assert emulated.launches("depthwise_block", many, *arguments[1:]) > 1


@pytest.mark.parametrize("shape, stride", [((2, 129, 1, 1), 1), ((2, 65, 2, 2), 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_a_norm_over_two_numbers(
    emulated: Emulated, dtype: torch.dtype, shape: tuple[int, int, int, int], stride: int
) -> None:
    """The bug: the difference of two large numbers was their gradient. Only a GPU's tests had such shapes."""
    torch.manual_seed(0)
    for name, args in calls_of_cases(shape, dtype, stride):
        check_case(name, args, getattr(emulated.ops, name))


def test_not_a_number_stays_one(emulated: Emulated) -> None:
    for name, args in (*calls((2, 4, 4, 4), torch.float32, 1), *pool_calls((2, 16, 4, 4), torch.float32)):
        if name.startswith("_"):
            continue
        x = args[0].clone(memory_format=torch.channels_last)
        x[0, 1, 2, 2] = float("nan")
        assert emulated(name, x, *args[1:])[0][0, 1].isnan().any(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_stem_keeps_what_is_not_finite_in_its_place(emulated: Emulated, dtype: torch.dtype) -> None:
    """On tensor cores, too, no pixel outside of a patch and no weight of another channel is multiplied with it."""
    torch.manual_seed(0)
    x, w = activation(2, 3, 9, 36, dtype=dtype), torch.randn(16, 3, 3, 3).to(dtype)
    grad = activation(2, 16, 9, 36, dtype=dtype)
    assert emulated("_stem_backward", grad, x, w)[0].isfinite().all()
    for channel, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        images = x.clone(memory_format=torch.channels_last)
        images[0, channel, 2, 3::5] = images[1, channel, 8, 0] = value
        u, exact = emulated("stem", images, w)[0], F.conv2d(images.double(), w.double(), padding=1)
        assert torch.equal(u.isnan(), exact.isnan()) and torch.equal(u.isinf(), exact.isinf())
        weight, of_one = w.clone(), grad.clone(memory_format=torch.channels_last)
        weight[5, channel, 1, 1] = of_one[1, 5, 4, 4] = value
        others = torch.arange(16) != 5
        u, rows = emulated("stem", x, weight)
        assert torch.equal(u.isfinite().all((0, 2, 3)), others) and torch.equal(rows[0].isfinite().all(0), others)
        grad_w = emulated("_stem_backward", of_one, x, w)[0]
        assert torch.equal(grad_w.isfinite().all((1, 2, 3)), others)


def test_memory_formats_and_views(emulated: Emulated) -> None:
    """Inputs not in channels_last, not contiguous or not aligned to 16 bytes, and bfloat16 weights, are read right."""
    torch.manual_seed(0)
    x = activation(2, 34, 5, 7, dtype=torch.bfloat16)
    w = torch.randn(34, 1, 3, 3)
    expected = emulated("dwconv3x3", x, w, 1)[0]
    storage = torch.empty(x.numel() + 1, dtype=x.dtype)
    shifted = storage[1:].view(2, 5, 7, 34).permute(0, 3, 1, 2).copy_(x)
    assert shifted.data_ptr() % 16
    strided = torch.stack([x, x], dim=-1).contiguous()[..., 0]
    for other in (x.contiguous(), shifted, strided):
        assert torch.equal(emulated("dwconv3x3", other, w, 1)[0], expected)
    half = w.bfloat16()
    assert torch.equal(emulated("dwconv3x3", x, half, 1)[0], emulated("dwconv3x3", x, half.float(), 1)[0])
    assert emulated("_dwconv3x3_backward", expected, x, half, 1, False, True)[1].dtype == torch.bfloat16
    images = activation(2, 3, 5, 8, dtype=torch.bfloat16)
    for channels in (34, 40):  # the latter on tensor cores
        w = torch.randn(channels + 1, 3, 3, 3, dtype=torch.bfloat16)[1:]
        assert w.data_ptr() % 16
        outputs = emulated("stem", images, w.clone())
        for x, weight in ((images.contiguous(), w), (images, w.to(memory_format=torch.channels_last))):
            assert all(map(torch.equal, emulated("stem", x, weight), outputs))
        for weight in (w, w.to(memory_format=torch.channels_last)):
            grads = [emulated("_stem_backward", g, images, weight)[0] for g in (outputs[0], outputs[0].contiguous())]
            assert torch.equal(*grads) and grads[0].dtype == torch.bfloat16 and grads[0].stride() == weight.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix, paste", [(False, False), (True, False), (True, True)])
def test_training_batch_is_the_reference_to_the_last_bit(
    emulated: Emulated, dtype: torch.dtype, mix: bool, paste: bool
) -> None:
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (7, 9, 9, 3), dtype=torch.uint8), torch.arange(7) + 10
    index, partner = torch.tensor([3, 0, 6, 6, 2, 1, 4, 5]), torch.tensor([4, 0, 1, 3, 2, 2, 0, 1])
    top, left = torch.randint(0, 5, (2, 8))
    flip = torch.tensor([True, False, True, False, True, True, False, True])
    table = normalization_table((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    mixing = (partner, torch.tensor([0.3, 0.9])) if mix else (None, None)
    holes = (torch.tensor([[2, 9, 0, 4], [-3, 5, 7, 99]]) if paste else None, torch.randint(-4, 9, (8, 2)))
    epoch = (images, labels, index, top, left, flip, *mixing, *holes)

    def both(step: int, rows: int, *given: Any) -> None:
        args = (torch.tensor(step), 5, rows, table, 2, 4, dtype)
        assert emulated.launches("training_batch", *given, *args) == 1
        for seed in (0, 1):
            got = emulated("training_batch", *given, *args, seed=seed)
            for ours, theirs in zip(got, references["training_batch"](*given, *args), strict=True):
                assert ours.shape == theirs.shape and torch.equal(ours, theirs)

    for step, rows in ((0, 5), (1, 3), (1, 1), (0, 0)):
        both(step, rows, *(epoch if rows > 1 else (*epoch[:6], None, None, None, None)))
    if mix:
        assert emulated("training_batch", *epoch, torch.tensor(1), 5, 0, table, 2, 4, dtype)[3] == mixing[1][1]
    # numbers out of range are clamped
    wild_mixing, tame_mixing = (((p, mixing[1]) if mix else mixing) for p in (partner + 100, partner * 0 + 4))
    wild = (images, labels, index + 100, top - 100, left + 100, flip, *wild_mixing, *holes)
    tame = (images, labels, index * 0 + 6, top * 0, left * 0 + 4, flip, *tame_mixing, *holes)
    for step in (0, -7):
        got = emulated("training_batch", *wild, torch.tensor(step), 5, 5, table, 2, 4, dtype)
        expected = references["training_batch"](*tame, torch.tensor(0), 5, 5, table, 2, 4, dtype)
        assert all(map(torch.equal, got, expected))
    got = emulated("training_batch", *epoch, torch.tensor(9), 5, 5, table, 2, 4, dtype)
    assert torch.equal(got[1], labels[index[[5, 6, 7, 7, 7]]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, classes", [(1, 1), (5, 3), (131, 100), (1100, 9)])
def test_mixup_cross_entropy_agrees_with_its_reference(
    emulated: Emulated, dtype: torch.dtype, rows: int, classes: int
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(rows, classes).mul(3).add(5).to(dtype)
    logits[0] = 20  # if logits are equal, the first one is the prediction
    labels, partner_labels = torch.randint(0, classes, (2, rows))
    labels[0] = 0
    for mixing, smoothing in (((partner_labels, torch.tensor(0.3)), 0.1), ((None, None), 0.0)):
        args = (logits, labels, *mixing, smoothing)
        check(emulated, "mixup_cross_entropy", args)
        first = emulated("mixup_cross_entropy", *args, seed=0)
        assert all(map(torch.equal, first, emulated("mixup_cross_entropy", *args, seed=2)))
        assert emulated.launches("mixup_cross_entropy", *args) == (1 if rows <= 1024 else 2)
        backward_args = (torch.tensor(0.7), logits, first[3], labels, *mixing, smoothing)
        check(emulated, "_mixup_cross_entropy_backward", backward_args)
        assert emulated.launches("_mixup_cross_entropy_backward", *backward_args) == 1
        [expected] = emulated("_mixup_cross_entropy_backward", *backward_args)
        for seed in (0, 2):
            totals = torch.tensor([1000.1, 77.7], dtype=torch.float64)
            expected_totals, together = totals + first[2], (*args, torch.tensor(0.7), totals)
            [got] = emulated("mixup_cross_entropy_gradient", *together, seed=seed)
            assert torch.equal(got, expected) and torch.equal(totals, expected_totals)
            assert emulated.launches("mixup_cross_entropy_gradient", *together) == (1 if rows <= 1024 else 2)
    wrong = emulated("mixup_cross_entropy", logits, labels - 1, None, None, 0.1)
    assert wrong[0].isnan(), "a label out of range does not pass unseen"


# Batches of one block and several, of one cluster and several, whose last blocks may have no image; of nine slices of
# channels one block takes two in turn
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(
    "rows, channels, classes",
    [(1, 128, 2), (16, 128, 100), (20, 384, 128), (128, 256, 100), (130, 128, 100), (3, 1152, 1)],
)
def test_classifier_gradient_agrees_with_its_reference(
    emulated: Emulated, dtype: torch.dtype, rows: int, channels: int, classes: int
) -> None:
    torch.manual_seed(0)
    for mixed, smoothing in ((True, 0.1), (False, 0.0)):
        given = classifier_arguments(rows, channels, classes, dtype, mixed, smoothing=smoothing)
        check_classifier(emulated, given)
        assert emulated.launches("classifier_gradient", *given) == (1 if rows <= 128 else 2)
    labels, totals = given[3].clone(), given[-1].clone()
    labels[-1] = classes
    emulated("classifier_gradient", *given[:3], labels, *given[4:-1], totals)
    assert totals.isnan().tolist() == [True, False], "a label out of range does not pass unseen"


def test_many_clusters_of_the_classifier_compute_both_products(emulated: Emulated) -> None:
    torch.manual_seed(0)
    given = classifier_arguments(900, 128, 9, torch.bfloat16, True, smoothing=0.1)
    check_case("classifier_gradient", given, emulated.ops.classifier_gradient)


def test_classifier_gradient_needs_clusters(before_hopper: Emulated) -> None:
    with pytest.raises(RuntimeError, match="classifier_gradient: on CUDA it takes .* compute capability 9.0"):
        before_hopper("classifier_gradient", *classifier_arguments(3, 128, 2, torch.bfloat16, False))


def check_classifier(emulated: Emulated, given: tuple[Any, ...]) -> None:
    """As `check_case`. Of logits without a sum the gradient is `mixup_cross_entropy_gradient`'s to the last bit."""
    check_case("classifier_gradient", given, emulated.ops.classifier_gradient)
    got, again = ([t := given[-1].clone(), *emulated("classifier_gradient", *given[:-1], t, seed=s)] for s in (0, 2))
    assert all(map(torch.equal, got, again))
    pooled, weight, bias, *targets, totals = given
    expected_totals, weight = totals.clone(), torch.eye(*weight.shape, dtype=weight.dtype)
    [expected] = emulated("mixup_cross_entropy_gradient", F.linear(pooled, weight, bias), *targets, expected_totals)
    grad_pooled, _, grad_bias = emulated("classifier_gradient", pooled, weight, bias, *targets, totals)
    assert torch.equal(grad_pooled[:, : len(bias)], expected)
    torch.testing.assert_close(grad_bias, expected.sum(0))
    torch.testing.assert_close(totals, expected_totals)


@pytest.mark.parametrize("narrow", [None, torch.bfloat16, torch.float16], ids=str)
def test_sgd_is_the_same_as_on_the_cpu(emulated: Emulated, narrow: torch.dtype | None) -> None:
    """To the last bit where the CPU has a kernel with fused multiply-add, else as close as the reference."""
    torch.manual_seed(0)
    shapes = [(1,), (0,), (100,), (7, 3, 3, 3), (4097,)]
    for momentum, nesterov, shift, scale in (
        (0.9, True, 0, None),
        (0.9, False, 1, None),
        (0.0, False, 0, torch.full((1,), 8.0)),
    ):
        arguments = sgd_arguments(shapes, narrow, momentum, nesterov, shift=shift, grad_scale=scale)
        exact = ops.cpu_isa() in ("avx2", "avx512") and narrow != torch.float16
        results = []
        for op in (emulated.ops.sgd, torch.ops.fastcifar.sgd if exact else references["sgd"]):
            given = [[t.clone() for t in a] if i < 4 else a for i, a in enumerate(arguments)]
            op(*given)
            results.append(sum((given[i] for i in (0, 2, 3)), []))
        for got, expected in zip(*results, strict=True):
            assert torch.equal(got, expected) if exact else torch.allclose(got, expected), "another bit"
    many = sgd_arguments([(3,)] * 83, narrow, 0.9, True)
    assert emulated.launches("sgd", *many) == 1
    assert emulated.launches("sgd", *sgd_arguments([(3,)] * 90, narrow, 0.9, True)) == 2
    before = many[0][0].clone()
    emulated("sgd", *many, torch.ones(1))
    assert torch.equal(many[0][0], before), "an overflow changes nothing"


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_update_statistics_is_the_cpus_to_the_last_bit(emulated: Emulated, momentum: float, shift: int) -> None:
    """Where the CPU has a fused multiply-add, else as close as the reference."""
    torch.manual_seed(0)
    arguments = statistics_arguments([1, 0, 100, 256, 257, 1024, *[3] * 30], momentum, shift=shift)
    exact = ops.cpu_isa() not in ("generic", None)
    expected = updated(arguments, ops.update_statistics if exact else references["update_statistics"])
    for got, wanted in zip(sum(updated(arguments, emulated.ops.update_statistics), []), sum(expected, []), strict=True):
        assert torch.equal(got, wanted) if exact else torch.allclose(got, wanted), "another bit"
    assert emulated.launches("update_statistics", *statistics_arguments([3] * 27, momentum)) == 1
    assert emulated.launches("update_statistics", *arguments) == 2
    assert emulated.launches("update_statistics", *statistics_arguments([0], momentum)) == 0


def test_advance_step_is_the_reference_to_the_last_bit(emulated: Emulated) -> None:
    """Also for numbers that no step has."""
    lrs, lr = torch.rand(5), torch.zeros(1)
    for step in (-1, 0, 3, 4, 5, 2**62):
        arguments = (torch.tensor([7, step]), lrs, lr)
        expected = results("advance_step", arguments, references["advance_step"])
        assert all(map(torch.equal, results("advance_step", arguments, emulated.ops.advance_step), expected))
    assert emulated.launches("advance_step", torch.tensor([0, 0]), lrs, lr) == 1


def test_wrong_arguments_are_named(emulated: Emulated) -> None:
    x = activation(1, 4, 4, 4)
    with pytest.raises(RuntimeError, match="stride must be 1 or 2, got 3"):
        emulated("dwconv3x3", x, torch.randn(4, 1, 3, 3), 3)
    with pytest.raises(RuntimeError, match="bfloat16 or float16, got Double"):
        emulated("dwconv3x3", x.double(), torch.randn(4, 1, 3, 3), 1)
    with pytest.raises(RuntimeError, match=r"w must be \[4, 1, 3, 3\]"):
        emulated("dwconv3x3", x, torch.randn(3, 1, 3, 3), 1)
    with pytest.raises(RuntimeError, match="together or not at all"):
        emulated("depthwise_block", *block_arguments((1, 4, 4, 4), torch.float32), EPS, 1, torch.zeros(4), None)
    with pytest.raises(RuntimeError, match=r"u_rows must be \[rows, 3, 4\], got \[1, 3, 5\]"):
        block = block_arguments((1, 4, 4, 4), torch.float32)
        emulated("depthwise_block", *block, EPS, 1, None, None, torch.ones(1, 3, 5))
    for dtype, channels, classes, got in (
        (torch.float32, 128, 10, "got Float, 128 channels and 10 classes"),
        (torch.bfloat16, 64, 10, "a multiple of 128 channels .*; got BFloat16, 64 channels"),
        (torch.float16, 128, 129, "up to 128 classes; got Half, 128 channels and 129 classes"),
    ):
        with pytest.raises(RuntimeError, match=f"classifier_gradient: on CUDA it takes .*{got}"):
            emulated("classifier_gradient", *classifier_arguments(2, channels, classes, dtype, False))
    with pytest.raises(RuntimeError, match=r"w must be \[C, 3, 3, 3\], got \[4, 1, 3, 3\]"):
        emulated("stem", x[:, :3], torch.randn(4, 1, 3, 3))


def test_the_library_declares_the_schemas_that_it_was_built_with(emulated: Emulated) -> None:
    """Python compares them with its own, and refuses a library that was built from other sources."""
    for name in CUDA_OPS:
        schema = str(getattr(torch.ops.fastcifar, name).default._schema).removeprefix("fastcifar::")
        check_schema("fastcifar_emulated", name, schema)
    with pytest.raises(FastcifarError, match=r"\(dwconv3x3 differs\); build it again"):
        check_schema("fastcifar_emulated", "dwconv3x3", "dwconv3x3(Tensor x, Tensor w) -> Tensor")
    with pytest.raises(FastcifarError, match=r"\(pool differs\); build it again"):
        check_schema("fastcifar_emulated", "pool", "pool(Tensor x) -> Tensor")


def test_every_op_has_cuda_kernels() -> None:
    glue = "".join(path.read_text() for path in (emulator.CSRC / "cuda").glob("*_op.cpp"))
    for name in CUDA_OPS:
        assert f'm.impl("{name}"' in glue, f"{name} has no CUDA kernel"
    assert ops.__all__
