"""Loss, correct predictions and their gradient as one op."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_cases import DTYPES, as_tuple, devices, error, in_float64, kinds, needs_kernels
from op_cases import loss_arguments as arguments
from torch import Tensor

from fastcifar.batch import Batch
from fastcifar.engines.eager import loss_and_sums
from fastcifar.ops import mixup_cross_entropy
from fastcifar.ops._library import references
from fastcifar.ops.mixup_cross_entropy import mixup_cross_entropy_backward_ref, mixup_cross_entropy_ref

pytestmark = [needs_kernels, pytest.mark.machine]
backward = torch.ops.fastcifar._mixup_cross_entropy_backward


def check(name: str, given: tuple[Any, ...]) -> None:
    """Checks that an output is as close to float64 as the PyTorch reference in the op's own dtypes."""
    got = as_tuple(getattr(torch.ops.fastcifar, name)(*given))
    reference, truth = (as_tuple(references[name](*a)) for a in (given, in_float64(given)))
    for i, (g, r, t) in enumerate(zip(got, reference, truth, strict=True)):
        assert g.dtype == r.dtype and g.shape == r.shape and g.is_contiguous(), (name, i)
        allowed = 2 * error(r, t) + 3e-7 * float(t.norm())
        assert error(g, t) <= allowed, f"{name}, output {i}: error {error(g, t):.2e}, allowed {allowed:.2e}"


@kinds
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("rows, classes", [(1, 1), (3, 2), (128, 100), (7, 10), (64, 131), (1500, 10)])
def test_forward_and_backward(device: str, dtype: torch.dtype, mixed: bool, rows: int, classes: int) -> None:
    torch.manual_seed(rows)
    for smoothing in (0.0, 0.1):
        given = arguments(rows, classes, dtype, mixed, smoothing, device)
        check("mixup_cross_entropy", given)
        normalizer = torch.ops.fastcifar.mixup_cross_entropy(*given)[3]
        check("_mixup_cross_entropy_backward", (torch.tensor(0.7, device=device), given[0], normalizer, *given[1:]))


