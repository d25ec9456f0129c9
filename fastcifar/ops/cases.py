"""Arguments for every op and its backward, and the check that compares a result with float64.

The tests of the ops use them, and so does a GPU's check of itself (`fastcifar.selfcheck`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.ops._library import references
from fastcifar.ops._moments import merge_rows
from fastcifar.ops.batch_norm_relu import batch_statistics, normalize, normalize_backward
from fastcifar.ops.classifier_gradient import suits as suits_classifier
from fastcifar.ops.separable_block import separable_block_ref

EPS = 1e-5

Shape = tuple[int, int, int, int]
Arguments = tuple[Any, ...]


class WrongResult(Exception):
    """An op's result is not what its reference says."""


def activation(shape: Iterable[int], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Random numbers with mean 1 and deviation 2, like the input of a BN; the same on every device."""
    x = torch.randn(tuple(shape)).mul(2).add(1).to(dtype)
    return x.to(memory_format=torch.channels_last).to(device)


def per_channel(channels: int, device: str = "cpu") -> Tensor:
    return torch.randn(channels).add(0.5).to(device)


def out_shape(shape: Shape, stride: int) -> Shape:
    n, c, h, w = shape
    return n, c, (h - 1) // stride + 1, (w - 1) // stride + 1


def dwconv3x3_arguments(shape: Shape, dtype: torch.dtype, stride: int, device: str = "cpu") -> Arguments:
    return activation(shape, dtype, device), torch.randn(shape[1], 1, 3, 3).to(device), stride


def batch_norm_relu_arguments(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Arguments:
    return activation(shape, dtype, device), per_channel(shape[1], device), per_channel(shape[1], device), EPS


def depthwise_block_arguments(shape: Shape, dtype: torch.dtype, stride: int, device: str = "cpu") -> Arguments:
    x, w, _ = dwconv3x3_arguments(shape, dtype, stride, device)
    gamma0, beta0, gamma1, beta1 = (per_channel(shape[1], device) for _ in range(4))
    return x, gamma0, beta0, w, gamma1, beta1, EPS, stride


def away_from_the_kink(grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """`grad`, a gradient of ReLU(BN(x)), set to 0 where float32 and float64 may differ in the sign of BN(x).

    One such number, a BN(x) of 2.5e-8 in a 40x129x5x7 block, moved the gradient of five pixels by 2.
    """
    x, gamma, beta, mean, var = in_float64((x, gamma, beta, mean, var))
    return grad.masked_fill(normalize(x, gamma, beta, mean, var, EPS).abs() < 1e-5, 0)


def backward_arguments(name: str, arguments: Arguments, grad: Tensor) -> Arguments:
    """The arguments that autograd passes to `_<name>_backward` after the op was called with `arguments`."""
    outputs = getattr(torch.ops.fastcifar, name)(*arguments)
    if name == "dwconv3x3":
        return grad, *arguments, True, True
    if name == "batch_norm_relu":
        x, gamma, beta, eps = arguments
        grad = away_from_the_kink(grad, x, gamma, beta, *outputs[1:])
        return grad, x, gamma, beta, *outputs[1:], eps
    u, gamma0, beta0, w, gamma1, beta1, eps, stride = arguments
    grad = away_from_the_kink(grad, outputs[1], gamma1, beta1, *outputs[4:])
    return grad, u, outputs[1], gamma0, beta0, w, gamma1, beta1, *outputs[2:], eps, stride


def calls(shape: Shape, dtype: torch.dtype, stride: int, device: str = "cpu") -> Iterator[tuple[str, Arguments]]:
    """Every op on activations, and its backward, with arguments of this shape."""
    grad = activation(out_shape(shape, stride), dtype, device)
    for name, arguments in (
        ("dwconv3x3", dwconv3x3_arguments(shape, dtype, stride, device)),
        ("depthwise_block", depthwise_block_arguments(shape, dtype, stride, device)),
    ):
        yield name, arguments
        yield f"_{name}_backward", backward_arguments(name, arguments, grad)
    arguments = batch_norm_relu_arguments(shape, dtype, device)
    yield "batch_norm_relu", arguments
    yield (
        "_batch_norm_relu_backward",
        backward_arguments("batch_norm_relu", arguments, activation(shape, dtype, device)),
    )
    u, gamma0, beta0, w, gamma1, beta1, _, _ = depthwise_block_arguments(shape, dtype, stride, device)
    yield "dwconv3x3_affine_relu", (u, gamma0, beta0, w, gamma1, beta1, stride)
    if u.numel():
        yield from separable_calls((u, gamma0, beta0, w, gamma1, beta1), 2 * u.shape[1], stride)


def stem_calls(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Iterator[tuple[str, Arguments]]:
    """The first convolution and its backward, with an output of this shape; the batch is not empty."""
    n, c, h, w = shape
    images, grad = activation((n, 3, h, w), dtype, device), activation(shape, dtype, device)
    weights = torch.randn(2, c, 3, 3, 3).to(device)
    for weight in (weights[0], weights[1].to(dtype).to(memory_format=torch.channels_last)):
        yield "stem", (images, weight)
        yield "_stem_backward", (grad, images, weight)
    u, rows = references["stem"](images, weight)
    grad_rows = torch.randn_like(rows)
    grad_rows[:, 1] *= rows[0, 0]  # else the gradient of a mean is nothing beside that of its pixels
    grad_rows[:, 2] /= 100  # in float16 a sum of 10,000 pixels would be infinite
    yield "_stem_backward", (grad, images, weight, grad_rows, u, rows)


def end_calls(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Iterator[tuple[str, Arguments]]:
    """The ops at both ends of the network, and their backwards; the batch is not empty. See `pool_calls`."""
    yield from stem_calls(shape, dtype, device)
    yield from pool_calls(shape, dtype, device)


def pool_calls(shape: Shape, dtype: torch.dtype, device: str = "cpu") -> Iterator[tuple[str, Arguments]]:
    """The end of the last block and its backward.

    `device` is the one whose kernels are called: those of the CPU have a gradient of the moments.
    """
    u, gamma, beta, eps = batch_norm_relu_arguments(shape, dtype, device)
    yield "batch_norm_relu_pool", (u, gamma, beta, eps)
    yield "batch_norm_relu_pool", (u, gamma, beta, eps, rows_of_halves(u))
    _, mean, var = references["batch_norm_relu_pool"](u, gamma, beta, eps)
    wide_u, wide_gamma, wide_beta, wide_mean, wide_var = in_float64((u, gamma, beta, mean, var))
    at_kink = normalize(wide_u, wide_gamma, wide_beta, wide_mean, wide_var, EPS).abs().amin((2, 3)) < 1e-5
    grad = torch.randn(u.shape[:2]).to(device).masked_fill(at_kink, 0).to(dtype)  # as in away_from_the_kink
    pool_backward = (grad, u, gamma, beta, mean, var, eps)
    yield "_batch_norm_relu_pool_backward", pool_backward
    if device == "cpu":
        yield "_batch_norm_relu_pool_backward", (*pool_backward, rows_of_halves(u))


def rows_of_halves(u: Tensor) -> Tensor:
    """The moments of the map's upper and lower half, float32 [rows, 3, C], as two blocks of a GPU would leave them."""
    halves = [half.float() for half in u.tensor_split((u.shape[2] // 2 + 1,), dim=2) if half.numel()]
    moments = [(x.new_full((x.shape[1],), x[:, 0].numel()), *batch_statistics(x)) for x in halves]
    return torch.stack([torch.stack((count, mean, var * count)) for count, mean, var in moments])


def separable_calls(block: Arguments, out_channels: int, stride: int) -> Iterator[tuple[str, Arguments]]:
    """separable_block without and with the moments of its input, and its backward. `block` is (u, ..., beta1)."""
    u, *parameters = block
    n, c, *_ = u.shape
    pointwise = torch.randn(out_channels, c, 1, 1).to(u.dtype).float().to(u.device)
    arguments = (*block, pointwise, EPS, stride)
    yield "separable_block", arguments
    rows = rows_of_halves(u)
    yield "separable_block", (*arguments, rows)
    v, v_rows, y, *statistics = separable_block_ref(*arguments)
    grad = torch.randn(n, out_channels, *y.shape[2:]).to(u.dtype).to(memory_format=torch.channels_last).to(u.device)
    backward = (grad, u, y, *parameters, pointwise, *statistics, EPS, stride)
    yield "_separable_block_backward", backward
    grad_rows = torch.zeros_like(v_rows)  # as in a chain of blocks
    grad_rows[0, 1:] = torch.randn(2, out_channels).to(u.device)
    yield "_separable_block_backward", (*backward, rows, grad_rows, v, v_rows)


def step_calls(dtype: torch.dtype, rows: int = 40, device: str = "cpu") -> Iterator[tuple[str, Arguments]]:
    """The ops around a step: its batch and number, those of the loss, and the classifier's where a device has it."""
    for name, arguments in _step_calls(dtype, rows):
        given = tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
        if name != "classifier_gradient" or suits_classifier(given[0], len(given[1])):
            yield name, given


def _step_calls(dtype: torch.dtype, rows: int) -> Iterator[tuple[str, Arguments]]:
    num, classes = 100, 13
    index, labels, partner_labels = torch.randperm(num), *torch.randint(0, classes, (2, num))
    corner, flip, partner = torch.randint(0, 9, (2, num)), torch.rand(num) < 0.5, torch.randint(0, num % rows, (num,))
    images = torch.randint(0, 256, (num, 32, 32, 3), dtype=torch.uint8)
    epoch = (images, labels, index, *corner, flip, partner, torch.rand(-(-num // rows)))
    cuts = (torch.randint(0, 33, (-(-num // rows), 4)), torch.randint(-8, 33, (num, 2)))
    table = torch.randn(256, 3)
    rest = (torch.tensor(1), rows, rows, table, 4, 8, dtype)
    for cut in ((None, None), cuts):  # mixed, or pasted with holes
        yield "training_batch", (*epoch, *cut, *rest)
    logits, targets = torch.randn(num, classes).to(dtype), (labels, partner_labels, torch.tensor(0.3), 0.1)
    yield "mixup_cross_entropy", (logits, *targets)
    grad_loss, totals = torch.tensor(0.7), torch.tensor([1.0, 2.0], dtype=torch.float64)
    yield "_mixup_cross_entropy_backward", (grad_loss, logits, logits.float().logsumexp(1), *targets)
    yield "mixup_cross_entropy_gradient", (logits, *targets, grad_loss, totals)
    for n, channels in ((num, 256), (130, 1152)):  # the second: two clusters of images, two slices of channels a block
        targets = (*torch.randint(0, classes, (2, n)), *targets[2:])
        pooled, weight = torch.rand(n, channels).to(dtype), torch.randn(classes, channels).div(16).to(dtype)
        yield "classifier_gradient", (pooled, weight, torch.randn(classes).to(dtype), *targets, grad_loss, totals)
    yield "advance_step", (torch.tensor([1, 4]), torch.rand(9), torch.zeros(1))


def sgd_arguments(
    shapes: Iterable[tuple[int, ...]],
    narrow: torch.dtype | None,
    momentum: float,
    nesterov: bool,
    device: str = "cpu",
    *,
    shift: int = 0,
    grad_scale: Tensor | None = None,
) -> Arguments:
    """The arguments of `sgd`. Every second tensor has a rounded copy in `narrow`, and a gradient of that dtype.

    A `shift` makes tensors that begin so many elements after the beginning of their memory.
    """
    shapes = list(shapes)

    def tensors() -> list[Tensor]:
        sizes = [int(torch.Size(shape).numel()) for shape in shapes]
        return [torch.randn(n + shift)[shift:].view(s) for n, s in zip(sizes, shapes, strict=True)]

    params, grads, buffers = tensors(), tensors(), tensors()
    rounded = [p.to(narrow) if narrow and i % 2 == 0 else torch.empty(0) for i, p in enumerate(params)]
    grads = [g.to(r.dtype) for g, r in zip(grads, rounded, strict=True)]
    decays = [0.01 * (i % 3) for i in range(len(shapes))]
    lists = (params, grads, buffers if momentum else [], rounded if narrow else [])
    on_device = [[t.to(device) for t in list_] for list_ in lists]
    return (*on_device, torch.tensor(0.1, device=device), decays, momentum, nesterov, grad_scale)


def statistics_arguments(channels: Iterable[int], momentum: float, device: str = "cpu", *, shift: int = 0) -> Arguments:
    """The arguments of `update_statistics` for BNs of so many channels; the first batch has one pixel.

    A `shift` makes tensors that begin so many elements after the beginning of their memory.
    """
    channels = list(channels)

    def tensors() -> list[Tensor]:
        return [torch.randn(n + shift).to(device)[shift:] for n in channels]

    running_means, means = tensors(), tensors()
    running_vars, variances = ([t.abs() for t in tensors()] for _ in range(2))
    return running_means, running_vars, means, variances, [1 + 99 * i for i in range(len(channels))], momentum


def written(arguments: Arguments, op: Callable[..., None], places: Iterable[int]) -> list[list[Tensor]]:
    """The lists of tensors at some places of an op's arguments, after the op has written copies of them."""
    copies: list[Any] = [
        [t.clone() if isinstance(t, Tensor) else t for t in a] if isinstance(a, list) else a for a in arguments
    ]
    op(*copies)
    return [copies[i] for i in places]


def stepped(arguments: Arguments, op: Callable[..., None]) -> list[list[Tensor]]:
    """Parameters, momentum buffers and rounded copies after a step of `op` on copies of the arguments of `sgd`."""
    return written(arguments, op, (0, 2, 3))


def updated(arguments: Arguments, op: Callable[..., None]) -> list[list[Tensor]]:
    """Running means and variances after `op` on copies of the arguments of `update_statistics`."""
    return written(arguments, op, (0, 1))


def check_into(name: str, arguments: Arguments, library: Any = torch.ops.fastcifar) -> None:
    """Checks that the op `<name>_into` writes the first output of `name` where it is told to, and nothing beside it.

    Args:
        name: `depthwise_block` or its backward.
        arguments: its arguments.
        library: has both ops.

    Raises:
        WrongResult: a bit differs from what `name` returns, or the memory beside the first output was written.
    """
    first, *others = getattr(library, name)(*arguments)
    memory = first.new_full((first.numel() + 32,), torch.nan)
    given = memory[16:-16].view(first.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    got = getattr(library, f"_{name.removeprefix('_')}_into")(given, *arguments)
    if not all(map(torch.equal, (first, *others), (given, *got))):
        raise WrongResult(f"{name}: other bits in memory that is given")
    if not (memory[:16].isnan().all() and memory[-16:].isnan().all()):
        raise WrongResult(f"{name}: writes beside memory that is given")


def as_tuple(outputs: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs or ())


def results(name: str, arguments: Arguments, call: Callable[..., Any] | None = None) -> tuple[Tensor, ...]:
    """The outputs of an op, and the tensors that it writes. It is given copies of these.

    Args:
        name: the op.
        arguments: its arguments; those that it writes are tensors, not lists of tensors.
        call: what is called in place of the compiled op.
    """
    op = getattr(torch.ops.fastcifar, name)
    written = [argument.is_write for argument in op.default._schema.arguments]
    given = [a.clone() if is_written else a for a, is_written in zip(arguments, written, strict=False)]
    outputs = as_tuple((call or op)(*given))
    return *outputs, *(a for a, is_written in zip(given, written, strict=False) if is_written)


def in_float64(arguments: Arguments) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.detach().double() - truth).norm())


def largest_error(value: Tensor, truth: Tensor) -> float:
    return float((value.detach().double() - truth).abs().max())


def rounding_between_passes(arguments: Arguments) -> float:
    """The error in the gradient of u that comes from rounding the gradient of its BN's output to u's dtype."""
    grad_z, u, y, gamma0, beta0, w, gamma1, beta1, mean0, var0, mean1, var1, eps, stride = in_float64(arguments)
    positive = normalize(y, gamma1, beta1, mean1, var1, eps) > 0
    grad_y, _, _ = normalize_backward(grad_z * positive, y, gamma1, mean1, var1, eps)
    h = normalize(u, gamma0, beta0, mean0, var0, eps).relu()
    grad_h, _ = references["_dwconv3x3_backward"](grad_y, h, w, stride, True, False)
    scale0 = (gamma0 * torch.rsqrt(var0 + eps))[:, None, None]
    return float((grad_h * (h > 0) * scale0).norm()) * torch.finfo(arguments[1].dtype).eps / 2


def rounding_of_logits(arguments: Arguments) -> tuple[float, float]:
    """How far the totals of `classifier_gradient` may be from float64's because logits are rounded to pooled's dtype.

    Each logit is rounded by at most half a unit in its last place, independently of the others, with a standard
    deviation of unit / sqrt(12). A change d of logit k changes the loss of its row by (probability - target) * d. The
    prediction of a row may become any logit that is at most a unit less than the largest.

    Returns:
        Of the sum of the losses four standard deviations; of the number of correct predictions, the most.
    """
    on_cpu = tuple(a.cpu() if isinstance(a, Tensor) else a for a in arguments)  # frexp would be compiled for a GPU
    pooled, weight, bias, labels, partner_labels, lam, smoothing, grad_loss, totals = in_float64(on_cpu)
    logits = F.linear(pooled, weight, bias)
    unit = torch.exp2(torch.frexp(logits).exponent.double() - 1) * torch.finfo(arguments[0].dtype).eps
    rows = torch.full_like(grad_loss, len(logits))  # of which a mean's gradient has the reciprocal
    targets = labels, partner_labels, lam, smoothing
    gradient = references["mixup_cross_entropy_gradient"](logits, *targets, rows, totals.clone())
    correct = F.one_hot(labels, logits.shape[1]).double()
    if lam is not None and lam.numel():
        correct = torch.lerp(F.one_hot(partner_labels, logits.shape[1]).double(), correct, lam)
    largest, at = logits.max(1, keepdim=True)
    others = logits < largest - unit.gather(1, at)
    spread = correct.masked_fill(others, 0).amax(1) - correct.masked_fill(others, 1).amin(1)
    return 4 * float((gradient * unit).norm()) / 12**0.5, float(spread.sum())


def block_of(arguments: Arguments) -> Arguments:
    """The arguments that `_separable_block_backward` with `arguments` passes to `_depthwise_block_backward`."""
    grad_v, u, y, gamma0, beta0, w, gamma1, beta1, pointwise, *others = arguments[:15]
    grad_z = torch.einsum("nohw,oc->nchw", grad_v.double(), pointwise.double().flatten(1))
    return grad_z, u, y, gamma0, beta0, w, gamma1, beta1, *others


def check(name: str, arguments: Arguments, call: Callable[..., Any] | None = None) -> tuple[Tensor, ...]:
    """Calls an op, and checks that each of its `results` is as close to float64 as its PyTorch reference's.

    The reference computes in the op's own dtypes. A tolerance allows for roundings in another order and, in a block,
    for numbers close to 0 that an inner ReLU passes in float32 but not in float64. The backward of a block may also
    round once between its two passes, as eager does between two ops. The classifier rounds its logits, as its reference
    does, but may round others of them up: its two totals are compared each by itself, see `rounding_of_logits`.

    Errors are compared by their norm. In a large map that hides a single wrong element, which therefore has a limit of
    its own: 16 units in the last place of the largest. The backward of a block has none, because of its inner ReLU.

    Args:
        name: the op.
        arguments: its arguments.
        call: what is called in place of the compiled op.

    Returns:
        The outputs, and the tensors that the op writes.

    Raises:
        WrongResult: an output is of another kind than the reference's, or too far from float64.
    """
    got = results(name, arguments, call)
    reference = results(name, arguments, references[name])
    truth = results(name, tuple(in_float64(arguments)), references[name])
    slack = 2e-4 if "block" in name else 3e-6
    between: dict[int, float] = {}  # output -> error that is allowed besides
    if name in ("_depthwise_block_backward", "_separable_block_backward"):
        block = arguments if name == "_depthwise_block_backward" else block_of(arguments)
        between[0] = rounding_between_passes(block)
    compared = [got, reference, truth]
    if name == "classifier_gradient":
        compared = [(*gradients, *totals) for *gradients, totals in compared]
        between[3], between[4] = rounding_of_logits(arguments)
    for i, (g, r, exact) in enumerate(zip(*compared, strict=True)):
        t = exact.double()  # labels are whole numbers
        where = f"{name}, output {i}"
        if (g.dtype, g.shape, g.device) != (r.dtype, r.shape, r.device):
            raise WrongResult(f"{where}: {g.dtype} {list(g.shape)} on {g.device}, expected {r.dtype} {list(r.shape)}")
        if g.dim() == 3 and not name.startswith("_"):  # partial moments, in whichever rows they are
            g, r, t = (torch.cat(merge_rows(rows)) for rows in (g, r, t))
        weight = g.shape[1:] in ((1, 3, 3), (3, 3, 3))
        if g.dim() == 4 and not (weight or g.is_contiguous(memory_format=torch.channels_last)):
            raise WrongResult(f"{where}: not in channels_last memory")
        allowed = 2 * error(r, t) + slack * (float(t.norm()) + 1) + between.get(i, 0.0)
        if not (g.isfinite().all() and error(g, t) <= allowed):
            raise WrongResult(f"{where}: error {error(g, t):.2e}, allowed {allowed:.2e}")
        if g.numel() > 1 and not name.endswith("_block_backward"):
            floats = [a for a in (g, *arguments) if isinstance(a, Tensor) and a.is_floating_point()]
            unit, largest = max(torch.finfo(a.dtype).eps for a in floats), float(t.abs().max())
            allowed = 2 * largest_error(r, t) + 16 * unit * largest + 10 * slack * (largest + 1)
            if not largest_error(g, t) <= allowed:
                raise WrongResult(f"{where}: error {largest_error(g, t):.2e} of an element, allowed {allowed:.2e}")
    return got
