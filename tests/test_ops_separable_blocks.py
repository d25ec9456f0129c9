"""A chain of whole blocks as one op, on the CPU."""

from typing import Any

import pytest
import torch
from op_cases import DTYPES, EPS, activation, needs_kernels, per_channel, rows_of_halves
from torch import Tensor

from fastcifar import ops
from fastcifar.ops import separable_block, separable_blocks
from fastcifar.ops._library import references
from fastcifar.ops._moments import merge_rows
from fastcifar.ops.separable_blocks import KEPT, PARAMETERS

pytestmark = [needs_kernels, pytest.mark.machine]
STRIDES = (1, 2, 1)
dtypes = pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=str)


def chain(shape: tuple[int, ...], dtype: torch.dtype, channels: tuple[int, ...] = (40, 72, 33)) -> list[Tensor]:
    """u, its moments, and the parameters of a block for each of `channels`."""
    torch.manual_seed(0)
    u = activation(shape, dtype)
    tensors = [u, rows_of_halves(u)]
    for c, out in zip((shape[1], *channels), channels, strict=False):
        bns = [per_channel(c) for _ in range(4)]
        pointwise = (torch.randn(out, c, 1, 1) / c**0.5).to(dtype)
        tensors += [*bns[:2], torch.randn(c, 1, 3, 3), *bns[2:], pointwise]
    return tensors


