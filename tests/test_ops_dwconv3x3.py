"""The plain depthwise convolution."""

import pytest
import torch
import torch.nn.functional as F
from op_cases import (
    SHAPES,
    Shape,
    activation,
    backward_arguments,
    check,
    devices,
    dwconv3x3_arguments,
    kinds,
    needs_kernels,
    opcheck_cases,
    out_shape,
    shapes,
    strides,
)
from torch import Tensor

from fastcifar.ops import dwconv3x3
from fastcifar.ops.dwconv3x3 import dwconv3x3_backward_ref, dwconv3x3_ref

pytestmark = [needs_kernels, pytest.mark.machine]
backward = torch.ops.fastcifar._dwconv3x3_backward


@kinds
@shapes
@strides
def test_forward_and_backward(device: str, dtype: torch.dtype, shape: Shape, stride: int) -> None:
    torch.manual_seed(0)
    arguments = dwconv3x3_arguments(shape, dtype, stride, device)
    check("dwconv3x3", arguments)
    grad = activation(out_shape(shape, stride), dtype, device)
    grad_x, grad_w = check("_dwconv3x3_backward", backward_arguments("dwconv3x3", arguments, grad))
    only_x, nothing = backward(grad, *arguments, True, False)
    assert nothing.numel() == 0
    torch.testing.assert_close(only_x, grad_x)
    nothing, only_w = backward(grad, *arguments, False, True)
    assert nothing.numel() == 0
    torch.testing.assert_close(only_w, grad_w)


def test_the_reference_is_pytorchs_convolution() -> None:
    x, w, _ = dwconv3x3_arguments((2, 5, 7, 6), torch.float64, 1)
    for stride in (1, 2):
        truth = F.conv2d(x, w.double(), stride=stride, padding=1, groups=5)
        torch.testing.assert_close(dwconv3x3_ref(x, w, stride), truth)


@strides
def test_the_gradients_formula(stride: int) -> None:
    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, w: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x, w)
            return dwconv3x3_ref(x, w, stride)

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
            return dwconv3x3_backward_ref(grad, *ctx.saved_tensors, stride, True, True)

    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Reference.apply, (x, w))


@kinds
def test_any_layout_and_a_narrow_weight(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = activation((3, 14, 9, 8), dtype, device)
    x, w = wide[:, ::2, 1:, :], torch.randn(7, 3, 3, 1, device=device).to(dtype).movedim(-1, 1)
    for stride in (1, 2):
        (y,) = check("dwconv3x3", (x, w, stride))
        grad = torch.randn(y.shape, device=device).to(dtype)
        check("_dwconv3x3_backward", (grad, x, w, stride, True, True))
        check("_dwconv3x3_backward", (grad[:, :, :1, :1].expand_as(y), x.contiguous(), w, stride, True, True))


@devices
@strides
def test_autograd(device: str, stride: int) -> None:
    torch.manual_seed(0)
    x = activation((2, 6, 5, 4), torch.float32, device).requires_grad_()
    w = torch.randn(6, 1, 3, 3, device=device, requires_grad=True)
    # The gradient of a mean over the map is not in channels_last
    got = torch.autograd.grad(dwconv3x3(x, w, stride).mean((2, 3)).square().sum(), (x, w))
    truth = torch.autograd.grad(dwconv3x3_ref(x, w, stride).mean((2, 3)).square().sum(), (x, w))
    torch.testing.assert_close(got, truth)
    (only_w,) = torch.autograd.grad(dwconv3x3(x.detach(), w, stride).square().sum(), w)
    truth = torch.autograd.grad(dwconv3x3_ref(x, w, stride).square().sum(), w)
    torch.testing.assert_close(only_w, truth[0], rtol=1e-5, atol=1e-5)  # float32 too: each errs by 1e-7 of the norm


@opcheck_cases
def test_opcheck(device: str, dtype: torch.dtype, stride: int) -> None:
    x, w, _ = dwconv3x3_arguments((2, 8, 6, 5), dtype, stride, device)
    torch.library.opcheck(torch.ops.fastcifar.dwconv3x3.default, (x.requires_grad_(), w.requires_grad_(), stride))


@kinds
def test_reruns_are_bitwise_equal(device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES[-4:]:
        arguments = dwconv3x3_arguments(shape, dtype, 1, device)
        grad = activation(shape, dtype, device)
        first = [dwconv3x3(*arguments), *backward(grad, *arguments, True, True)]
        for _ in range(3):
            again = [dwconv3x3(*arguments), *backward(grad, *arguments, True, True)]
            assert all(map(torch.equal, first, again))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 4, 5)}, r"x must be \[N, C, H, W\], got \[2, 4, 5\]"),
        ({"x": torch.zeros(2, 4, 5, 5, dtype=torch.float64)}, "x must be float32 or bfloat16, got Double"),
        ({"x": torch.zeros(2, 4, 0, 5)}, r"at least one channel and one pixel, got \[2, 4, 0, 5\]"),
        ({"w": torch.zeros(4, 4, 3, 3)}, r"w must be \[4, 1, 3, 3\], got \[4, 4, 3, 3\]"),
        ({"w": torch.zeros(4, 1, 3, 3, dtype=torch.bfloat16)}, "w must be float32 or the activations' Float"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.zeros(2, 4, 5, 5), "w": torch.zeros(4, 1, 3, 3), "stride": 1} | change
    with pytest.raises(RuntimeError, match=f"dwconv3x3: .*{message}"):
        dwconv3x3(**arguments)  # type: ignore[arg-type]


def test_bad_gradients_are_named() -> None:
    x, w = torch.zeros(2, 4, 5, 5), torch.zeros(4, 1, 3, 3)
    with pytest.raises(RuntimeError, match=r"_dwconv3x3_backward: grad_y must be \[2, 4, 3, 3\], got \[2, 4, 5, 5\]"):
        backward(torch.zeros(2, 4, 5, 5), x, w, 2, True, True)
    with pytest.raises(RuntimeError, match="grad_y must be Float like the first argument, got BFloat16"):
        backward(torch.zeros(2, 4, 5, 5, dtype=torch.bfloat16), x, w, 1, True, True)
