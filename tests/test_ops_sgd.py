"""A step of SGD for all parameters as one op, compared with torch.optim.SGD to the last bit."""

from typing import Any

import pytest
import torch
from op_cases import DTYPES, devices, needs_kernels, sgd_arguments, stepped
from torch import Tensor

from fastcifar import ops
from fastcifar.ops._library import references

pytestmark = [needs_kernels, pytest.mark.machine]

# PyTorch's vectors have 16 elements at most, and it rounds the elements after the last whole vector in another way.
# Beyond them: parts for several threads, and a tensor for each block of a GPU.
SIZES = [(16,), (32, 3, 1, 1), (64, 1024), (400_000,)]
SETTINGS = [(0.9, True), (0.9, False), (0.0, False)]
torch_rounds_like_us = pytest.mark.skipif(ops.cpu_isa() == "generic", reason="without a fused multiply-add")


def equal(left: list[list[Tensor]], right: list[list[Tensor]]) -> bool:
    return all(map(torch.equal, sum(left, []), sum(right, [])))


def torch_step(arguments: Any) -> list[list[Tensor]]:
    """The same step of torch.optim.SGD(fused=True), on the CPU."""
    params, grads, buffers, _, lr, decays, momentum, nesterov, *_ = arguments
    params = [p.cpu().clone().requires_grad_() for p in params]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(params, decays, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=float(lr), momentum=momentum, nesterov=nesterov, fused=True)
    for i, p in enumerate(params):
        p.grad = grads[i].cpu().to(p.dtype)
        if momentum:
            optimizer.state[p]["momentum_buffer"] = buffers[i].cpu().clone()
    optimizer.step()
    return [[p.detach() for p in params], [optimizer.state[p]["momentum_buffer"] for p in params] if momentum else []]


@devices
@torch_rounds_like_us
@pytest.mark.parametrize("momentum, nesterov", SETTINGS)
@pytest.mark.parametrize("narrow", [None, torch.bfloat16], ids=str)
def test_torchs_step_to_the_last_bit(device: str, narrow: torch.dtype | None, momentum: float, nesterov: bool) -> None:
    torch.manual_seed(0)
    arguments = sgd_arguments(SIZES, narrow, momentum, nesterov, device)
    params, buffers, rounded = stepped(arguments, ops.sgd)
    assert equal([[t.cpu() for t in params], [t.cpu() for t in buffers]], torch_step(arguments))
    assert not torch.equal(params[0], arguments[0][0]), "nothing moved"
    for copy, param in zip(rounded, params, strict=False):
        assert copy.numel() == 0 or torch.equal(copy, param.to(copy.dtype))


@devices
@pytest.mark.parametrize("momentum, nesterov", SETTINGS)
@pytest.mark.parametrize("narrow", [None, *DTYPES["cuda"][1:]], ids=str)
def test_the_reference(device: str, narrow: torch.dtype | None, momentum: float, nesterov: bool) -> None:
    """Any size, views that are not aligned, a tensor without elements, a loss scale."""
    if device == "cpu" and narrow == torch.float16:
        pytest.skip("the CPU has no float16 kernels")
    torch.manual_seed(0)
    shapes = [(1,), (5,), (0,), (100,), (7, 3, 3, 3), (4097,)]
    for scale in (None, torch.full((1,), 8.0, device=device)):
        for shift in (0, 1):
            arguments = sgd_arguments(shapes, narrow, momentum, nesterov, device, shift=shift, grad_scale=scale)
            for got, expected in zip(stepped(arguments, ops.sgd), stepped(arguments, references["sgd"]), strict=True):
                torch.testing.assert_close(got, expected)
            assert equal(stepped(arguments, ops.sgd), stepped(arguments, ops.sgd)), "the same bits again"


