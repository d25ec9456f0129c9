"""The augmentation as one op."""

from typing import Any

import pytest
import torch
from op_cases import devices, needs_kernels
from torch import Tensor

import fastcifar.augment
from fastcifar.augment import normalization_table
from fastcifar.ops import augment
from fastcifar.ops.augment import augment_ref

pytestmark = needs_kernels
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def arguments(batch: int, padding: int, mixed: bool, size: int = 32, device: str = "cpu") -> dict[str, Any]:
    tensors: dict[str, Tensor | None] = {
        "images": torch.randint(0, 256, (50, size, size, 3), dtype=torch.uint8),
        "index": torch.randint(0, 50, (batch,)),
        "top": torch.randint(0, 2 * padding + 1, (batch,)),
        "left": torch.randint(0, 2 * padding + 1, (batch,)),
        "flip": torch.rand(batch) < 0.5,
        "partner": torch.randperm(batch) if mixed else None,
        "lam": torch.rand(()) if mixed else None,
        "table": normalization_table((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }
    return {name: None if t is None else t.to(device) for name, t in tensors.items()} | {"padding": padding}


@devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "batch, padding, size", [(0, 4, 32), (1, 4, 32), (5, 0, 32), (129, 4, 32), (7, 3, 5), (9, 9, 7)]
)
def test_bit_for_bit(device: str, dtype: torch.dtype, mixed: bool, batch: int, padding: int, size: int) -> None:
    torch.manual_seed(batch)
    given = arguments(batch, padding, mixed, size, device) | {"dtype": dtype}
    got = augment(**given)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, augment_ref(**given))
    assert torch.equal(got, fastcifar.augment.augment(**given))


@devices
def test_number_of_threads_does_not_matter(device: str) -> None:
    given = arguments(130, 4, True, device=device) | {"dtype": torch.bfloat16}
    first, threads = augment(**given), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(first, augment(**given))
    finally:
        torch.set_num_threads(threads)


@devices
@pytest.mark.parametrize("mixed", [False, True])
def test_opcheck(device: str, mixed: bool) -> None:
    given = arguments(6, 4, mixed, device=device) | {"dtype": torch.bfloat16}
    torch.library.opcheck(torch.ops.fastcifar.augment.default, tuple(given.values()))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"images": torch.zeros(50, 32, 32, 4, dtype=torch.uint8)},
            r"images must be \[M, S, S, 3\], got \[50, 32, 32, 4\]",
        ),
        ({"images": torch.zeros(50, 32, 32, 3)}, "images must be uint8, got Float"),
        ({"images": torch.zeros(50, 3, 32, 32, dtype=torch.uint8).permute(0, 2, 3, 1)}, "images must be contiguous"),
        ({"index": torch.tensor([0, 1, 50, 2])}, r"index\[2\] must be in \[0, 49\], got 50"),
        ({"top": torch.tensor([0, 9, 0, 2])}, r"top\[1\] must be in \[0, 8\], got 9"),
        ({"left": torch.tensor([-1, 0, 0, 2])}, r"left\[0\] must be in \[0, 8\], got -1"),
        ({"left": torch.zeros(4)}, "left must be Long, got Float"),
        ({"flip": torch.zeros(3, dtype=torch.bool)}, r"flip must be \[4\], got \[3\]"),
        ({"partner": torch.tensor([0, 1, 2, 4])}, r"partner\[3\] must be in \[0, 3\], got 4"),
        ({"partner": None}, "partner and lam are given together or not at all"),
        ({"lam": torch.zeros(2)}, r"lam must be one float32 number, got Float \[2\]"),
        ({"table": torch.zeros(3, 256)}, r"table must be \[256, 3\], got \[3, 256\]"),
        ({"padding": -1}, "padding must not be negative, got -1"),
        ({"dtype": torch.float64}, "dtype must be float32, bfloat16 or float16, got Double"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"augment: {message}"):
        augment(**arguments(4, 4, mixed=True) | {"dtype": torch.float32} | change)
