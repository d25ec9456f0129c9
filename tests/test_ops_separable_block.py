"""A whole block of the network as one op, with the pointwise product."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_cases import (
    DTYPES,
    EPS,
    SHAPES,
    Arguments,
    Shape,
    activation,
    as_tuple,
    check,
    depthwise_block_arguments,
    devices,
    kinds,
    needs_kernels,
    opcheck_cases,
    separable_calls,
    shapes,
    strides,
)
from torch import Tensor

from fastcifar import ops
from fastcifar.ops import separable_block
from fastcifar.ops._moments import merge_rows, num_rows
from fastcifar.ops.separable_block import separable_block_backward_ref, separable_block_ref, suits

pytestmark = [needs_kernels, pytest.mark.machine]
PARAMETERS = ("u", "gamma0", "beta0", "w", "gamma1", "beta1", "pointwise")


def calls(
    shape: Shape, dtype: torch.dtype, stride: int, device: str, out_channels: int = 0
) -> Iterator[tuple[str, Arguments]]:
    block = depthwise_block_arguments(shape, dtype, stride, device)[:6]
    yield from separable_calls(block, out_channels or 2 * shape[1], stride)


@kinds
@shapes
@strides
def test_forward_and_backward(device: str, dtype: torch.dtype, shape: Shape, stride: int) -> None:
    torch.manual_seed(0)
    for name, arguments in calls(shape, dtype, stride, device, shape[1] + 3):
        check(name, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9, 520, 16, 16), (3, 530, 5, 5)], ids=["many pixels", "few pixels"])
def test_on_the_cpu_a_large_weight_has_its_factors_in_memory(dtype: torch.dtype, shape: Shape) -> None:
    """Of at most 2,048 pixels at a time, whose products are added up."""
    torch.manual_seed(0)
    *_, (name, arguments) = calls(shape, dtype, 1, "cpu", 515)
    check(name, arguments)


@kinds
@strides
def test_it_is_the_block_and_the_product_in_a_row(device: str, dtype: torch.dtype, stride: int) -> None:
    torch.manual_seed(0)
    block = depthwise_block_arguments((4, 9, 8, 7), dtype, stride, device)[:6]
    pointwise = torch.randn(5, 9, 1, 1, device=device).to(dtype).float()
    v, rows, y, *statistics = separable_block(*block, pointwise, EPS, stride)
    z, expected_y, *expected = ops.depthwise_block(*block, EPS, stride)
    torch.testing.assert_close([y, *statistics], [expected_y, *expected], rtol=1e-4, atol=1e-5)
    product = torch.nn.functional.conv2d(z.double(), pointwise.double())
    torch.testing.assert_close(v.double(), product, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-2)
    mean, var = merge_rows(rows)
    torch.testing.assert_close(mean.double(), v.double().mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(var.double(), v.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-4)


def test_separable_block_is_a_composition_of_the_other_ops() -> None:
    torch.manual_seed(0)
    block = [a.requires_grad_() for a in depthwise_block_arguments((2, 6, 5, 7), torch.float32, 2)[:6]]
    pointwise = torch.randn(4, 6, 1, 1, requires_grad=True)
    v, rows, *_ = separable_block(*block, pointwise, EPS, 2)
    z = ops.depthwise_block(*block, EPS, 2)[0]
    expected = torch.nn.functional.conv2d(z, pointwise)
    torch.testing.assert_close(v, expected)
    torch.testing.assert_close(merge_rows(rows)[1], expected.var((0, 2, 3), correction=0))
    grad = torch.randn_like(v)
    inputs = (*block, pointwise)
    got, wanted = torch.autograd.grad(v, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@kinds
def test_the_next_block_starts_from_the_moments_of_this_one(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first = next(calls((4, 40, 6, 6), dtype, 1, device))[1]
    v, rows, *_ = separable_block(*first)
    assert rows.shape == (num_rows(4 * 6 * 6, 80), 3, 80)
    second = next(calls((4, 80, 6, 6), dtype, 1, device))[1]
    own, given = separable_block(v, *second[1:]), separable_block(v, *second[1:], rows)
    if dtype == torch.float32:
        torch.testing.assert_close(own, given, rtol=1e-3, atol=1e-4)
    else:  # statistics that differ in their last bits round some numbers to their neighbours
        torch.testing.assert_close(own, given, rtol=torch.finfo(dtype).eps, atol=2e-2)
        assert (own[0] != given[0]).double().mean() < 0.005
    shifted = rows.clone()
    shifted[:, 1] += 1
    assert not torch.equal(own[0], separable_block(v, *second[1:], shifted)[0])


@strides
def test_the_gradients_formula(stride: int) -> None:
    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            v, _, *saved = separable_block_ref(*inputs, EPS, stride)
            ctx.save_for_backward(*inputs, *saved)
            return v

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
            u, gamma0, beta0, w, gamma1, beta1, pointwise, y, *statistics = ctx.saved_tensors
            return separable_block_backward_ref(
                grad, u, y, gamma0, beta0, w, gamma1, beta1, pointwise, *statistics, EPS, stride
            )[:7]

    torch.manual_seed(0)
    inputs = next(calls((2, 3, 4, 5), torch.float32, stride, "cpu", 2))[1][:7]
    assert torch.autograd.gradcheck(Reference.apply, [x.double().requires_grad_() for x in inputs])


@strides
def test_the_gradients_through_moments(stride: int) -> None:
    """With moments given and used, every gradient is a partial derivative: those of u and of its moments are apart."""

    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
            *block, means, m2s = inputs
            rows = torch.stack((counts, means, m2s), 1)
            v, v_rows, *saved = separable_block_ref(*block, EPS, stride, rows)
            ctx.save_for_backward(*block, rows, v, v_rows, *saved)
            return v, v_rows[0, 1:]

        @staticmethod
        def backward(ctx, grad: Tensor, grad_moments: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
            u, gamma0, beta0, w, gamma1, beta1, pointwise, rows, v, v_rows, y, *statistics = ctx.saved_tensors
            grad_rows = torch.zeros_like(v_rows)
            grad_rows[0, 1:] = grad_moments
            *grads, of_rows = separable_block_backward_ref(
                grad, u, y, gamma0, beta0, w, gamma1, beta1, pointwise, *statistics, EPS, stride, rows, grad_rows, v,
                v_rows,
            )  # fmt: skip
            return *grads, of_rows[:, 1], of_rows[:, 2]

    torch.manual_seed(0)
    inputs = next(calls((2, 3, 4, 5), torch.float32, stride, "cpu", 2))[1][:7]
    counts = torch.tensor([25.0, 15.0]).double()[:, None].expand(2, 3)
    moments = torch.randn(2, 3), torch.rand(2, 3) * 30 + 10
    arguments = [x.double().requires_grad_() for x in (*inputs, *moments)]
    assert torch.autograd.gradcheck(Reference.apply, arguments)


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=str)
def test_a_chain_of_blocks_passes_gradients_through_moments(dtype: torch.dtype) -> None:
    """Two blocks joined by moments have the gradients of two blocks that compute them, which are the truth's."""
    torch.manual_seed(0)
    first = next(calls((3, 40, 6, 6), torch.float32, 1, "cpu", 72))[1][:7]
    second = next(calls((3, 72, 6, 6), torch.float32, 2, "cpu", 33))[1][1:7]
    grad = torch.randn(3, 33, 3, 3)

    def gradients(dtype: torch.dtype, op: Any, joined: bool) -> list[Tensor]:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        u, *others = [x.to(wide) for x in (*first, *second)]
        inputs = [x.detach().requires_grad_() for x in (u.to(dtype), *others)]
        v, rows, *_ = op(*inputs[:7], EPS, 1)
        out = op(v, *inputs[7:], EPS, 2, rows if joined else None)[0]
        return [g.double() for g in torch.autograd.grad(out, inputs, grad.to(dtype))]

    truth = gradients(torch.float64, separable_block_ref, False)
    apart = gradients(dtype, separable_block, False)
    for i, (exact, a, b) in enumerate(zip(truth, apart, gradients(dtype, separable_block, True), strict=True)):
        allowed = 2 * float((a - exact).norm()) + 1e-4 * float(exact.norm())
        assert float((b - exact).norm()) <= allowed, i


