"""Tests of the ops that need a GPU: many calls give the same bits, and a captured graph can be replayed."""

from __future__ import annotations

from collections.abc import Iterator

import op_launches
import pytest
import torch
from op_cases import (
    CUDA_OPS,
    DEVICES,
    EPS,
    Arguments,
    activation,
    as_tuple,
    calls,
    depthwise_block_arguments,
    devices,
    error,
    needs_kernels,
    stem_calls,
    step_calls,
)
from torch import Tensor

from fastcifar import ops

pytestmark = needs_kernels
DTYPES = [torch.float32, torch.bfloat16]
on_a_gpu = pytest.mark.skipif("cuda" not in DEVICES, reason="no GPU here, or no CUDA kernels")
in_both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def every_call(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Arguments]]:
    """Every op on layers of the network at batch 16, so that many blocks of threads are at work."""
    torch.manual_seed(0)
    for channels, size, stride in ((32, 32, 1), (64, 32, 2), (256, 8, 1), (512, 4, 1), (1024, 2, 1)):
        shape = (16, channels, size, size)
        yield from calls(shape, dtype, stride, device)
    yield from stem_calls((16, 32, 32, 32), dtype, device)
    yield from step_calls(dtype, device=device)


def run(name: str, arguments: Arguments) -> tuple[Tensor, ...]:
    return as_tuple(getattr(torch.ops.fastcifar, name)(*arguments))


@devices
@in_both_dtypes
def test_reruns_are_bitwise_equal(device: str, dtype: torch.dtype) -> None:
    """Each op runs a hundred times. On a GPU its blocks run in another order each time."""
    if device == "cpu":
        small = (c for c in every_call(dtype, device) if c[1][0].numel() < 1 << 17)
    else:
        small = every_call(dtype, device)
    for name, arguments in small:
        first = run(name, arguments)
        for _ in range(100 if device == "cuda" else 2):
            assert all(map(torch.equal, first, run(name, arguments))), name


def capture(name: str, arguments: Arguments) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(name, arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(name, arguments)
    return graph, outputs


@on_a_gpu
@in_both_dtypes
def test_a_captured_graph_computes_with_what_its_inputs_hold_now(dtype: torch.dtype) -> None:
    for name, arguments in every_call(dtype, "cuda"):
        other = tuple(a * 0.5 if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
        expected, expected_of_other = run(name, arguments), run(name, other)
        graph, outputs = capture(name, arguments)
        graph.replay()
        assert all(map(torch.equal, outputs, expected)), name
        for mine, theirs in zip(arguments, other, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(theirs)
        graph.replay()
        assert all(map(torch.equal, outputs, expected_of_other)), name


@on_a_gpu
def test_a_captured_batch_follows_the_step() -> None:
    name, arguments = next(step_calls(torch.bfloat16))
    arguments = op_launches.on_device(arguments, torch.bfloat16, "cuda")
    graph, outputs = capture(name, arguments)
    step = next(a for a in arguments if isinstance(a, Tensor) and a.dim() == 0)
    for number in (0, 1, 0):
        step.fill_(number)
        graph.replay()
        assert all(map(torch.equal, outputs, run(name, arguments))), number


@on_a_gpu
@in_both_dtypes
@pytest.mark.parametrize("whole", [False, True], ids=["depthwise_block", "separable_block"])
def test_forward_and_backward_in_one_graph(dtype: torch.dtype, whole: bool) -> None:
    torch.manual_seed(0)
    *block, _, _ = depthwise_block_arguments((16, 64, 8, 8), dtype, 1, "cuda")
    inputs = [x.requires_grad_() for x in (*block, torch.randn(64, 64, 1, 1, device="cuda"))]
    labels, partner_labels = torch.randint(0, 64, (2, 16), device="cuda")
    totals = torch.zeros(2, dtype=torch.float64, device="cuda")

    def step() -> tuple[Tensor, ...]:
        *own, pointwise = inputs
        v = ops.separable_block(*own, pointwise, EPS, 1)[0] if whole else ops.depthwise_block(*own, EPS, 1)[0]
        z, *_ = ops.batch_norm_relu(v, own[1], own[2], EPS)
        lam = torch.full((), 0.3, device="cuda")
        loss, _, sums = ops.mixup_cross_entropy(z.mean((2, 3)), labels, partner_labels, lam, 0.1)
        totals.add_(sums)
        return loss, *torch.autograd.grad(loss, inputs if whole else own)

    # Detached: a graph that is kept would bind the gradients' accumulation to this stream, and the capture would fail
    expected = tuple(result.detach().clone() for result in step())
    sums = totals.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    totals.zero_()
    for _ in range(3):
        graph.replay()
    assert all(map(torch.equal, got, expected))
    assert torch.equal(totals, sums + sums + sums)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape, out_channels", [((4, 64, 8, 8), 128), ((5, 136, 4, 4), 200), ((2, 3, 5, 7), 5)])
def test_separable_block_is_a_composition(
    dtype: torch.dtype, shape: tuple[int, int, int, int], out_channels: int
) -> None:
    torch.manual_seed(0)
    *block, _, _ = depthwise_block_arguments(shape, dtype, 1, "cuda")
    pointwise = torch.randn(out_channels, shape[1], 1, 1, device="cuda").to(dtype).float()
    inputs = [x.requires_grad_() for x in (*block, pointwise)]
    v, *_ = ops.separable_block(*inputs, EPS, 1)
    z = ops.depthwise_block(*inputs[:-1], EPS, 1)[0].double()
    expected = torch.nn.functional.conv2d(z, inputs[-1].double())
    grad = activation(v.shape, dtype, "cuda")
    gradients = zip(
        torch.autograd.grad(v, inputs, grad), torch.autograd.grad(expected, inputs, grad.double()), strict=True
    )
    allowed = 4 * torch.finfo(dtype).eps + 1e-5  # of each gradient's norm
    for i, (got, truth) in enumerate([(v, expected), *gradients]):
        assert error(got, truth.double()) <= allowed * float(truth.double().norm()) + 1e-5, i


def test_every_op_has_a_launch_here() -> None:
    """The lists above hold every op: an op that is added later is tested too."""
    listed = {name for name, _ in op_launches.launches(torch.float32)}
    assert listed == CUDA_OPS
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    assert {name for dtype in dtypes for name, _ in op_launches.some_launches(dtype, "cuda", 7)} == listed, (
        "racecheck's"
    )


@devices
def test_the_launches_run(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The bug: on a GPU they asked for gradients that the CPU alone has, which only the GPU's sanitizer run found."""
    op_launches.main(device)
    assert "all results finite" in capsys.readouterr().out
