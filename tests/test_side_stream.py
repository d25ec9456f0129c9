"""Gradients of weights that are computed on a stream beside the rest of backward. Here they are computed late."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny import NUM_CLASSES, tiny_config
from torch import Tensor

from fastcifar.batch import Batch
from fastcifar.engines import build
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

    def product(self, a: Tensor, b: Tensor, batch: int = 1) -> Tensor:
        result = a.new_full((a.shape[0], b.shape[1]), torch.nan)
        self._waiting.append(lambda: torch.mm(a, b, out=result.detach()))
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
    """Autograd hands them on as they are, and copies none, although a weight has other strides than its gradient."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32).to(dtype).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(NUM_CLASSES, (16,)))
    gradients = []
    for side in (None, Late()):
        model = build_model(NUM_CLASSES, 0.125, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = FusedModel(model, dtype=dtype, side=side)
        for _ in range(2):
            loss, _ = fused_forward(fused, 0.0)(batch)
            loss.backward()
            gradients.append([p.grad for p in model.parameters()])
            for parameter in model.parameters():
                parameter.grad = None
        if side:
            assert side.joined == [13 + 2, 13 + 2]  # the head has two
    for plain, beside in zip(gradients[:2], gradients[2:], strict=True):
        assert all(map(torch.equal, plain, beside))


class OnTheCpu(SideStream):
    """The class itself, with what CUDA does left out."""

    def __init__(self) -> None:
        self._used: list[Tensor] = []
        self._batch: list[tuple[Tensor, Tensor]] = []

    def working(self, inputs: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        self._used += inputs
        return contextlib.nullcontext()


@pytest.mark.parametrize("length, calls", [(64, ["bmm"]), (4097, ["mm"] * 3)], ids=str)
def test_small_products_of_the_same_shapes_are_one_batch(
    length: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for name in ("mm", "bmm"):
        own = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, own=own, name=name, **k: (seen.append(name), own(*a, **k))[1])
    torch.manual_seed(0)
    side = OnTheCpu()
    for _ in range(2):
        factors = [(torch.randn(length, 8).t(), torch.randn(length, 16)) for _ in range(3)]
        results = [side.product(a, b, 3) for a, b in factors]
        assert seen == calls
        for (a, b), result in zip(factors, results, strict=True):
            torch.testing.assert_close(result, a @ b)
        assert {id(t) for pair in factors for t in pair} <= {id(t) for t in side._used}, "kept until the join"
        seen.clear()


def test_a_model_batches_its_five_equal_blocks() -> None:
    model = build_model(NUM_CLASSES, 0.125, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches: list[int] = []

    class Noted(Late):
        def product(self, a: Tensor, b: Tensor, batch: int = 1) -> Tensor:
            batches.append(batch)
            return super().product(a, b)

    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    loss, _ = fused_forward(FusedModel(model, side=Noted()), 0.0)(Batch(images, torch.zeros(2, dtype=torch.int64)))
    loss.backward()
    assert batches == [1, 1, 1, 5, 5, 5, 5, 5, 1, 1, 1, 1, 1, 1], "from the head to the first block"


@pytest.mark.parametrize("captured", [False, True])
def test_captured_products_have_a_side_stream(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []

    def side(device: torch.device) -> None:
        made.append(device)

    monkeypatch.setattr(build, "SideStream", side)
    target = Target(tiny_config(engine="fused"))
    build.build_engine(build_model(NUM_CLASSES, 0.125, 0), target, captured=captured)
    assert made == [target.device] * captured