def in_turn(
    u: Tensor, rows: Tensor | None, parameters: list[Tensor], eps: float, strides: tuple[int, ...], op: Any = None
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The blocks one by one."""
    of_bns: list[Tensor] = []
    for i, stride in enumerate(strides):
        block = parameters[i * PARAMETERS : (i + 1) * PARAMETERS]
        u, rows, _, *statistics = (op or separable_block)(u, *block, eps, stride, rows)[:7]
        of_bns += statistics
    return u, rows, of_bns


def results(blocks: Any, tensors: list[Tensor], with_rows: bool = True) -> list[Tensor]:
    """v, its moments, the statistics, and all gradients."""
    u, rows, *parameters = inputs = [t.detach().clone().requires_grad_() for t in tensors]
    v, v_rows, statistics = blocks(u, rows if with_rows else None, parameters, EPS, STRIDES)
    assert u.dtype == torch.float64 or not any(t.requires_grad for t in statistics)
    mean, var = merge_rows(v_rows)
    wave = torch.arange(v.shape[1]).sin()
    loss = (v.to(wave.dtype) * wave[:, None, None]).square().sum() + (mean * wave + var).sum()
    wanted = inputs if with_rows else [u, *parameters]
    return [t.detach() for t in (v, mean, var, *statistics, *torch.autograd.grad(loss, wanted))]


@dtypes
@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("channels", [(64, 48, 40), (32, 64, 64)], ids=str)
def test_it_is_its_blocks_in_turn(dtype: torch.dtype, channels: tuple[int, ...], with_rows: bool) -> None:
    """To the last bit, where the number of pixels is a power of two: the moments in between are not divided."""
    tensors = chain((8, 32, 8, 8), dtype, channels)
    for own, expected in zip(
        results(separable_blocks, tensors, with_rows), results(in_turn, tensors, with_rows), strict=True
    ):
        assert own.dtype == expected.dtype and torch.equal(own, expected)


@dtypes
@pytest.mark.parametrize("shape", [(3, 40, 7, 6), (2, 5, 33, 31), (40, 129, 5, 7), (33, 64, 4, 4), (50, 65, 2, 2)])
def test_it_is_as_close_to_float64_as_its_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def exact_block(*arguments: Any) -> tuple[Tensor, ...]:
        return references["separable_block"](*arguments)  # type: ignore[no-any-return]

    def exactly(*arguments: Any) -> Any:
        return in_turn(*arguments, op=exact_block)

    tensors = chain(shape, dtype)
    truth = results(exactly, [t.double() for t in tensors])
    apart, own = results(in_turn, tensors), results(separable_blocks, tensors)
    of_rows = 3 + 4 * len(STRIDES) + 1  # the gradient of u_rows: the truth's is autograd's own, all rows count there
    for i, (a, b, exact) in enumerate(zip(apart, own, truth, strict=True)):
        if i != of_rows:
            allowed = 2 * float((a.double() - exact).norm()) + 2e-4 * (float(exact.norm()) + 1)
            assert float((b.double() - exact).norm()) <= allowed, i


@dtypes
def test_its_references_are_the_references_of_its_blocks(dtype: torch.dtype) -> None:
    u, rows, *parameters = chain((3, 40, 7, 6), dtype)
    v_rows, kept = references["separable_blocks"](u, rows, parameters, EPS, STRIDES)
    compiled_rows, compiled = torch.ops.fastcifar.separable_blocks(u, rows, parameters, EPS, STRIDES)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 0.1}
    torch.testing.assert_close(merge_rows(compiled_rows), merge_rows(v_rows), **tolerance)
    for own, expected in zip(compiled, kept, strict=True):
        torch.testing.assert_close(own, expected, **tolerance)
    grad, grad_rows = torch.randn_like(kept[-KEPT]), torch.zeros_like(v_rows)
    grad_rows[0, 1:] = torch.randn(2, v_rows.shape[2])
    arguments = (grad, grad_rows, compiled_rows, u, rows, parameters, compiled, EPS, STRIDES)
    name = "_separable_blocks_backward"
    grad_u, of_rows, grads = getattr(torch.ops.fastcifar, name)(*arguments)
    expected_u, expected_of_rows, expected_grads = references[name](*arguments)
    for own, expected in zip((grad_u, of_rows, *grads), (expected_u, expected_of_rows, *expected_grads), strict=True):
        assert own.shape == expected.shape and own.dtype == expected.dtype
        difference = float((own.double() - expected.double()).norm())
        assert difference <= (2e-3 if dtype == torch.float32 else 0.1) * (float(expected.double().norm()) + 1)


@dtypes
def test_the_gradient_that_is_given_keeps_its_numbers(dtype: torch.dtype) -> None:
    """Within the chain gradients are written over one another, where a block has as many channels after as before."""
    u, rows, *parameters = [t.requires_grad_() for t in chain((8, 64, 8, 8), dtype, (64, 64, 64))]
    v, _, _ = separable_blocks(u, rows, parameters, EPS, STRIDES)
    given = torch.randn(v.shape).to(dtype).to(memory_format=torch.channels_last)
    kept = given.clone()
    torch.autograd.grad(v, [u, *parameters], given)
    assert torch.equal(given, kept)


@dtypes
def test_reruns_and_the_number_of_threads_change_no_bit(dtype: torch.dtype) -> None:
    tensors, threads = chain((33, 64, 8, 8), dtype), torch.get_num_threads()
    first = results(separable_blocks, tensors)
    try:
        for count in (1, 3, threads):
            torch.set_num_threads(count)
            assert all(map(torch.equal, first, results(separable_blocks, tensors)))
    finally:
        torch.set_num_threads(threads)


def test_one_output_may_be_without_a_gradient() -> None:
    u, rows, *parameters = (t.requires_grad_() for t in chain((3, 40, 7, 6), torch.float32))
    v, v_rows, _ = separable_blocks(u, rows, parameters, EPS, STRIDES)
    weights = torch.randn_like(v)
    own = torch.autograd.grad((v * weights).sum(), (u, *parameters), retain_graph=True)
    one_by_one, rows_one_by_one, _ = in_turn(u, rows, parameters, EPS, STRIDES)
    expected = torch.autograd.grad((one_by_one * weights).sum(), (u, *parameters), retain_graph=True)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    own = torch.autograd.grad(v_rows[0, 1].sin().sum(), (u, *parameters))
    assert rows_one_by_one is not None
    expected = torch.autograd.grad(rows_one_by_one[0, 1].sin().sum(), (u, *parameters))
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@dtypes
def test_opcheck(dtype: torch.dtype) -> None:
    u, rows, *parameters = chain((2, 8, 6, 5), dtype, (9, 4, 3))
    op = torch.ops.fastcifar
    torch.library.opcheck(op.separable_blocks.default, (u, rows, parameters, EPS, STRIDES))
    v_rows, kept = op.separable_blocks(u, rows, parameters, EPS, STRIDES)
    backward = (torch.randn_like(kept[-KEPT]), None, v_rows, u, rows, parameters, kept, EPS, STRIDES)
    torch.library.opcheck(op._separable_blocks_backward.default, backward)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.zeros(2, 8, 5)}, r"block 0: u must be \[N, C, H, W\], got \[2, 8, 5\]"),
        ({"u": torch.zeros(0, 8, 6, 5)}, r"block 0: u must not be empty, got \[0, 8, 6, 5\]"),
        ({"u_rows": torch.zeros(1, 3, 4)}, r"block 0: u_rows must be \[rows, 3, 8\], got \[1, 3, 4\]"),
        ({"strides": (1, 2, 3)}, "block 2: stride must be 1 or 2, got 3"),
        ({"strides": ()}, "strides must not be empty"),
        ({"strides": (1, 2)}, "parameters must have 6 entries a block, 12 for 2 strides, got 18"),
        ({6: torch.zeros(8)}, r"block 1: gamma0 must be \[9\], got \[8\]"),
        ({11: torch.zeros(4, 8, 1, 1)}, r"block 1: pointwise must be \[out_channels, 9, 1, 1\], got \[4, 8, 1, 1\]"),
    ],
)
def test_bad_arguments_are_named_with_their_block(change: dict[Any, Any], message: str) -> None:
    u, rows, *parameters = chain((2, 8, 6, 5), torch.float32, (9, 4, 3))
    arguments = {"u": u, "u_rows": rows, "eps": EPS, "strides": STRIDES}
    for key, value in change.items():
        if isinstance(key, int):
            parameters[key] = value
        else:
            arguments[key] = value
    with pytest.raises(RuntimeError, match=f" separable_blocks: {message}"):
        separable_blocks(parameters=parameters, **arguments)


def test_what_was_kept_is_checked_too() -> None:
    u, rows, *parameters = chain((2, 8, 6, 5), torch.float32, (9, 4, 3))
    v_rows, kept = torch.ops.fastcifar.separable_blocks(u, rows, parameters, EPS, STRIDES)
    backward, grad = torch.ops.fastcifar._separable_blocks_backward, torch.randn_like(kept[-KEPT])

    def refused(message: str, kept: list[Tensor], grad: Tensor = grad, v_rows: Tensor = v_rows) -> None:
        with pytest.raises(RuntimeError, match=f" _separable_blocks_backward: {message}"):
            backward(grad, torch.zeros_like(v_rows), v_rows, u, rows, parameters, kept, EPS, STRIDES)

    refused("kept must have 6 entries a block, 18 for 3 strides, got 17", kept[:-1])
    refused(r"block 2: grad_v must be \[2, 3, 3, 3\], got \[2, 2, 3, 3\]", kept, grad[:, :2])
    refused(r"block 2: y must be \[1, 4, 3, 3\], got \[2, 4, 3, 3\]", [*kept[:6], kept[6][:1], *kept[7:]])
    refused(r"block 2: v must be \[2, 3, 3, 3\], got \[1, 3, 3, 3\]", [*kept[:12], kept[12][:1], *kept[13:]])
    refused(r"block 0: y must be \[2, 8, 6, 5\], got", [kept[0], kept[1][:, :3], *kept[2:]])
    refused(r"v_rows must be \[rows, 3, 3\], got \[1, 3, 4\]", kept, v_rows=torch.zeros(1, 3, 4))


def test_it_is_for_the_cpu_alone() -> None:
    assert ops.separable_blocks is separable_blocks
    u, rows, *parameters = (t.to("meta") for t in chain((2, 8, 6, 5), torch.float32, (9, 4, 3)))
    v, v_rows, statistics = separable_blocks(u, rows, parameters, EPS, STRIDES)
    assert v.shape == (2, 3, 3, 3) and v_rows.shape == (1, 3, 3) and len(statistics) == 12
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("fastcifar::separable_blocks", "CUDA")
