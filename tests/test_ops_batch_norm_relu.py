"""BN and ReLU as one op."""

import pytest
import torch
import torch.nn.functional as F
from op_cases import (
    EPS,
    SHAPES,
    Shape,
    activation,
    backward_arguments,
    batch_norm_relu_arguments,
    check,
    devices,
    kinds,
    needs_kernels,
    shapes,
)
from torch import Tensor

from fastcifar.ops import batch_norm_relu
from fastcifar.ops.batch_norm_relu import batch_norm_relu_backward_ref, batch_norm_relu_ref

pytestmark = [needs_kernels, pytest.mark.machine]
backward = torch.ops.fastcifar._batch_norm_relu_backward


@kinds
@shapes
def test_forward_and_backward(device: str, dtype: torch.dtype, shape: Shape) -> None:
    torch.manual_seed(0)
    arguments = batch_norm_relu_arguments(shape, dtype, device)
    check("batch_norm_relu", arguments)
    grad = activation(shape, dtype, device)
    check("_batch_norm_relu_backward", backward_arguments("batch_norm_relu", arguments, grad))


def test_the_reference_is_pytorchs_batch_norm() -> None:
    x, gamma, beta, _ = batch_norm_relu_arguments((4, 5, 7, 6), torch.float64)
    gamma, beta = gamma.double(), beta.double()
    z, mean, var = batch_norm_relu_ref(x, gamma, beta, EPS)
    running_mean, running_var = torch.zeros(5).double(), torch.ones(5).double()
    truth = F.relu(F.batch_norm(x, running_mean, running_var, gamma, beta, True, 1.0, EPS))
    torch.testing.assert_close(z, truth)
    torch.testing.assert_close(mean, running_mean)
    torch.testing.assert_close(var * 168 / 167, running_var)


def test_the_gradients_formula() -> None:
    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            z, mean, var = batch_norm_relu_ref(x, gamma, beta, EPS)
            ctx.save_for_backward(x, gamma, beta, mean, var)
            return z

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
            return batch_norm_relu_backward_ref(grad, *ctx.saved_tensors, EPS)

    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 4, 5), torch.randn(3), torch.randn(3))
    assert torch.autograd.gradcheck(Reference.apply, [x.double().requires_grad_() for x in inputs])


@kinds
def test_any_layout(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    _, gamma, beta, _ = batch_norm_relu_arguments((3, 7, 8, 8), dtype, device)
    x = activation((3, 14, 9, 8), dtype, device)[:, ::2, 1:, :]
    _, mean, var = check("batch_norm_relu", (x, gamma, beta, EPS))
    grad = activation((3, 7, 1, 1), dtype, device).expand_as(x)
    check("_batch_norm_relu_backward", (grad, x.contiguous(), gamma, beta, mean, var, EPS))


@kinds
def test_statistics_far_from_zero(device: str, dtype: torch.dtype) -> None:
    """Numbers around 1000 with deviation 2: a variance computed as a difference of two squares would be lost."""
    torch.manual_seed(0)
    x = (torch.randn(40, 70, 8, 8, device=device).mul(2).add(1000)).to(dtype).to(memory_format=torch.channels_last)
    _, mean, var = batch_norm_relu(x, torch.ones(70, device=device), torch.zeros(70, device=device), EPS)
    exact = x.double().permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact.var(1, correction=0), rtol=2e-5, atol=0)


@kinds
def test_what_is_not_finite_stays_so(device: str, dtype: torch.dtype) -> None:
    """Otherwise a diverged run would not be noticed."""
    x, gamma, beta, _ = batch_norm_relu_arguments((2, 3, 4, 4), dtype, device)
    for value in (float("nan"), float("inf")):
        x[0, 1, 2, 2] = value
        z, mean, var = batch_norm_relu(x, gamma, beta, EPS)
        assert z[:, 1].isnan().all() and not mean[1].isfinite() and not var[1].isfinite()
        assert z[:, ::2].isfinite().all()


@devices
def test_autograd(device: str) -> None:
    x, gamma, beta, _ = batch_norm_relu_arguments((2, 6, 5, 4), torch.float32, device)
    inputs = [x.requires_grad_(), gamma.requires_grad_(), beta.requires_grad_()]
    z, mean, var = batch_norm_relu(*inputs, EPS)
    assert z.requires_grad and not mean.requires_grad and not var.requires_grad
    got = torch.autograd.grad(z.mean((2, 3)).square().sum(), inputs)
    truth = torch.autograd.grad(batch_norm_relu_ref(*inputs, EPS)[0].mean((2, 3)).square().sum(), inputs)
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-6)


@kinds
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    x, gamma, beta, _ = batch_norm_relu_arguments((2, 8, 6, 5), dtype, device)
    arguments = (x.requires_grad_(), gamma.requires_grad_(), beta.requires_grad_(), EPS)
    torch.library.opcheck(torch.ops.fastcifar.batch_norm_relu.default, arguments)


@kinds
def test_reruns_are_bitwise_equal(device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES[-4:]:
        arguments = batch_norm_relu_arguments(shape, dtype, device)
        first = batch_norm_relu(*arguments)
        backward_inputs = backward_arguments("batch_norm_relu", arguments, activation(shape, dtype, device))
        first_gradients = backward(*backward_inputs)
        for _ in range(3):
            assert all(map(torch.equal, first, batch_norm_relu(*arguments)))
            assert all(map(torch.equal, first_gradients, backward(*backward_inputs)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(4, 4)}, r"x must be \[N, C, H, W\], got \[4, 4\]"),
        ({"gamma": torch.zeros(5)}, r"gamma must be \[4\], got \[5\]"),
        ({"beta": torch.zeros(4, dtype=torch.bfloat16)}, "beta must be float32, got BFloat16"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    arguments = {"x": torch.zeros(2, 4, 5, 5), "gamma": torch.zeros(4), "beta": torch.zeros(4)} | change
    with pytest.raises(RuntimeError, match=f"batch_norm_relu: .*{message}"):
        batch_norm_relu(**arguments, eps=EPS)
