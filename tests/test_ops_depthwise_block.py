"""Everything between two pointwise convolutions as one op."""

import pytest
import torch
from op_cases import (
    EPS,
    SHAPES,
    Shape,
    activation,
    backward_arguments,
    check,
    check_into,
    depthwise_block_arguments,
    devices,
    kinds,
    needs_kernels,
    opcheck_cases,
    out_shape,
    rows_of_halves,
    shapes,
    strides,
)
from torch import Tensor

from fastcifar.ops import batch_norm_relu, depthwise_block, dwconv3x3
from fastcifar.ops.depthwise_block import depthwise_block_backward_ref, depthwise_block_ref

pytestmark = [needs_kernels, pytest.mark.machine]
backward = torch.ops.fastcifar._depthwise_block_backward
PARAMETERS = ("u", "gamma0", "beta0", "w", "gamma1", "beta1")


@kinds
@shapes
@strides
def test_forward_and_backward(device: str, dtype: torch.dtype, shape: Shape, stride: int) -> None:
    torch.manual_seed(0)
    arguments = depthwise_block_arguments(shape, dtype, stride, device)
    check("depthwise_block", arguments)
    grad = activation(out_shape(shape, stride), dtype, device)
    check("_depthwise_block_backward", backward_arguments("depthwise_block", arguments, grad))


@kinds
@strides
def test_it_is_the_three_ops_in_a_row(device: str, dtype: torch.dtype, stride: int) -> None:
    u, gamma0, beta0, w, gamma1, beta1, _, _ = arguments = depthwise_block_arguments(
        (4, 9, 8, 7), dtype, stride, device
    )
    z, y, mean0, var0, mean1, var1 = depthwise_block(*arguments)
    h, mean_h, var_h = batch_norm_relu(u, gamma0, beta0, EPS)
    torch.testing.assert_close((mean0, var0), (mean_h, var_h), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y, dwconv3x3(h, w, stride), rtol=2e-2, atol=5e-2 if dtype != torch.float32 else 1e-5)
    z_after, mean_after, var_after = batch_norm_relu(y, gamma1, beta1, EPS)
    torch.testing.assert_close((mean1, var1), (mean_after, var_after), rtol=1e-4, atol=1e-5)
    # Half way between two numbers of a 16-bit type the last bit of a float32 decides
    torch.testing.assert_close(z, z_after, rtol=max(1e-4, torch.finfo(dtype).eps), atol=1e-5)


@kinds
def test_statistics_can_be_given(device: str, dtype: torch.dtype) -> None:
    arguments = depthwise_block_arguments((4, 40, 6, 6), dtype, 1, device)
    own = depthwise_block(*arguments)
    given = depthwise_block(*arguments, own[2], own[3])
    assert all(map(torch.equal, own, given))
    check("depthwise_block", (*arguments, None, None, rows_of_halves(arguments[0])))
    other = check("depthwise_block", (*arguments, own[2] + 1, own[3] * 2))
    assert not torch.equal(own[0], other[0])


@strides
def test_the_gradients_formula(stride: int) -> None:
    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            z, *saved = depthwise_block_ref(*inputs, EPS, stride)
            ctx.save_for_backward(*inputs, *saved)
            return z

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
            u, gamma0, beta0, w, gamma1, beta1, y, *statistics = ctx.saved_tensors
            return depthwise_block_backward_ref(grad, u, y, gamma0, beta0, w, gamma1, beta1, *statistics, EPS, stride)

    torch.manual_seed(0)
    inputs = depthwise_block_arguments((2, 3, 4, 5), torch.float64, stride)[:6]
    assert torch.autograd.gradcheck(Reference.apply, [x.double().requires_grad_() for x in inputs])


@kinds
@strides
def test_any_layout(device: str, dtype: torch.dtype, stride: int) -> None:
    torch.manual_seed(0)
    _, gamma0, beta0, w, gamma1, beta1, _, _ = depthwise_block_arguments((3, 7, 8, 8), dtype, stride, device)
    u = activation((3, 14, 9, 8), dtype, device)[:, ::2, 1:, :]
    _, y, *statistics = check("depthwise_block", (u, gamma0, beta0, w.to(dtype), gamma1, beta1, EPS, stride))
    grad = activation((3, 7, 1, 1), dtype, device).expand_as(y)
    y = y.contiguous(memory_format=torch.contiguous_format)
    arguments = (grad, u, y, gamma0, beta0, w.to(dtype), gamma1, beta1, *statistics, EPS, stride)
    check("_depthwise_block_backward", arguments)