@kinds
@strides
def test_any_layout(device: str, dtype: torch.dtype, stride: int) -> None:
    torch.manual_seed(0)
    (_, (_, *others)), *_ = calls((3, 7, 8, 8), dtype, stride, device)
    u = activation((3, 14, 9, 8), dtype, device)[:, ::2, 1:, :]
    others[2], others[5] = others[2].to(dtype), others[5].to(dtype)  # w and pointwise
    v, _, y, *statistics = check("separable_block", (u, *others))
    grad = activation((3, v.shape[1], 1, 1), dtype, device).expand_as(v)
    y = y.contiguous(memory_format=torch.contiguous_format)
    check("_separable_block_backward", (grad, u, y, *others[:6], *statistics, EPS, stride))


@devices
@strides
def test_autograd(device: str, stride: int) -> None:
    torch.manual_seed(0)
    *inputs, _, _ = next(calls((4, 6, 5, 4), torch.float32, stride, device))[1]
    inputs = [x.requires_grad_() for x in inputs]
    outputs = separable_block(*inputs, EPS, stride)
    assert [x.requires_grad for x in outputs] == [True, True] + [False] * 5
    got = torch.autograd.grad(outputs[0].mean((2, 3)).square().sum(), inputs)
    truth = torch.autograd.grad(separable_block_ref(*inputs, EPS, stride)[0].mean((2, 3)).square().sum(), inputs)
    torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-4)


