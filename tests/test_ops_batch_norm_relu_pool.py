"""BN, ReLU and the mean over the whole map as one op."""

import pytest
import torch
import torch.nn.functional as F
from op_cases import (
    DTYPES,
    EPS,
    SHAPES,
    Shape,
    activation,
    as_tuple,
    batch_norm_relu_arguments,
    check,
    end_calls,
    needs_kernels,
    rows_of_halves,
    shapes,
)
from torch import Tensor

from fastcifar.ops import batch_norm_relu_pool
from fastcifar.ops.batch_norm_relu_pool import batch_norm_relu_pool_backward_ref, batch_norm_relu_pool_ref

pytestmark = [needs_kernels, pytest.mark.machine]
dtypes = pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=str)
backward = torch.ops.fastcifar._batch_norm_relu_pool_backward


@dtypes
@shapes
def test_forward_and_backward(dtype: torch.dtype, shape: Shape) -> None:
    torch.manual_seed(0)
    for name, arguments in end_calls(shape, dtype):
        if "pool" in name:
            check(name, arguments)


def test_the_reference_is_pytorchs() -> None:
    torch.manual_seed(0)
    u, gamma, beta, _ = batch_norm_relu_arguments((4, 5, 7, 6), torch.float64)
    inputs = [u.requires_grad_(), gamma.double().requires_grad_(), beta.double().requires_grad_()]
    pooled, mean, var = batch_norm_relu_pool_ref(*inputs, EPS)
    truth = F.avg_pool2d(F.relu(F.batch_norm(inputs[0], None, None, *inputs[1:], True, 0.1, EPS)), (7, 6)).flatten(1)
    torch.testing.assert_close(pooled, truth)
    torch.testing.assert_close(batch_norm_relu_pool_ref(*inputs, EPS, rows_of_halves(u).double())[0], truth)
    grad = torch.randn_like(truth)
    got = batch_norm_relu_pool_backward_ref(grad, *inputs, mean, var, EPS)
    torch.testing.assert_close(got[:3], torch.autograd.grad(truth, inputs, grad))


@dtypes
def test_given_statistics_are_used(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    arguments = batch_norm_relu_arguments((4, 40, 2, 2), dtype)
    rows = rows_of_halves(arguments[0])
    own, given = batch_norm_relu_pool(*arguments), batch_norm_relu_pool(*arguments, rows)
    torch.testing.assert_close(own, given, rtol=1e-3, atol=2e-2 if dtype != torch.float32 else 1e-4)
    rows[:, 1] += 1
    assert not torch.equal(own[0], batch_norm_relu_pool(*arguments, rows)[0])


@dtypes
def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    """Otherwise a diverged run would not be noticed."""
    u, gamma, beta, _ = batch_norm_relu_arguments((2, 3, 4, 4), dtype)
    u[0, 1, 2, 2] = float("nan")
    pooled, mean, var = batch_norm_relu_pool(u, gamma, beta, EPS)
    assert pooled[:, 1].isnan().all() and mean[1].isnan() and var[1].isnan()
    assert pooled[:, ::2].isfinite().all()


@dtypes
def test_any_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    _, gamma, beta, _ = batch_norm_relu_arguments((3, 7, 8, 8), dtype)
    u = activation((3, 14, 9, 8), dtype)[:, ::2, 1:, :]
    _, mean, var = check("batch_norm_relu_pool", (u, gamma, beta, EPS))
    grad = torch.randn(7).to(dtype).expand(3, 7)
    check("_batch_norm_relu_pool_backward", (grad, u.contiguous(), gamma, beta, mean, var, EPS))


@dtypes
def test_autograd_and_opcheck(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    u, gamma, beta, _ = batch_norm_relu_arguments((5, 8, 3, 2), dtype)
    inputs = [x.requires_grad_() for x in (u, gamma, beta)]
    pooled, mean, var = batch_norm_relu_pool(*inputs, EPS)
    assert pooled.requires_grad and not mean.requires_grad and not var.requires_grad
    got = torch.autograd.grad(pooled.float().square().sum(), inputs)
    truth = torch.autograd.grad(batch_norm_relu_pool_ref(*inputs, EPS)[0].float().square().sum(), inputs)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, truth, rtol=tolerance, atol=tolerance)
    torch.library.opcheck(torch.ops.fastcifar.batch_norm_relu_pool.default, (*inputs, EPS))


@dtypes
def test_reruns_are_bitwise_equal(dtype: torch.dtype) -> None:
    for shape in SHAPES[-4:]:
        for name, arguments in end_calls(shape, dtype):
            if "pool" in name:
                op = getattr(torch.ops.fastcifar, name)
                assert all(map(torch.equal, as_tuple(op(*arguments)), as_tuple(op(*arguments)))), name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.zeros(4, 4)}, r"u must be \[N, C, H, W\], got \[4, 4\]"),
        ({"u": torch.zeros(0, 4, 5, 5)}, r"u must not be empty, got \[0, 4, 5, 5\]"),
        ({"gamma": torch.zeros(5)}, r"gamma must be \[4\], got \[5\]"),
        ({"u_rows": torch.zeros(2, 4)}, r"u_rows must be \[rows, 3, 4\], got \[2, 4\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    arguments = {"u": torch.zeros(2, 4, 5, 5), "gamma": torch.zeros(4), "beta": torch.zeros(4)} | change
    with pytest.raises(RuntimeError, match=f" batch_norm_relu_pool: {message}"):
        batch_norm_relu_pool(**arguments, eps=EPS)


@pytest.mark.parametrize(
    "grad, message",
    [
        (torch.zeros(2, 4, 1, 1), r"grad_pooled must be \[2, 4\], got \[2, 4, 1, 1\]"),
        (torch.zeros(2, 4).bfloat16(), "grad_pooled must be Float like u, got BFloat16"),
    ],
)
def test_bad_gradients_are_named(grad: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f" _batch_norm_relu_pool_backward: {message}"):
        backward(grad, torch.zeros(2, 4, 5, 5), *[torch.zeros(4)] * 4, EPS)
