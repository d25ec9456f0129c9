"""Making a training batch from an epoch's draws as one op."""

from typing import Any

import pytest
import torch
from op_cases import devices, needs_kernels
from torch import Tensor

import fastcifar.augment
from fastcifar.augment import normalization_table
from fastcifar.ops import training_batch
from fastcifar.ops.training_batch import training_batch_ref

pytestmark = [needs_kernels, pytest.mark.machine]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IMAGES = 50
BOX = torch.zeros(3, 4, dtype=torch.int64)


def arguments(
    batch_size: int,
    padding: int,
    mixed: bool,
    size: int = 32,
    device: str = "cpu",
    step: int = 1,
    batches: float = 2.5,
    boxed: bool = False,
    hole_size: int = 0,
) -> dict[str, Any]:
    """The arguments of an epoch of `batches` batches, and the number of one step."""
    num = int(batches * batch_size)
    starts = torch.arange(num) // batch_size * batch_size
    lengths = (num - starts).clamp(max=batch_size)
    tensors: dict[str, Tensor | None] = {
        "images": torch.randint(0, 256, (IMAGES, size, size, 3), dtype=torch.uint8),
        "labels": torch.randint(0, 100, (IMAGES,)),
        "index": torch.randint(0, IMAGES, (num,)),
        "top": torch.randint(0, 2 * padding + 1, (num,)),
        "left": torch.randint(0, 2 * padding + 1, (num,)),
        "flip": torch.rand(num) < 0.5,
        "partner": (torch.rand(num) * lengths).long() if mixed else None,
        "lam": torch.rand(-(-num // batch_size)) if mixed else None,
        "box": torch.randint(-2, size + 3, (-(-num // batch_size), 4)) if boxed else None,
        "hole": torch.randint(-hole_size, size + 1, (num, 2)) if hole_size else None,
        "step": torch.tensor(step),
    }
    moved: dict[str, Any] = {name: None if t is None else t.to(device) for name, t in tensors.items()}
    table = normalization_table((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)).to(device)
    rows = min(batch_size, num - step * batch_size)
    sizes = {"batch_size": batch_size, "rows": rows, "table": table, "padding": padding, "hole_size": hole_size}
    return moved | sizes


def by_parts(given: dict[str, Any]) -> tuple[Tensor, ...]:
    """The same batch, made from slices of the draws."""
    step = int(given["step"])
    rows = slice(step * given["batch_size"], step * given["batch_size"] + given["rows"])
    index, top, left, flip = (given[name][rows] for name in ("index", "top", "left", "flip"))
    labels = given["labels"][index]
    partner = given["partner"][rows] if given["partner"] is not None else None
    lam = given["lam"][step] if given["lam"] is not None else None
    box = given["box"][step] if given["box"] is not None else None
    hole = given["hole"][rows] if given["hole"] is not None else None
    rest = (given["table"], given["padding"], given["hole_size"], given["dtype"])
    x = fastcifar.augment.augment(given["images"], index, top, left, flip, partner, lam, box, hole, *rest)
    if partner is None:
        return x, labels, labels[:0], given["table"].new_empty(0)
    return x, labels, labels[partner], lam


@devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("batch_size, padding, size", [(1, 4, 32), (5, 0, 32), (129, 4, 32), (7, 3, 5), (9, 9, 7)])
def test_bit_for_bit(device: str, dtype: torch.dtype, mixed: bool, batch_size: int, padding: int, size: int) -> None:
    torch.manual_seed(batch_size)
    for step, batches in [(0, 2.5), (1, 2.5), ((int(2.5 * batch_size) - 1) // batch_size, 2.5), (0, 1)]:
        given = arguments(batch_size, padding, mixed, size, device, step, batches) | {"dtype": dtype}
        got = training_batch(**given)
        assert got[0].dtype == dtype and got[0].is_contiguous(memory_format=torch.channels_last)
        for ours, reference, parts in zip(got, training_batch_ref(**given), by_parts(given), strict=True):
            assert ours.shape == reference.shape and torch.equal(ours, reference) and torch.equal(ours, parts)


@devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixed, boxed", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("batch_size, size, hole_size", [(1, 32, 16), (129, 32, 8), (7, 5, 3), (9, 7, 20), (4, 9, 0)])
def test_holes_and_boxes_bit_for_bit(
    device: str, dtype: torch.dtype, mixed: bool, boxed: bool, batch_size: int, size: int, hole_size: int
) -> None:
    """Both lie partly or wholly outside the image in some of the draws, and some boxes are empty."""
    torch.manual_seed(batch_size)
    for step, batches in [(0, 4.5), (1, 4.5), (3, 4.5), ((int(4.5 * batch_size) - 1) // batch_size, 4.5)]:
        given = arguments(batch_size, 2, mixed, size, device, step, batches, boxed, hole_size) | {"dtype": dtype}
        got = training_batch(**given)
        for ours, reference, parts in zip(got, training_batch_ref(**given), by_parts(given), strict=True):
            assert ours.shape == reference.shape and torch.equal(ours, reference) and torch.equal(ours, parts)


def test_a_hole_and_a_box_by_hand() -> None:
    """Three images of one colour each: a hole of 2 x 2 in each, and a box of one row and two columns of the partner."""
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 4, 4, 3).contiguous()
    zeros, labels = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 2])
    hole = torch.tensor([[0, 1], [-1, 3], [2, 2]])
    box, table = torch.tensor([[1, 2, 1, 3]]), torch.arange(256.0)[:, None].expand(256, 3)
    draws = (labels, zeros, zeros, zeros > 0, torch.tensor([1, 2, 0]), torch.tensor([0.875]), box, hole)
    x, own, theirs, lam = training_batch(images, labels, *draws, torch.tensor(0), 3, 3, table, 0, 2, torch.float32)
    assert x[:, 0].tolist() == [
        [[10, 0, 0, 10], [10, 20, 20, 10], [10, 10, 10, 10], [10, 10, 10, 10]],
        [[20, 20, 20, 0], [20, 30, 30, 20], [20, 20, 20, 20], [20, 20, 20, 20]],
        [[30, 30, 30, 30], [30, 0, 0, 30], [30, 30, 0, 0], [30, 30, 0, 0]],
    ]
    assert own.tolist() == [0, 1, 2] and theirs.tolist() == [1, 2, 0] and lam == 0.875


@devices
def test_a_batch_of_none(device: str) -> None:
    given = arguments(4, 4, True, device=device) | {"rows": 0, "dtype": torch.float32}
    x, labels, partner_labels, lam = training_batch(**given)
    assert x.shape == (0, 3, 32, 32) and not labels.numel() and not partner_labels.numel() and lam == given["lam"][1]


@devices
def test_the_step_is_read_when_the_op_runs(device: str) -> None:
    """A captured graph needs this: its arguments stay the same, and only the number of the step changes."""
    given = arguments(4, 4, True, device=device, step=0) | {"dtype": torch.float32}
    first = training_batch(**given)
    given["step"] += 1
    second = training_batch(**given)
    assert not torch.equal(first[0], second[0]) and second[3] == given["lam"][1]
    assert all(map(torch.equal, second, by_parts(given)))


@devices
def test_number_of_threads_does_not_matter(device: str) -> None:
    given = arguments(130, 4, True, device=device) | {"dtype": torch.bfloat16}
    first, threads = training_batch(**given), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert all(map(torch.equal, first, training_batch(**given)))
    finally:
        torch.set_num_threads(threads)


@devices
@pytest.mark.parametrize(
    "mixed, boxed, hole_size", [(True, True, 8), *(pytest.param(m, False, 0, marks=pytest.mark.slow) for m in (0, 1))]
)
def test_opcheck(device: str, mixed: bool, boxed: bool, hole_size: int) -> None:
    given = arguments(6, 4, mixed, device=device, boxed=boxed, hole_size=hole_size) | {"dtype": torch.bfloat16}
    torch.library.opcheck(torch.ops.fastcifar.training_batch.default, tuple(given.values()))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"images": torch.zeros(50, 32, 32, 4, dtype=torch.uint8)},
            r"images must be \[M, S, S, 3\], got \[50, 32, 32, 4\]",
        ),
        ({"images": torch.zeros(50, 32, 32, 3)}, "images must be uint8, got Float"),
        ({"images": torch.zeros(50, 3, 32, 32, dtype=torch.uint8).permute(0, 2, 3, 1)}, "images must be contiguous"),
        ({"images": torch.zeros(0, 32, 32, 3, dtype=torch.uint8)}, "there are no images to draw from"),
        ({"labels": torch.zeros(49, dtype=torch.int64)}, r"labels must be \[50\], got \[49\]"),
        ({"index": torch.tensor([0] * 6 + [50] + [0] * 3)}, r"index\[6\] must be in \[0, 49\], got 50"),
        ({"index": torch.zeros(0, dtype=torch.int64)}, r"index must be \[N\], N at least 1, got \[0\]"),
        ({"top": torch.tensor([0] * 5 + [9] + [0] * 4)}, r"top\[5\] must be in \[0, 8\], got 9"),
        ({"left": torch.tensor([0] * 4 + [-1] + [0] * 5)}, r"left\[4\] must be in \[0, 8\], got -1"),
        ({"left": torch.zeros(10)}, "left must be Long, got Float"),
        ({"flip": torch.zeros(3, dtype=torch.bool)}, r"flip must be \[10\], got \[3\]"),
        ({"partner": torch.tensor([0] * 7 + [4] + [0] * 2)}, r"partner\[7\] must be in \[0, 3\], got 4"),
        ({"partner": None}, "partner and lam are given together or not at all"),
        ({"lam": torch.zeros(2)}, r"lam must be \[3\], got \[2\]"),
        ({"partner": None, "lam": None, "box": BOX}, "a box is given only with partner and lam"),
        ({"box": BOX[:2]}, r"box must be \[3, 4\], got \[2, 4\]"),
        ({"box": BOX[0]}, r"box must be \[3, 4\], got \[4\]"),
        ({"box": BOX.float()}, "box must be Long, got Float"),
        ({"hole": BOX}, r"hole must be \[10, 2\], got \[3, 4\]"),
        ({"hole": torch.zeros(10, 2, dtype=torch.int32)}, "hole must be Long, got Int"),
        ({"hole_size": -1}, r"hole_size must be in \[0, 1048576\], got -1"),
        ({"step": torch.tensor(3)}, r"step must be in \[0, 2\], got 3"),
        ({"step": torch.tensor(-1)}, r"step must be in \[0, 2\], got -1"),
        ({"step": torch.tensor(1.0)}, r"step must be one int64 number, got Float \[\]"),
        ({"step": torch.tensor(2), "rows": 4}, "batch 2 has 2 images, rows is 4"),
        ({"rows": 5}, r"rows must be in \[0, 4\], got 5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"table": torch.zeros(3, 256)}, r"table must be \[256, 3\], got \[3, 256\]"),
        ({"padding": -1}, r"padding must be in \[0, 1048576\], got -1"),
        ({"dtype": torch.float64}, "dtype must be float32, bfloat16 or float16, got Double"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"training_batch: {message}"):
        training_batch(**arguments(4, 4, mixed=True) | {"dtype": torch.float32} | change)