@opcheck_cases
def test_opcheck(device: str, dtype: torch.dtype, stride: int) -> None:
    *inputs, _, _ = next(calls((2, 8, 6, 5), dtype, stride, device))[1]
    arguments = (*(x.requires_grad_() for x in inputs), EPS, stride)
    torch.library.opcheck(torch.ops.fastcifar.separable_block.default, arguments)


@kinds
def test_reruns_are_bitwise_equal(device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES[-4:]:
        for stride in (1, 2):
            for name, arguments in calls(shape, dtype, stride, device):
                op = getattr(torch.ops.fastcifar, name)
                first = as_tuple(op(*arguments))
                for _ in range(3):
                    assert all(map(torch.equal, first, as_tuple(op(*arguments)))), name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.zeros(2, 4, 5)}, r"u must be \[N, C, H, W\], got \[2, 4, 5\]"),
        ({"u": torch.zeros(0, 4, 5, 5)}, r"u must not be empty, got \[0, 4, 5, 5\]"),
        ({"gamma0": torch.zeros(5)}, r"gamma0 must be \[4\], got \[5\]"),
        ({"beta1": torch.zeros(4, dtype=torch.float64)}, "beta1 must be float32, got Double"),
        ({"w": torch.zeros(4, 9)}, r"w must be \[4, 1, 3, 3\], got \[4, 9\]"),
        ({"pointwise": torch.zeros(6, 5, 1, 1)}, r"pointwise must be \[out_channels, 4, 1, 1\], got \[6, 5, 1, 1\]"),
        (
            {"pointwise": torch.zeros(6, 4, 1, 1).half()},
            "pointwise must be float32 or the activations' Float, got Half",
        ),
        ({"stride": 0}, "stride must be 1 or 2, got 0"),
        ({"u_rows": torch.zeros(2, 4)}, r"u_rows must be \[rows, 3, 4\], got \[2, 4\]"),
        ({"u_rows": torch.zeros(1, 3, 4, dtype=torch.float64)}, "u_rows must be float32, got Double"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    """Errors have this op's name, also errors that the depthwise block inside it would raise."""
    arguments = dict(zip(PARAMETERS, next(calls((2, 4, 5, 5), torch.float32, 1, "cpu"))[1][:7], strict=True))
    arguments |= {"eps": EPS, "stride": 1} | change
    with pytest.raises(RuntimeError, match=f" separable_block: {message}"):
        separable_block(**arguments)


def test_bad_gradients_are_named() -> None:
    *_, (_, (grad, *others)) = calls((2, 4, 5, 5), torch.float32, 1, "cpu")
    backward = torch.ops.fastcifar._separable_block_backward
    with pytest.raises(RuntimeError, match=r" _separable_block_backward: grad_v must be \[2, 8, 5, 5\], got"):
        backward(grad[:, :3], *others)
    with pytest.raises(RuntimeError, match=r" _separable_block_backward: y must be \[2, 4, 5, 5\], got"):
        backward(grad, others[0], others[1][:1], *others[2:])


def test_on_cuda_a_block_of_few_channels_and_a_large_map_is_one_op_with_its_product() -> None:
    assert suits(32, 64, 32, 32) and suits(128, 128, 9, 8)
    assert not suits(64, 64, 8, 8), "a small map"
    assert not suits(136, 64, 16, 16) and not suits(64, 136, 16, 16), "many channels"
    assert not suits(12, 64, 16, 16), "no whole vectors"
