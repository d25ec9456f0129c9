"""The network's first convolution."""

import pytest
import torch
import torch.nn.functional as F
from op_cases import (
    DTYPES,
    SHAPES,
    Shape,
    activation,
    as_tuple,
    check,
    depthwise_block_arguments,
    kinds,
    needs_kernels,
    shapes,
    stem_calls,
)
from torch import Tensor

from fastcifar.ops import batch_norm_relu_pool, depthwise_block, separable_block, stem
from fastcifar.ops._moments import merge_rows, num_rows
from fastcifar.ops.stem import stem_backward_ref, stem_ref

pytestmark = [needs_kernels, pytest.mark.machine]
dtypes = pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=str)
backward = torch.ops.fastcifar._stem_backward


@kinds
@shapes
def test_forward_and_backward(device: str, dtype: torch.dtype, shape: Shape) -> None:
    torch.manual_seed(0)
    for name, arguments in stem_calls(shape, dtype, device):
        check(name, arguments)


@kinds
@pytest.mark.parametrize("shape", [(2, 32, 32, 32), (3, 64, 5, 7), (1, 32, 3, 70)])
def test_whole_panels_of_channels(device: str, dtype: torch.dtype, shape: Shape) -> None:
    """Which tile registers multiply, where the processor has them."""
    torch.manual_seed(0)
    for name, arguments in stem_calls(shape, dtype, device):
        check(name, arguments)


def test_the_reference_is_pytorchs_convolution() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 5, 7).double(), torch.randn(4, 3, 3, 3).double().requires_grad_()
    truth = F.conv2d(x, w, padding=1)
    u, rows = stem_ref(x, w)
    torch.testing.assert_close(u, truth)
    assert rows.shape == (num_rows(2 * 5 * 7, 4), 3, 4)
    torch.testing.assert_close(merge_rows(rows), (truth.mean((0, 2, 3)), truth.var((0, 2, 3), correction=0)))
    grad = torch.randn_like(truth)
    torch.testing.assert_close(stem_backward_ref(grad, x, w), *torch.autograd.grad(truth, w, grad))


@dtypes
def test_the_rows_are_the_next_blocks_statistics(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    u, rows = stem(activation((4, 3, 8, 8), dtype), torch.randn(40, 3, 3, 3))
    mean, var = merge_rows(rows)
    torch.testing.assert_close(mean.double(), u.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), u.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    ones, zeros = torch.ones(40), torch.zeros(40)
    block = (u, ones, zeros, torch.randn(40, 1, 3, 3), ones, zeros, torch.randn(8, 40, 1, 1), 1e-5, 1)
    torch.testing.assert_close(separable_block(*block, rows)[4:], separable_block(*block)[4:], rtol=1e-3, atol=1e-4)


@kinds
def test_training_through_a_stem_and_a_block(device: str, dtype: torch.dtype) -> None:
    """The gradient of the weight has what comes through u's statistics, whoever has computed them."""
    torch.manual_seed(0)
    x, w = activation((4, 3, 8, 6), dtype, device), torch.randn(16, 3, 3, 3, device=device, requires_grad=True)
    _, *block = depthwise_block_arguments((4, 16, 8, 6), dtype, 1, device)
    grad = activation((4, 16, 8, 6), dtype, device)
    u, rows = stem(x, w)
    assert rows.requires_grad
    given, own = (
        torch.autograd.grad(depthwise_block(u, *block, None, None, r)[0], w, grad, retain_graph=True)[0]
        for r in (rows, None)
    )
    torch.testing.assert_close(given, own, rtol=1e-2, atol=1e-2 * float(own.abs().max()))
    wide = w.detach().double().requires_grad_()
    gamma0, beta0, w1, gamma1, beta1 = (t.double() for t in block[:5])
    h = F.batch_norm(F.conv2d(x.double(), wide, padding=1), None, None, gamma0, beta0, True, 0.1, 1e-5).relu()
    y = F.conv2d(h, w1, padding=1, groups=16)
    z = F.batch_norm(y, None, None, gamma1, beta1, True, 0.1, 1e-5).relu()
    (truth,) = torch.autograd.grad(z, wide, grad.double())
    assert (given - truth).norm() <= (1e-4 if dtype == torch.float32 else 2e-1) * truth.norm()  # ReLUs flip


@kinds
def test_training_through_a_stem_and_a_pool(device: str, dtype: torch.dtype) -> None:
    """On CUDA the pool has no gradient of the moments, which a stem's have: it must not ask for it."""
    torch.manual_seed(0)
    x, w = activation((4, 3, 8, 6), dtype, device), torch.randn(16, 3, 3, 3, device=device, requires_grad=True)
    gamma, beta = torch.randn(2, 16, device=device)
    u, rows = stem(x, w)
    grad = torch.randn(4, 16).to(dtype).to(device)
    given, own = (
        torch.autograd.grad(batch_norm_relu_pool(u, gamma, beta, 1e-5, r)[0], w, grad, retain_graph=True)[0]
        for r in (rows, None)
    )
    torch.testing.assert_close(given, own, rtol=1e-2, atol=1e-2 * float(own.abs().max()))


@kinds
def test_statistics_far_from_zero(device: str, dtype: torch.dtype) -> None:
    """u is 1000 with deviation 2: a variance computed as a difference of two squares would be lost."""
    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8).mul(2).add(1000).to(dtype).to(memory_format=torch.channels_last).to(device)
    w = torch.zeros(70, 3, 3, 3, device=device)
    w[:, 0, 1, 1] = 1
    u, rows = stem(x, w)
    mean, var = merge_rows(rows)
    exact = u.double().permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact.var(1, correction=0), rtol=2e-5, atol=0)


