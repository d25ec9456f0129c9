"""The gradient of the loss and the sums of a batch as one op."""

from typing import Any

import pytest
import torch
from op_cases import check, devices, kinds, loss_arguments, needs_kernels, results

from fastcifar.ops import mixup_cross_entropy, mixup_cross_entropy_gradient

pytestmark = [needs_kernels, pytest.mark.machine]


def arguments(*given: Any, grad_loss: float = 1024.0, **more: Any) -> tuple[Any, ...]:
    """(logits, labels, partner_labels, lam, label_smoothing, grad_loss, totals)"""
    loss = loss_arguments(*given, **more)
    device = loss[0].device
    totals = torch.tensor([1000.1, 77.7], dtype=torch.float64, device=device)
    return *loss, torch.tensor(grad_loss, device=device), totals


@kinds
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("rows, classes", [(0, 3), (1, 1), (3, 2), (128, 100), (7, 10), (64, 131), (1500, 10)])
def test_it_is_the_gradient_of_the_loss_to_the_last_bit(
    device: str, dtype: torch.dtype, mixed: bool, rows: int, classes: int
) -> None:
    torch.manual_seed(rows)
    for smoothing, grad_loss in ((0.0, 1.0), (0.1, 3000.7)):
        *given, gradient, totals = arguments(rows, classes, dtype, mixed, smoothing, device, grad_loss=grad_loss)
        logits, *targets = given
        logits.requires_grad_()
        loss, _, sums = mixup_cross_entropy(logits, *targets)
        (expected,), expected_totals = torch.autograd.grad(loss, logits, gradient), totals + sums
        got = mixup_cross_entropy_gradient(logits.detach(), *targets, gradient, totals)
        assert got.dtype == dtype and got.is_contiguous()
        assert torch.equal(got, expected) and torch.equal(totals, expected_totals)


@kinds
@pytest.mark.parametrize("mixed", [False, True])
def test_the_reference(device: str, dtype: torch.dtype, mixed: bool) -> None:
    check("mixup_cross_entropy_gradient", arguments(128, 100, dtype, mixed, device=device, grad_loss=0.7))


@devices
def test_views_and_empty_tensors(device: str) -> None:
    given = arguments(6, 9, torch.float32, True, device=device)
    logits, labels, partner_labels, lam, smoothing, grad_loss, totals = given
    twice = torch.stack((labels, partner_labels), dim=-1)
    views = (logits.T.contiguous().T, twice[:, 0], twice[:, 1], lam.expand(1), smoothing, grad_loss.expand(1), totals)
    plain, empty = ((logits, labels, *none, *given[4:]) for none in ((None, None), (labels[:0], logits[0, :0])))
    for one, other in ((given, views), (plain, empty)):
        assert all(map(torch.equal, *(results("mixup_cross_entropy_gradient", a) for a in (one, other))))


@devices
@pytest.mark.parametrize("mixed", [False, True])
def test_opcheck(device: str, mixed: bool) -> None:
    given = arguments(6, 4, torch.bfloat16, mixed, device=device)
    torch.library.opcheck(torch.ops.fastcifar.mixup_cross_entropy_gradient.default, given)


@devices
def test_number_of_threads_does_not_matter(device: str) -> None:
    given = arguments(1500, 100, torch.bfloat16, True, device=device)
    first, threads = results("mixup_cross_entropy_gradient", given), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert all(map(torch.equal, first, results("mixup_cross_entropy_gradient", given)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(4)}, r"logits must be \[B, K\], K at least 1, got \[4\]"),
        ({1: torch.tensor([0, 1, 9, 0])}, r"labels\[2\] must be in \[0, 8\], got 9"),
        ({3: torch.zeros(4)}, r"lam must be one float32 number, got Float \[4\]"),
        ({5: torch.zeros(4)}, r"grad_loss must be one float32 number, got Float \[4\]"),
        ({5: torch.zeros(()).double()}, r"grad_loss must be one float32 number, got Double \[\]"),
        ({6: torch.zeros(2)}, r"totals must be float64 \[2\], got Float \[2\]"),
        ({6: torch.zeros(3).double()}, r"totals must be float64 \[2\], got Double \[3\]"),
        ({6: torch.zeros(4).double()[::2]}, "totals must be contiguous"),
    ],
)
def test_bad_arguments_are_named(change: dict[int, Any], message: str) -> None:
    given = [change.get(i, value) for i, value in enumerate(arguments(4, 9, torch.float32, True))]
    with pytest.raises(RuntimeError, match=f"mixup_cross_entropy_gradient: {message}"):
        mixup_cross_entropy_gradient(*given)
