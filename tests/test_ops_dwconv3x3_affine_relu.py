"""The block in evaluation mode as one op."""

import pytest
import torch
from op_cases import (
    EPS,
    Shape,
    activation,
    check,
    depthwise_block_arguments,
    kinds,
    needs_kernels,
    opcheck_cases,
    per_channel,
    shapes,
    strides,
)

from fastcifar.ops import depthwise_block, dwconv3x3_affine_relu

pytestmark = [needs_kernels, pytest.mark.machine]


@kinds
@shapes
@strides
def test_forward(device: str, dtype: torch.dtype, shape: Shape, stride: int) -> None:
    torch.manual_seed(0)
    u, scale0, shift0, w, scale1, shift1, _, _ = depthwise_block_arguments(shape, dtype, stride, device)
    check("dwconv3x3_affine_relu", (u, scale0, shift0, w, scale1, shift1, stride))


@kinds
def test_any_layout_and_an_empty_batch(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    _, scale0, shift0, w, scale1, shift1, _, _ = depthwise_block_arguments((3, 7, 8, 8), dtype, 1, device)
    u = activation((3, 14, 9, 8), dtype, device)[:, ::2, 1:, :]
    check("dwconv3x3_affine_relu", (u, scale0, shift0, w.to(dtype), scale1, shift1, 2))
    check("dwconv3x3_affine_relu", (u[:0], scale0, shift0, w, scale1, shift1, 2))


@kinds
def test_it_is_the_block_with_its_statistics_folded(device: str, dtype: torch.dtype) -> None:
    u, gamma0, beta0, w, gamma1, beta1, _, _ = arguments = depthwise_block_arguments((4, 9, 8, 7), dtype, 1, device)
    z, _, mean0, var0, mean1, var1 = depthwise_block(*arguments)
    scale0, scale1 = gamma0 * torch.rsqrt(var0 + EPS), gamma1 * torch.rsqrt(var1 + EPS)
    folded = dwconv3x3_affine_relu(u, scale0, beta0 - mean0 * scale0, w, scale1, beta1 - mean1 * scale1, 1)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(folded, z, rtol=tolerance, atol=tolerance)


@opcheck_cases
def test_opcheck(device: str, dtype: torch.dtype, stride: int) -> None:
    u, scale0, shift0, w, scale1, shift1, _, _ = depthwise_block_arguments((2, 8, 6, 5), dtype, stride, device)
    arguments = (u, scale0, shift0, w, scale1, shift1, stride)
    torch.library.opcheck(torch.ops.fastcifar.dwconv3x3_affine_relu.default, arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.zeros(2, 4, 5)}, r"u must be \[N, C, H, W\], got \[2, 4, 5\]"),
        ({"scale0": torch.zeros(5)}, r"scale0 must be \[4\], got \[5\]"),
        ({"shift1": torch.zeros(4, dtype=torch.float64)}, "shift1 must be float32, got Double"),
        ({"stride": 4}, "stride must be 1 or 2, got 4"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    names = ("scale0", "shift0", "scale1", "shift1")
    arguments = {"u": torch.zeros(2, 4, 5, 5), "w": torch.zeros(4, 1, 3, 3), "stride": 1}
    arguments |= {name: per_channel(4) for name in names} | change
    with pytest.raises(RuntimeError, match=f"dwconv3x3_affine_relu: .*{message}"):
        dwconv3x3_affine_relu(**arguments)  # type: ignore[arg-type]