def test_statistics_of_images_of_which_the_first_lies_far_from_the_others() -> None:
    """The bug: its middle was the pivot, and the variances lost as many digits as the square of its distance has."""
    torch.manual_seed(0)
    x, w = torch.randn(51, 3, 17, 5), torch.randn(16, 3, 3, 3)
    x[0] *= 8
    u, rows = stem(x, w)
    torch.testing.assert_close(
        merge_rows(rows)[-1].double(), u.double().var((0, 2, 3), correction=0), rtol=3e-6, atol=0
    )
    u, *parameters, eps, stride = depthwise_block_arguments((51, 16, 17, 5), torch.float32, 1)
    u[0] *= 8
    y, *_, var1 = torch.ops.fastcifar.depthwise_block(u, *parameters, eps, stride)[1:]
    torch.testing.assert_close(var1.double(), y.double().var((0, 2, 3), correction=0), rtol=3e-6, atol=1e-9)


@dtypes
def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    """Otherwise a diverged run would not be noticed."""
    x, w = activation((2, 3, 5, 5), dtype), torch.randn(6, 3, 3, 3)
    w[2, 1, 0, 0] = float("nan")
    u, rows = stem(x, w)
    finite = torch.tensor([True, True, False, True, True, True])
    assert torch.equal(merge_rows(rows)[0].isfinite(), finite) and torch.equal(merge_rows(rows)[1].isfinite(), finite)
    assert u[:, finite].isfinite().all() and u[0, 2, 1, 1].isnan()
    x, w = activation((2, 3, 5, 6), dtype), torch.randn(32, 3, 3, 3).to(dtype)
    x[0, 1, 2, 3] = float("nan")
    assert torch.equal(stem(x, w)[0].isnan(), F.conv2d(x.double(), w.double(), padding=1).isnan())


