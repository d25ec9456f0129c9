"""The classifier, its loss and the gradients of its input, weight and bias as one op."""

import sys
from collections.abc import Sequence
from typing import Any

import machines
import pytest
import torch
import torch.nn.functional as F
from op_cases import check, classifier_arguments, devices, kinds, needs_kernels, results
from torch import Tensor

from fastcifar.ops import classifier_gradient, mixup_cross_entropy_gradient
from fastcifar.ops.cases import WrongResult, in_float64, rounding_of_logits
from fastcifar.ops.classifier_gradient import classifier_gradient_ref, suits

pytestmark = [needs_kernels, pytest.mark.machine]

NAME = "classifier_gradient"


def skip_without_kernel(device: str, dtype: torch.dtype) -> None:
    if not suits(torch.empty(1, 128, dtype=dtype, device=device), 1):
        pytest.skip(f"this GPU has no kernel for {dtype}")


@kinds
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "rows, channels, classes",
    [(1, 128, 1), (3, 256, 2), (128, 1024, 100), (7, 384, 10), (130, 128, 128), (300, 2048, 20)],
)
def test_the_reference(device: str, dtype: torch.dtype, mixed: bool, rows: int, channels: int, classes: int) -> None:
    skip_without_kernel(device, dtype)
    torch.manual_seed(rows)
    for smoothing in (0.0, 0.1):
        given = classifier_arguments(rows, channels, classes, dtype, mixed, smoothing=smoothing, device=device)
        *gradients, _ = check(NAME, given)
        assert all(grad.is_contiguous() for grad in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows, channels, classes", [(0, 8, 3), (5, 1, 1), (13, 37, 131), (9, 130, 7)])
def test_the_cpu_takes_all_shapes(dtype: torch.dtype, rows: int, channels: int, classes: int) -> None:
    torch.manual_seed(rows)
    given = classifier_arguments(rows, channels, classes, dtype, True)
    if rows:
        check(NAME, given)
    else:
        grad_pooled, grad_weight, grad_bias, totals = results(NAME, given)
        assert grad_pooled.shape == (0, channels) and torch.equal(totals, given[-1])
        assert torch.equal(grad_weight, 0 * given[1]) and torch.equal(grad_bias, 0 * given[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_is_mixup_cross_entropys_to_the_last_bit(dtype: torch.dtype) -> None:
    """Where no logit and no gradient of a channel is a sum."""
    pooled, _, bias, *targets, totals = classifier_arguments(40, 64, 10, dtype, True)
    weight, expected_totals = torch.eye(10, 64, dtype=dtype), totals.clone()
    expected = mixup_cross_entropy_gradient(F.linear(pooled, weight, bias), *targets, expected_totals)
    grad_pooled, _, grad_bias = classifier_gradient(pooled, weight, bias, *targets, totals)
    assert torch.equal(grad_pooled[:, :10], expected) and torch.equal(totals, expected_totals)
    torch.testing.assert_close(grad_bias, expected.sum(0))


TRAINING_SHAPES = pytest.mark.parametrize("rows, channels, classes", [(128, 1024, 100), (300, 2048, 20)])


@TRAINING_SHAPES
def test_the_totals_are_as_far_from_float64_as_is_derived(rows: int, channels: int, classes: int) -> None:
    errors = []
    for seed in range(20):
        torch.manual_seed(seed)
        given = classifier_arguments(rows, channels, classes, torch.bfloat16, True)
        of_loss, of_correct = rounding_of_logits(given)
        totals, truth = (classifier_totals(a) for a in (given, in_float64(given)))
        loss, correct = (totals - truth).abs().tolist()
        assert loss < of_loss and correct <= of_correct
        errors.append(loss / of_loss)
    assert 0.5 < 4 * torch.tensor(errors).square().mean().sqrt() < 1.5, "four standard deviations are allowed"


def classifier_totals(arguments: Sequence[Any]) -> Tensor:
    totals: Tensor = results(NAME, tuple(arguments), classifier_gradient_ref)[-1]
    return totals


@TRAINING_SHAPES
def test_a_row_that_the_totals_lack_is_seen(rows: int, channels: int, classes: int) -> None:
    torch.manual_seed(0)
    given = classifier_arguments(rows, channels, classes, torch.bfloat16, True)

    def planted(*arguments: Any) -> tuple[Tensor, ...]:
        pooled, weight, bias, labels, partner_labels, *rest, totals = arguments
        gradients = classifier_gradient(*arguments[:-1], totals.clone())
        classifier_gradient(pooled[1:], weight, bias, labels[1:], partner_labels[1:], *rest, totals)
        return gradients

    with pytest.raises(WrongResult, match="classifier_gradient, output 3: error"):
        check(NAME, given, planted)


@devices
def test_views_and_empty_tensors(device: str) -> None:
    skip_without_kernel(device, torch.bfloat16)
    given = classifier_arguments(6, 128, 9, torch.bfloat16, True, device=device)
    pooled, weight, bias, labels, partner_labels, lam, *rest = given

    def shifted(x: Tensor) -> Tensor:
        return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)

    views = (pooled.T.contiguous().T, shifted(weight), shifted(bias), labels.repeat(2, 1).T[:, 0], partner_labels)
    plain, empty = (
        (pooled, weight, bias, labels, *none, *rest) for none in ((None, None), (labels[:0], lam.new_empty(0)))
    )
    for one, other in ((given, (*views, lam.expand(1), *rest)), (plain, empty)):
        assert all(map(torch.equal, *(results(NAME, a) for a in (one, other))))


@devices
@pytest.mark.parametrize("mixed", [False, True])
def test_opcheck(device: str, mixed: bool) -> None:
    skip_without_kernel(device, torch.bfloat16)
    given = classifier_arguments(6, 128, 4, torch.bfloat16, mixed, device=device)
    torch.library.opcheck(torch.ops.fastcifar.classifier_gradient.default, given)


@devices
def test_number_of_threads_does_not_matter(device: str) -> None:
    skip_without_kernel(device, torch.bfloat16)
    given = classifier_arguments(150, 256, 100, torch.bfloat16, True, device=device)
    first, threads = results(NAME, given), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert all(map(torch.equal, first, results(NAME, given)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "capability, dtype, channels, classes, expected",
    [
        ((9, 0), torch.bfloat16, 1024, 100, True),
        ((10, 0), torch.float16, 128, 128, True),
        ((8, 0), torch.float16, 1024, 100, False),
        ((12, 0), torch.bfloat16, 1024, 100, False),
        ((9, 0), torch.float32, 1024, 100, False),
        ((9, 0), torch.bfloat16, 1088, 100, False),
        ((9, 0), torch.bfloat16, 1024, 129, False),
    ],
)
def test_the_kernel_suits_a_step_on_a_gpu_that_has_it(
    capability: tuple[int, int],
    dtype: torch.dtype,
    channels: int,
    classes: int,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machines.be_on(monkeypatch, "avx2", capability)
    monkeypatch.setattr(sys.modules[suits.__module__], "compiled_capabilities", lambda: (75, 90))

    class OnTheGpu:
        device, shape = torch.device("cuda", 0), (8, channels)

    OnTheGpu.dtype = dtype  # type: ignore[attr-defined]
    assert suits(OnTheGpu(), classes) == expected  # type: ignore[arg-type]
    for built in ((), (80,), (80, 120)):  # a GPU runs kernels of older capabilities, whose own clusters are not there
        monkeypatch.setattr(sys.modules[suits.__module__], "compiled_capabilities", lambda built=built: built)
        assert not suits(OnTheGpu(), classes)  # type: ignore[arg-type]
    assert suits(torch.empty(8, channels, dtype=dtype), classes) == (dtype != torch.float16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(4)}, r"pooled must be \[B, K\], K at least 1, got \[4\]"),
        ({0: torch.zeros(4, 0)}, r"pooled must be \[B, K\], K at least 1, got \[4, 0\]"),
        ({0: torch.zeros(4, 8).double()}, "must be float32 or bfloat16, got Double"),
        ({1: torch.zeros(9, 7)}, r"weight must be \[classes, 8\], at least one class, got \[9, 7\]"),
        ({1: torch.zeros(9, 8).bfloat16()}, "weight must be Float like pooled, got BFloat16"),
        ({2: torch.zeros(8)}, r"bias must be \[9\], got \[8\]"),
        ({2: torch.zeros(9).bfloat16()}, "bias must be Float like pooled, got BFloat16"),
        ({3: torch.tensor([0, 1, 9, 0])}, r"labels\[2\] must be in \[0, 8\], got 9"),
        ({3: torch.zeros(3, dtype=torch.int64)}, r"labels must be \[4\], got \[3\]"),
        ({5: None}, "partner_labels and lam are given together or not at all"),
        ({6: 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({7: torch.zeros(4)}, r"grad_loss must be one float32 number, got Float \[4\]"),
        ({8: torch.zeros(2)}, r"totals must be float64 \[2\], got Float \[2\]"),
    ],
)
def test_bad_arguments_are_named(change: dict[int, Any], message: str) -> None:
    given = [change.get(i, value) for i, value in enumerate(classifier_arguments(4, 8, 9, torch.float32, True))]
    with pytest.raises(RuntimeError, match=f"classifier_gradient: .*{message}"):
        classifier_gradient(*given)
