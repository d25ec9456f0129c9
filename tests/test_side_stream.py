"""Gradients of weights that are computed on a stream beside the rest of backward. Here they are computed late."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny import NUM_CLASSES, tiny_config
from torch import Tensor

from fastcifar import ops
from fastcifar.batch import Batch
from fastcifar.engines import build, equal_blocks, fused
from fastcifar.engines.fused import FusedModel, fused_forward
from fastcifar.engines.products import SideStream, pointwise
from fastcifar.model import build_model
from fastcifar.target import Target

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


class Late(SideStream):
    """Leaves NaN in each result until `join`, so that whoever reads it before gets NaN.

    Attributes:
        joined: the number of results at each call of `join`.
    """

    def __init__(self) -> None:
        self._waiting: list[Callable[[], Tensor]] = []
        self.joined: list[int] = []

    def working(self, inputs: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        result = a.new_full((*a.shape[:-1], b.shape[-1]), torch.nan)
        self._waiting.append(lambda: torch.matmul(a, b, out=result.detach()))
        return result

    def sum(self, x: Tensor) -> Tensor:
        result = x.new_full((x.shape[1],), torch.nan)
        self._waiting.append(lambda: torch.sum(x, 0, out=result.detach()))
        return result

    @torch.no_grad()
    def join(self) -> None:
        self.joined.append(len(self._waiting))
        for work in self._waiting:
            work()
        self._waiting.clear()


@DTYPES
@pytest.mark.parametrize("shape", [(5, 8, 7, 3), (1, 8, 1, 1), (3, 8, 1, 1), (1, 8, 4, 4)], ids=str)
def test_a_product_is_that_of_the_library(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(16, 8, 1, 1).to(dtype).to(memory_format=torch.channels_last)
    grad = torch.randn(shape[0], 16, *shape[2:]).to(dtype).to(memory_format=torch.channels_last)
    results = []
    for side in (None, Late()):
        inputs = [x.clone().requires_grad_() for x in (z, weight)]
        u = pointwise(*inputs, side)
        grads = torch.autograd.grad(u, inputs, grad)
        if side:
            side.join()
        results.append([u, *grads])
    for expected, got in zip(*results, strict=True):
        assert torch.equal(expected, got) and got.dtype == dtype
        assert got.is_contiguous(memory_format=torch.channels_last)


@DTYPES
def test_a_step_reads_no_gradient_before_the_join(dtype: torch.dtype) -> None:
    """Autograd hands them on as they are, and copies none, although a weight has other strides than its gradient.

    Without a side stream each block is computed by itself, with it five equal ones at once: with the same bits.
    """
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32).to(dtype).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(NUM_CLASSES, (16,)))
    gradients = []
    for side in (None, Late()):
        model = build_model(NUM_CLASSES, 0.125, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forward = fused_forward(FusedModel(model, dtype=dtype, side=side), 0.0)
        for _ in range(2):
            loss, _ = forward(batch)
            loss.backward()
            gradients.append([*(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())])
            for parameter in model.parameters():
                parameter.grad = None
        if side:
            assert side.joined == [8 + 1 + 2] * 2  # five blocks have one, the head two
    for plain, beside in zip(gradients[:2], gradients[2:], strict=True):
        assert all(map(torch.equal, plain, beside))


@pytest.mark.skipif(not ops.available(), reason="without kernels the references compute both")
@DTYPES
def test_a_step_with_the_classifier_as_one_op(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the op the gradients are those without it; and beside the rest of backward they have the same bits.

    On the CPU no step takes the op: its kernels stand for those of a GPU.
    """
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32).to(dtype).to(memory_format=torch.channels_last)
    batch = Batch(images, *torch.randint(NUM_CLASSES, (2, 16)), torch.tensor(0.3))
    taken, loss = [], fused.mixup_cross_entropy_gradient
    for op, side in ((False, None), (True, None), (True, Late())):
        monkeypatch.setattr(fused, "suits_classifier", lambda pooled, classes, op=op: op)
        monkeypatch.setattr(fused, "mixup_cross_entropy_gradient", None if op else loss)
        model = build_model(NUM_CLASSES, 0.125, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        totals = torch.zeros(2, dtype=torch.float64)
        FusedModel(model, dtype=dtype, side=side).take_gradients(batch, torch.tensor(8.0), totals, label_smoothing=0.1)
        taken.append([totals, *(p.grad for p in model.parameters())])
        if side:
            assert side.joined == [8 + 1]  # of the head none
    apart, op, beside = taken
    assert all(map(torch.equal, op, beside))
    for got, expected in zip(op, apart, strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).norm() <= (1e-3 if dtype == torch.float32 else 0.1) * expected.norm() + 1e-5


class OnTheCpu(SideStream):
    """The class itself, with what CUDA does left out."""

    def __init__(self) -> None:
        self._used: list[Tensor] = []

    def working(self, inputs: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        self._used += inputs
        return contextlib.nullcontext()


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_factors_are_kept_until_the_join(batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    side = OnTheCpu()
    a, b = torch.randn(*batch, 64, 8).mT, torch.randn(*batch, 64, 16)
    torch.testing.assert_close(side.product(a, b), a @ b)
    assert all(any(factor is used for used in side._used) for factor in (a, b))


@pytest.mark.parametrize("longest, batches", [(32, [5]), (31, [])])
def test_the_products_of_five_equal_blocks_are_one(
    longest: int, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are small. Their factors lie together, in memory of this step alone."""
    monkeypatch.setattr(equal_blocks, "LONGEST", longest)
    model = build_model(NUM_CLASSES, 0.125, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen: list[list[Tensor]] = []

    class Noted(Late):
        def product(self, a: Tensor, b: Tensor) -> Tensor:
            seen[-1] += (a.mT, b)
            return super().product(a, b)

    side = Noted()
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    for _ in range(2):
        seen.append([])
        loss, _ = fused_forward(FusedModel(model, side=side), 0.0)(Batch(images, torch.zeros(2, dtype=torch.int64)))
        loss.backward()
    for factors in seen:
        assert [len(f) for f in factors if f.dim() == 3] == batches * 2
        assert all(f.is_contiguous() for f in factors)
        assert len(factors) == 2 * (14 - 4 * len(batches))
    assert len({f.data_ptr() for factors in seen for f in factors if f.dim() == 3}) == 4 * len(batches)


def test_equal_blocks_whose_maps_end_amid_16_bytes_are_computed_one_by_one() -> None:
    """153 channels of three 3x3 maps: the ops take no map that begins there."""
    torch.manual_seed(0)
    batch = Batch(torch.randn(3, 3, 24, 24).to(memory_format=torch.channels_last), torch.zeros(3, dtype=torch.int64))
    gradients = []
    for side in (None, Late()):
        model = build_model(NUM_CLASSES, 0.3, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused_forward(FusedModel(model, side=side), 0.0)(batch)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    "blocks, runs", [("abbbc", [1, 3, 1, 1, 1]), ("abbb", [1, 2, 1, 1]), ("aab", [2, 1, 1]), ("a", [1])]
)
def test_a_run_of_equal_blocks_ends_before_the_last(blocks: str, runs: list[int]) -> None:
    assert fused._runs(blocks) == runs


@pytest.mark.parametrize("captured", [False, True])
def test_captured_products_have_a_side_stream(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []

    def side(device: torch.device) -> None:
        made.append(device)

    monkeypatch.setattr(build, "SideStream", side)
    target = Target(tiny_config(engine="fused"))
    build.build_engine(build_model(NUM_CLASSES, 0.125, 0), target, captured=captured)
    assert made == [target.device] * captured