@devices
@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_engines_loss_and_gradient(device: str, dtype: torch.dtype, mixed: bool) -> None:
    logits, labels, partner_labels, lam, smoothing = arguments(128, 100, dtype, mixed, device=device)
    logits.requires_grad_()
    loss, expected_sums = loss_and_sums(logits, Batch(logits, labels, partner_labels, lam), smoothing)
    got_loss, got_correct, sums = mixup_cross_entropy(logits, labels, partner_labels, lam, smoothing)
    torch.testing.assert_close(got_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(got_correct, expected_sums[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(sums, expected_sums.double(), rtol=1e-6, atol=0)
    (expected,), (got,) = (torch.autograd.grad(value * 3, logits) for value in (loss, got_loss))
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-8)


def test_the_gradients_formula() -> None:
    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits: Tensor, *rest: Any) -> Tensor:  # type: ignore[no-untyped-def]
            loss, _, _, normalizer = mixup_cross_entropy_ref(logits, *rest)
            ctx.save_for_backward(logits, normalizer)
            ctx.rest = rest
            return loss

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
            return mixup_cross_entropy_backward_ref(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None

    for mixed in (False, True):
        logits, *rest = in_float64(arguments(5, 7, torch.float64, mixed))
        assert torch.autograd.gradcheck(Reference.apply, (torch.randn_like(logits).requires_grad_(), *rest))


@devices
def test_of_equal_logits_the_first_is_the_prediction(device: str) -> None:
    logits = torch.zeros(4, 20, device=device)
    logits[1, [7, 13]] = 1
    logits[2] = -torch.inf
    logits[3, 19] = 1
    for labels, correct in (([0, 7, 0, 19], 4), ([1, 13, 1, 0], 0)):
        assert mixup_cross_entropy(logits, torch.tensor(labels, device=device), None, None, 0.0)[1] == correct


@devices
def test_large_and_infinite_logits(device: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 3.0, 1.0]], device=device)
    labels = torch.tensor([1, 1], device=device)
    loss, _, _ = mixup_cross_entropy(logits, labels, None, None, 0.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    assert mixup_cross_entropy(logits, labels, None, None, 0.1)[0] == torch.inf
    assert mixup_cross_entropy(logits * torch.nan, labels, None, None, 0.1)[0].isnan()


@devices
def test_empty_tensors_are_no_mixup_and_an_empty_batch_has_no_loss(device: str) -> None:
    logits, labels, *_ = arguments(6, 4, torch.float32, False, device=device)
    none = labels.new_empty(0), logits.new_empty(0)
    got, expected = (mixup_cross_entropy(logits, labels, *mixing, 0.1) for mixing in (none, (None, None)))
    assert all(map(torch.equal, got, expected))
    empty = logits[:0].requires_grad_()
    loss, correct, sums = mixup_cross_entropy(empty, labels[:0], None, None, 0.1)
    assert loss.isnan() and correct == 0 and sums.tolist() == [0, 0]
    assert torch.autograd.grad(loss, empty)[0].shape == (0, 4)


@devices
def test_views(device: str) -> None:
    logits, labels, partner_labels, lam, smoothing = arguments(6, 9, torch.float32, True, device=device)
    strided = torch.stack((logits, logits), dim=-1)[..., 0]
    twice = torch.stack((labels, partner_labels), dim=-1)
    expected = mixup_cross_entropy(logits, labels, partner_labels, lam, smoothing)
    for got in (
        mixup_cross_entropy(strided, twice[:, 0], twice[:, 1], lam.expand(1), smoothing),
        mixup_cross_entropy(logits.T.contiguous().T, labels, partner_labels, lam, smoothing),
    ):
        assert all(map(torch.equal, expected, got))


@devices
@pytest.mark.parametrize("mixed", [False, True])
def test_opcheck(device: str, mixed: bool) -> None:
    given = arguments(6, 4, torch.bfloat16, mixed, device=device)
    torch.library.opcheck(torch.ops.fastcifar.mixup_cross_entropy.default, (given[0].requires_grad_(), *given[1:]))
    loss, _, _, normalizer = torch.ops.fastcifar.mixup_cross_entropy(*given)
    torch.library.opcheck(backward.default, (loss.detach(), given[0].detach(), normalizer, *given[1:]))


@devices
def test_number_of_threads_does_not_matter(device: str) -> None:
    given = arguments(1500, 100, torch.bfloat16, True, device=device)
    first, threads = torch.ops.fastcifar.mixup_cross_entropy(*given), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert all(map(torch.equal, first, torch.ops.fastcifar.mixup_cross_entropy(*given)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(4)}, r"logits must be \[B, K\], K at least 1, got \[4\]"),
        ({0: torch.zeros(4, 0)}, r"logits must be \[B, K\], K at least 1, got \[4, 0\]"),
        ({0: torch.zeros(4, 9).double()}, "logits must be float32 or bfloat16, got Double"),
        ({1: torch.tensor([0, 1, 9, 0])}, r"labels\[2\] must be in \[0, 8\], got 9"),
        ({1: torch.tensor([-100, 1, 0, 0])}, r"labels\[0\] must be in \[0, 8\], got -100"),
        ({1: torch.zeros(3, dtype=torch.int64)}, r"labels must be \[4\], got \[3\]"),
        ({1: torch.zeros(4)}, "labels must be Long, got Float"),
        ({2: torch.tensor([0, 1, 2, 10])}, r"partner_labels\[3\] must be in \[0, 8\], got 10"),
        ({2: None}, "partner_labels and lam are given together or not at all"),
        ({3: None}, "partner_labels and lam are given together or not at all"),
        ({3: torch.zeros(4)}, r"lam must be one float32 number, got Float \[4\]"),
        ({3: torch.zeros(()).double()}, r"lam must be one float32 number, got Double \[\]"),
        ({4: 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(change: dict[int, Any], message: str) -> None:
    given = [change.get(i, value) for i, value in enumerate(arguments(4, 9, torch.float32, True))]
    with pytest.raises(RuntimeError, match=f"mixup_cross_entropy: {message}"):
        mixup_cross_entropy(*given)


def test_bad_arguments_of_the_backward_are_named() -> None:
    logits, *rest = arguments(4, 9, torch.float32, True)
    with pytest.raises(RuntimeError, match=r"_mixup_cross_entropy_backward: normalizer must be float32 \[4\]"):
        backward(torch.tensor(1.0), logits, torch.zeros(3), *rest)
    with pytest.raises(RuntimeError, match="grad_loss must be one float32 number, got Double"):
        backward(torch.tensor(1.0).double(), logits, torch.zeros(4), *rest)


def test_no_graph_break_and_the_same_gradient_when_compiled() -> None:
    def loss_of(logits: Tensor) -> Tensor:
        return mixup_cross_entropy(logits * 2, *rest)[0]

    logits, *rest = arguments(6, 9, torch.float32, True)
    logits.requires_grad_()
    expected, got = loss_of(logits), torch.compile(loss_of, fullgraph=True, backend="aot_eager")(logits)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(expected, logits))