@devices
@strides
def test_autograd(device: str, stride: int) -> None:
    *inputs, _, _ = depthwise_block_arguments((4, 6, 5, 4), torch.float32, stride, device)
    inputs = [x.requires_grad_() for x in inputs]
    outputs = depthwise_block(*inputs, EPS, stride)
    assert [x.requires_grad for x in outputs] == [True] + [False] * 5
    # The gradient of a mean over the map is not in channels_last
    got = torch.autograd.grad(outputs[0].mean((2, 3)).square().sum(), inputs)
    truth = torch.autograd.grad(depthwise_block_ref(*inputs, EPS, stride)[0].mean((2, 3)).square().sum(), inputs)
    torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-5)


@opcheck_cases
def test_opcheck(device: str, dtype: torch.dtype, stride: int) -> None:
    *inputs, _, _ = depthwise_block_arguments((2, 8, 6, 5), dtype, stride, device)
    arguments = (*(x.requires_grad_() for x in inputs), EPS, stride)
    torch.library.opcheck(torch.ops.fastcifar.depthwise_block.default, arguments)
    z = torch.empty_like(depthwise_block(*arguments)[0])
    given = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    torch.library.opcheck(torch.ops.fastcifar._depthwise_block_into.default, (z, *given))


@kinds
def test_reruns_are_bitwise_equal(device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES[-4:]:
        for stride in (1, 2):
            arguments = depthwise_block_arguments(shape, dtype, stride, device)
            grad = activation(out_shape(shape, stride), dtype, device)
            first, backward_inputs = depthwise_block(*arguments), backward_arguments("depthwise_block", arguments, grad)
            first_gradients = backward(*backward_inputs)
            for _ in range(3):
                assert all(map(torch.equal, first, depthwise_block(*arguments)))
                assert all(map(torch.equal, first_gradients, backward(*backward_inputs)))


@kinds
@strides
def test_memory_that_is_given_gets_the_same_bits(device: str, dtype: torch.dtype, stride: int) -> None:
    torch.manual_seed(0)
    for shape in (*SHAPES[-4:], (2, 3, 5, 7), (0, 3, 5, 7)):
        arguments = depthwise_block_arguments(shape, dtype, stride, device)
        check_into("depthwise_block", arguments)
        grad = activation(out_shape(shape, stride), dtype, device)
        check_into("_depthwise_block_backward", backward_arguments("depthwise_block", arguments, grad))


@pytest.mark.parametrize(
    "given, message",
    [
        (torch.zeros(2, 4, 5, 4), r"must be \[2, 4, 5, 5\], got \[2, 4, 5, 4\]"),
        (torch.zeros(2, 4, 5, 5).bfloat16(), "must be Float like the first argument, got BFloat16"),
        (torch.zeros(2, 4, 5, 5), r"must be in channels_last memory, got strides \[100, 25, 5, 1\]"),
        (
            torch.zeros(201)[1:].view(2, 5, 5, 4).permute(0, 3, 1, 2),
            "must begin on 16 bytes, got a tensor that begins 4 beyond",
        ),
    ],
    ids=["shape", "dtype", "memory format", "alignment"],
)
def test_memory_that_does_not_suit_is_refused(given: Tensor, message: str) -> None:
    arguments = depthwise_block_arguments((2, 4, 5, 5), torch.float32, 1)
    with pytest.raises(RuntimeError, match=f"_depthwise_block_into: z {message}"):
        torch.ops.fastcifar._depthwise_block_into(given, *arguments)
    backward_inputs = backward_arguments("depthwise_block", arguments, activation((2, 4, 5, 5), torch.float32))
    with pytest.raises(RuntimeError, match=f"_depthwise_block_backward_into: grad_u {message}"):
        torch.ops.fastcifar._depthwise_block_backward_into(given, *backward_inputs)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.zeros(2, 4, 5)}, r"u must be \[N, C, H, W\], got \[2, 4, 5\]"),
        ({"gamma0": torch.zeros(5)}, r"gamma0 must be \[4\], got \[5\]"),
        ({"beta1": torch.zeros(4, dtype=torch.float64)}, "beta1 must be float32, got Double"),
        ({"w": torch.zeros(4, 9)}, r"w must be \[4, 1, 3, 3\], got \[4, 9\]"),
        ({"stride": 0}, "stride must be 1 or 2, got 0"),
        ({"u_mean": torch.zeros(4)}, "u_mean and u_var are given together or not at all"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = dict(zip(PARAMETERS, depthwise_block_arguments((2, 4, 5, 5), torch.float32, 1)[:6], strict=True))
    arguments |= {"eps": EPS, "stride": 1} | change
    with pytest.raises(RuntimeError, match=f"depthwise_block: .*{message}"):
        depthwise_block(**arguments)
