"""The step's learning rate and the counters as one op, compared with PyTorch's calls to the last bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import devices, needs_kernels
from torch import Tensor

from fastcifar import ops
from fastcifar.ops._library import references

pytestmark = [needs_kernels, pytest.mark.machine]


def advanced(op: Callable[..., None], step: int, device: str) -> list[Tensor]:
    """Counters and learning rate after a step of a run of five, the second one of its epoch."""
    counters, lr = torch.tensor([1, step], device=device), torch.full((1,), -1.0, device=device)
    op(counters, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], device=device), lr)
    return [counters.cpu(), lr.cpu()]


@devices
@pytest.mark.parametrize("step", [0, 1, 4])
def test_what_pytorchs_calls_do(device: str, step: int) -> None:
    def calls(counters: Tensor, lrs: Tensor, lr: Tensor) -> None:
        torch.index_select(lrs, 0, counters[1:], out=lr)
        counters += 1

    got = advanced(ops.advance_step, step, device)
    assert all(map(torch.equal, got, advanced(calls, step, device)))
    assert got[0].tolist() == [2, step + 1] and got[1].item() == pytest.approx(0.1 + 0.2 * step)


@devices
@pytest.mark.parametrize("step, lr", [(-1, 0.1), (5, 0.9), (2**62, 0.9)])
def test_a_number_that_no_step_has_is_clamped(device: str, step: int, lr: float) -> None:
    got = advanced(ops.advance_step, step, device)
    assert all(map(torch.equal, got, advanced(references["advance_step"], step, device)))
    assert got[0].tolist() == [2, step + 1] and got[1].item() == pytest.approx(lr)


@devices
def test_opcheck(device: str) -> None:
    arguments = (torch.tensor([1, 2], device=device), torch.rand(5, device=device), torch.zeros(1, device=device))
    torch.library.opcheck(torch.ops.fastcifar.advance_step.default, arguments)


@pytest.mark.parametrize(
    "position, change, message",
    [
        (0, torch.zeros(3, dtype=torch.int64), r"counters must be Long \[2\], got Long \[3\]"),
        (0, torch.zeros(2), r"counters must be Long \[2\], got Float \[2\]"),
        (0, torch.zeros(4, dtype=torch.int64)[::2], "counters must be contiguous"),
        (1, torch.zeros(0), "lrs must not be empty"),
        (1, torch.zeros(3).double(), r"lrs must be Float \[3\], got Double \[3\]"),
        (1, torch.zeros(3, 2), r"lrs must be Float \[6\], got Float \[3, 2\]"),
        (1, torch.zeros(6)[::2], "lrs must be contiguous"),
        (2, torch.zeros(()), r"lr must be Float \[1\], got Float \[\]"),
    ],
)
def test_bad_arguments_are_named(position: int, change: Any, message: str) -> None:
    given: list[Any] = [torch.zeros(2, dtype=torch.int64), torch.zeros(3), torch.zeros(1)]
    given[position] = change
    with pytest.raises(RuntimeError, match=f"advance_step: {message}"):
        ops.advance_step(*given)