@devices
def test_an_overflow_changes_nothing(device: str) -> None:
    arguments = sgd_arguments([(5,), (64,)], torch.bfloat16, 0.9, True, device)
    for found, changed in ((1.0, False), (0.0, True)):
        given = (*arguments[:8], None, torch.full((1,), found, device=device))
        before = [arguments[i] for i in (0, 2, 3)]
        assert equal(stepped(given, ops.sgd), before) != changed


@devices
def test_more_tensors_than_a_launch_takes(device: str) -> None:
    torch.manual_seed(0)
    arguments = sgd_arguments([(3,)] * 200, torch.bfloat16, 0.9, True, device)
    for got, expected in zip(stepped(arguments, ops.sgd), stepped(arguments, references["sgd"]), strict=True):
        torch.testing.assert_close(got, expected)
    ops.sgd([], [], [], [], arguments[4], [], 0.9, True)


@devices
def test_channels_last(device: str) -> None:
    torch.manual_seed(0)
    dense = sgd_arguments([(8, 3, 3, 3)], None, 0.9, True, device)
    last = [
        [t.to(memory_format=torch.channels_last) for t in a] if isinstance(a, list) and i < 3 else a
        for i, a in enumerate(dense)
    ]
    assert equal(stepped(dense, ops.sgd), stepped(last, ops.sgd))


@devices
def test_opcheck(device: str) -> None:
    for momentum in (0.9, 0.0):
        arguments = sgd_arguments([(5,), (4, 3, 1, 1)], torch.bfloat16, momentum, False, device)
        torch.library.opcheck(torch.ops.fastcifar.sgd.default, tuple(arguments))


def test_the_number_of_threads_changes_no_bit() -> None:
    arguments, threads = sgd_arguments(SIZES, torch.bfloat16, 0.9, True), torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(stepped(arguments, ops.sgd))
    finally:
        torch.set_num_threads(threads)
    assert equal(*results)


@pytest.mark.parametrize(
    "position, change, message",
    [
        (0, [torch.zeros(4), torch.zeros(6).double()], r"params\[1\] must be Float, got Double"),
        (0, [torch.zeros(4), torch.zeros(12)[::2]], r"params\[1\] must be contiguous or channels_last"),
        (1, [torch.zeros(4)], "grads must have as many entries as params, 2, got 1"),
        (1, [torch.zeros(4), torch.zeros(5)], r"grads\[1\] must have the shape \[6\] and the strides of params\[1\]"),
        (1, [torch.zeros(4), torch.zeros(12)[::2]], r"the strides of params\[1\]"),
        (1, [torch.zeros(4).double(), torch.zeros(6)], r"grads\[0\] must be Float, got Double"),
        (2, [], "momentum_buffers must have as many entries as params, 2, got 0"),
        (2, [torch.zeros(4), torch.zeros(6).bfloat16()], r"momentum_buffers\[1\] must be Float, got BFloat16"),
        (3, [torch.zeros(4)], "rounded must have as many entries as params, 2, got 1"),
        (3, [torch.zeros(4).half(), torch.zeros(6)], r"rounded\[0\] must be bfloat16, got Half"),
        (3, [torch.zeros(0), torch.zeros(5).bfloat16()], r"rounded\[1\] must have the shape \[6\]"),
        (4, torch.zeros(2), r"lr must be one float32 number, got Float \[2\]"),
        (4, torch.zeros(()).double(), r"lr must be one float32 number, got Double \[\]"),
        (5, [0.1], "weight_decays must have as many entries as params, 2, got 1"),
    ],
)
def test_bad_arguments_are_named(position: int, change: Any, message: str) -> None:
    given: list[Any] = [
        [torch.zeros(4), torch.zeros(6)], [torch.zeros(4), torch.zeros(6)], [torch.zeros(4), torch.zeros(6)], [],
        torch.zeros(()), [0.1, 0.0], 0.9, True,
    ]  # fmt: skip
    given[position] = change
    with pytest.raises(RuntimeError, match=f"sgd: .*{message}"):
        ops.sgd(*given)
