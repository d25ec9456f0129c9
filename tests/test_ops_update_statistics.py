"""The running statistics of all BNs as one op, compared with torch.lerp to the last bit."""

from typing import Any

import pytest
import torch
from op_cases import devices, needs_kernels, statistics_arguments, updated
from torch import Tensor, nn

from fastcifar import ops
from fastcifar.ops._library import references

pytestmark = [needs_kernels, pytest.mark.machine]

# Less than a vector of any instruction set, whole vectors, several blocks of a GPU
CHANNELS = [1, 0, 3, 8, 17, 32, 257, 1024]
MOMENTA = [0.0, 0.1, 0.5, 0.7, 1.0]
fuses = ops.cpu_isa() not in ("generic", None)
torch_rounds_like_us = pytest.mark.skipif(
    fuses == (torch.backends.cpu.get_cpu_capability() == "DEFAULT"),
    reason="either PyTorch or the ops have no fused multiply-add",
)


def equal(left: list[list[Tensor]], right: list[list[Tensor]]) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(sum(left, []), sum(right, []), strict=True))


@devices
@torch_rounds_like_us
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("shift", [0, 1])
def test_torchs_lerp_to_the_last_bit(device: str, shift: int, momentum: float) -> None:
    if device == "cuda" and not fuses:
        pytest.skip("a GPU has a fused multiply-add, and PyTorch here has none")
    torch.manual_seed(0)
    arguments = statistics_arguments(CHANNELS, momentum, shift=shift)
    on_device = [[t.to(device) for t in list_] for list_ in arguments[:4]]
    got = updated((*on_device, *arguments[4:]), ops.update_statistics)
    assert equal(got, updated(arguments, references["update_statistics"]))
    assert equal(got, updated(arguments, torchs_calls_for_lists))
    assert equal(got, list(arguments[:2])) == (momentum == 0)


def torchs_calls_for_lists(
    running_means: list[Tensor],
    running_vars: list[Tensor],
    means: list[Tensor],
    variances: list[Tensor],
    counts: list[int],
    momentum: float,
) -> None:
    unbiased = torch._foreach_mul(variances, [n / max(n - 1, 1) for n in counts])
    torch._foreach_lerp_([*running_means, *running_vars], [*means, *unbiased], momentum)


@devices
@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_reference(device: str, momentum: float) -> None:
    """More tensors than a launch takes too, and the same bits again."""
    torch.manual_seed(0)
    for channels in (CHANNELS, [3] * 100):
        arguments = statistics_arguments(channels, momentum, device)
        got = updated(arguments, ops.update_statistics)
        torch.testing.assert_close(got, updated(arguments, references["update_statistics"]))
        assert equal(got, updated(arguments, ops.update_statistics))


@devices
def test_what_batch_norm_does(device: str) -> None:
    torch.manual_seed(0)
    norm, x = nn.BatchNorm2d(5).to(device), torch.randn(3, 5, 2, 2, device=device)
    running_mean, running_var = torch.zeros(5, device=device), torch.ones(5, device=device)
    for _ in range(3):
        norm(x)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        ops.update_statistics([running_mean], [running_var], [mean], [variance], [12], 0.1)
    torch.testing.assert_close([running_mean, running_var], [norm.running_mean, norm.running_var])


@devices
def test_not_a_number_stays_one(device: str) -> None:
    arguments = statistics_arguments([40], 0.1, device)
    arguments[3][0][33] = float("nan")
    means, variances = updated(arguments, ops.update_statistics)
    assert variances[0].isnan().nonzero().tolist() == [[33]] and means[0].isfinite().all()


@devices
def test_opcheck(device: str) -> None:
    torch.library.opcheck(torch.ops.fastcifar.update_statistics.default, statistics_arguments([5, 32], 0.1, device))


@pytest.mark.parametrize(
    "position, change, message",
    [
        (0, [torch.zeros(4)], "running_vars must have as many entries as running_means, 1, got 2"),
        (0, [torch.zeros(4), torch.zeros(6).double()], r"running_means\[1\] must be Float, got Double"),
        (0, [torch.zeros(4), torch.zeros(2, 3)], r"running_means\[1\] must be \[6\], got \[2, 3\]"),
        (1, [torch.zeros(4), torch.zeros(5)], r"running_vars\[1\] must be \[6\], got \[5\]"),
        (1, [torch.zeros(8)[::2], torch.zeros(6)], r"running_vars\[0\] must be contiguous"),
        (2, [], "means must have as many entries as running_means, 2, got 0"),
        (2, [torch.zeros(4), torch.zeros(12)[::2]], r"means\[1\] must be contiguous"),
        (3, [torch.zeros(4).bfloat16(), torch.zeros(6)], r"variances\[0\] must be Float, got BFloat16"),
        (4, [8], "counts must have as many entries as running_means, 2, got 1"),
        (4, [8, 0], r"counts\[1\] must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(position: int, change: Any, message: str) -> None:
    given: list[Any] = [*([torch.zeros(4), torch.zeros(6)] for _ in range(4)), [8, 2], 0.1]
    given[position] = change
    with pytest.raises(RuntimeError, match=f"update_statistics: {message}"):
        ops.update_statistics(*given)


def test_too_many_channels_are_named() -> None:
    lists = [[torch.zeros(1).expand(2**30 + 1)] for _ in range(4)]
    with pytest.raises(RuntimeError, match=r"running_means\[0\] has 1073741825 channels; at most 1073741824"):
        ops.update_statistics(*lists, [2], 0.1)