@dtypes
def test_any_layout(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = activation((3, 6, 9, 8), dtype)[:, ::2, 1:, :]
    w = torch.randn(7, 3, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    u, _ = check("stem", (x, w))
    check("_stem_backward", (activation((3, 7, 1, 1), dtype).expand_as(u), x.contiguous(), w))


@dtypes
def test_autograd(dtype: torch.dtype) -> None:
    """Of the image too, though training does not need it."""
    torch.manual_seed(0)
    x, w = activation((2, 3, 6, 5), dtype).requires_grad_(), torch.randn(8, 3, 3, 3, requires_grad=True)
    u, rows = stem(x, w)
    assert u.requires_grad and rows.requires_grad
    grad = activation(u.shape, dtype)
    got = torch.autograd.grad(u, (x, w), grad)
    wide = [x.detach().double().requires_grad_(), w.detach().double().requires_grad_()]
    truth = torch.autograd.grad(F.conv2d(*wide, padding=1), wide, grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, exact in zip(got, truth, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


@kinds
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    w = torch.randn(8, 3, 3, 3, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.fastcifar.stem.default, (activation((2, 3, 6, 5), dtype, device), w))


def test_what_comes_through_the_statistics_is_the_gradient_of_the_rows() -> None:
    torch.manual_seed(0)
    x, w = activation((6, 3, 8, 7), torch.float32).requires_grad_(), torch.randn(40, 3, 3, 3, requires_grad=True)
    gamma, beta = torch.rand(40) + 0.5, torch.randn(40)
    weights = torch.randn(6, 40)
    u, rows = stem(x, w)
    apart, together = (
        torch.autograd.grad(
            (batch_norm_relu_pool(u, gamma, beta, 1e-5, r)[0] * weights).sum(), (x, w), retain_graph=True
        )
        for r in (rows, rows.detach())
    )
    wide = [x.detach().double().requires_grad_(), w.detach().double().requires_grad_()]
    h = F.batch_norm(F.conv2d(*wide, padding=1), None, None, gamma.double(), beta.double(), True, 0.1, 1e-5)
    truth = torch.autograd.grad((F.relu(h).mean((2, 3)) * weights).sum(), wide)
    for got in (apart, together):
        for ours, exact in zip(got, truth, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-4)
    (only_rows,) = torch.autograd.grad(stem(x, w)[1][0, 1].sum(), w)
    (mean,) = torch.autograd.grad(F.conv2d(*wide, padding=1).mean((0, 2, 3)).sum(), wide[1])
    torch.testing.assert_close(only_rows.double(), mean, rtol=1e-4, atol=1e-4)


@kinds
def test_reruns_are_bitwise_equal(device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES[-4:]:
        for name, arguments in stem_calls(shape, dtype, device):
            op = getattr(torch.ops.fastcifar, name)
            first, again = as_tuple(op(*arguments)), as_tuple(op(*arguments))
            assert all(map(torch.equal, first, again)), name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 4, 5, 5)}, r"x must be \[N, 3, H, W\], N at least 1, got \[2, 4, 5, 5\]"),
        ({"x": torch.zeros(0, 3, 5, 5)}, r"x must be \[N, 3, H, W\], N at least 1, got \[0, 3, 5, 5\]"),
        ({"x": torch.zeros(2, 3, 5, 5).double()}, "x must be float32 or bfloat16, got Double"),
        ({"w": torch.zeros(4, 1, 3, 3)}, r"w must be \[C, 3, 3, 3\], got \[4, 1, 3, 3\]"),
        ({"w": torch.zeros(4, 3, 3, 3).half()}, "w must be float32 or the images' Float, got Half"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=f" stem: {message}"):
        stem(**({"x": torch.zeros(2, 3, 5, 5), "w": torch.zeros(4, 3, 3, 3)} | change))


def test_bad_gradients_are_named() -> None:
    with pytest.raises(RuntimeError, match=" _stem_backward: grad_u_rows needs u and u_rows"):
        backward(torch.zeros(2, 4, 5, 5), torch.zeros(2, 3, 5, 5), torch.zeros(4, 3, 3, 3), torch.zeros(1, 3, 4))
    with pytest.raises(RuntimeError, match=r" _stem_backward: grad_u must be \[2, 4, 5, 5\], got \[2, 4, 5, 1\]"):
        backward(torch.zeros(2, 4, 5, 1), torch.zeros(2, 3, 5, 5), torch.zeros(4, 3, 3, 3))
