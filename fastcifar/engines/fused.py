"""The fused engine: the same model computed with the extension's ops.

One op (BN, ReLU, depthwise, BN, ReLU) stands between two pointwise convolutions, which remain PyTorch's matrix
products, or includes the pointwise convolution after it; equal blocks are one node of autograd on a GPU; on the CPU one
op holds all blocks, and a process alone takes its gradients without autograd (`gradients`). Tensors named u are raw
outputs of a convolution; the next op applies BN and ReLU to them as it loads them. The first convolution is an op too,
so that no convolution of the library is left in a step, and so is the end of the last block; the classifier is one with
the loss where there is a kernel for it. The weights of all products have copies in the compute dtype, which the
optimizer's step writes; autocast would launch 30 small kernels, and two more to bring the gradients back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.batch import Batch
from fastcifar.engines.eager import Forward, nothing
from fastcifar.engines.equal_blocks import equal_blocks
from fastcifar.engines.equal_blocks import suits as suits_equal_blocks
from fastcifar.engines.gradients import for_batches, gradients
from fastcifar.engines.products import Aside, SideStream, in_place, linear, pointwise
from fastcifar.model import DepthwiseSeparable, MobileNet
from fastcifar.ops import (
    batch_norm_relu_pool,
    classifier_gradient,
    depthwise_block,
    dwconv3x3_affine_relu,
    mixup_cross_entropy,
    mixup_cross_entropy_gradient,
    separable_block,
    separable_blocks,
    stem,
    update_statistics,
)
from fastcifar.ops.classifier_gradient import suits as suits_classifier
from fastcifar.ops.separable_block import suits

_AfterBlocks = tuple[Tensor, Tensor | None, Sequence[Tensor]]
"""The last block's raw output, its moments where they are known, and mean and variance of each BN before it."""


class FusedModel:
    """The function of `model` with fused ops: images [N, 3, 32, 32] channels_last -> logits [N, num_classes].

    It uses and trains the parameters and running statistics of `model`, and obeys the model's train() and eval(). It
    computes in `dtype`, with or without autocast; batch statistics are float32.

    Args:
        model: trained in place.
        dtype: of the images and all activations. With another one than float32 the weights of products get gradients of
            that dtype, unless `wide_gradients`.
        fuse_pointwise: makes the pointwise product a part of the block's op in training, on CUDA where that `suits` the
            block, and on the CPU all blocks one op. The product then applies BN and ReLU as it loads, and also computes
            the statistics for the next block.
        wide_gradients: gives each weight a gradient of its own dtype, as DistributedDataParallel needs it.
        side: updates the running statistics and, beside the rest of backward, computes the gradients of the products'
            weights; it is joined at the end of backward, without which there may be no training forward. Not for
            DistributedDataParallel, which reads gradients as they come.

    Attributes:
        rounded: the copies in `dtype` of the weights of products, which training computes with; empty for float32.
            Whoever writes such a weight has to write its copy: the optimizer does, and else `round_weights`.
        aside: does work on `side`.
    """

    def __init__(
        self,
        model: MobileNet,
        *,
        dtype: torch.dtype = torch.float32,
        fuse_pointwise: bool = False,
        wide_gradients: bool = False,
        side: SideStream | None = None,
    ) -> None:
        self._model, self._dtype, self._fuse_pointwise, self._side = model, dtype, fuse_pointwise, side
        self.aside: Aside = side.working if side else in_place
        self._blocks = [b for b in model.blocks if isinstance(b, DepthwiseSeparable)]
        self._strides = [_conv(b.depthwise).stride[0] for b in self._blocks]
        self._norms = [model.norm, *(norm for b in self._blocks for norm in (b.norm1, b.norm2))]
        self._bns = [
            (before.weight, before.bias, _conv(b.depthwise).weight, b.norm1.weight, b.norm1.bias)
            for before, b in zip(self._norms[0::2], self._blocks, strict=False)
        ]
        self._means = [_buffer(norm.running_mean) for norm in self._norms]
        self._vars = [_buffer(norm.running_var) for norm in self._norms]
        self._weights = [model.stem.weight, model.head.weight, model.head.bias]
        self._weights += [_conv(b.pointwise).weight for b in self._blocks]
        products = [b.pointwise.weight.shape for b in self._blocks]
        of_blocks = [(*bns, _conv(b.pointwise).weight) for bns, b in zip(self._bns, self._blocks, strict=True)]
        last = self._norms[-1]
        self._parameters = [model.stem.weight, *itertools.chain(*of_blocks), last.weight, last.bias]
        self._parameters += [model.head.weight, model.head.bias]
        self._runs = _runs(list(zip(products, self._strides, strict=True)))
        self._momentum = float(model.norm.momentum or 0.0)
        self.rounded: dict[Tensor, Tensor] = {}
        if dtype != torch.float32:
            for weight in self._weights:
                weight.grad_dtype = weight.dtype if wide_gradients else dtype
            self.rounded = {weight: weight.detach().to(dtype) for weight in self._weights}
        self._used = [self.rounded.get(parameter, parameter) for parameter in self._parameters]

    @torch.no_grad()
    def round_weights(self) -> None:
        """Writes all copies anew, after the weights were written by anything but the optimizer."""
        if self.rounded:
            torch._foreach_copy_(list(self.rounded.values()), list(self.rounded))

    def __call__(self, images: Tensor) -> Tensor:
        return self._train(images) if self._model.training else self.folded()(images)

    def take_gradients(
        self,
        batch: Batch,
        grad_loss: Tensor,
        totals: Tensor,
        meanwhile: Callable[[], None] = nothing,
        *,
        label_smoothing: float,
    ) -> None:
        """Gives each parameter its gradient, and updates the running statistics. For one process.

        On the CPU, with `fuse_pointwise`, it does without autograd.

        Args:
            batch: the training batch.
            grad_loss: float32 [] on the device, the gradient of the mean loss.
            totals: float64 [2]; what is added up over an epoch is added to it, as by `mixup_cross_entropy_gradient`.
            meanwhile: is called once, with `side` beside the rest, where the running statistics are updated.
            label_smoothing: 0 to 1.
        """
        if not self._is_chain(batch.images):
            targets = batch.labels, batch.partner_labels, batch.lam, label_smoothing
            pooled, head, bias = self._pooled(batch.images, meanwhile)
            if not suits_classifier(pooled, len(bias)):
                logits = linear(pooled, head, bias, self._side)
                grad = mixup_cross_entropy_gradient(logits.detach(), *targets, grad_loss, totals)
                logits.backward(grad)  # type: ignore[no-untyped-call]
                return
            x, weight, bias = pooled.detach(), head.detach(), bias.detach()
            grad_pooled, *of_head = classifier_gradient(x, weight, bias, *targets, grad_loss, totals)
            pooled.backward(grad_pooled)  # type: ignore[no-untyped-call]
            self._model.head.weight.grad, self._model.head.bias.grad = of_head
            return
        meanwhile()
        eps, strides = self._norms[0].eps, self._strides
        taken = gradients(batch, self._used, eps, strides, label_smoothing, grad_loss, totals)
        self._update_statistics(taken.statistics[0::2], taken.statistics[1::2], self._counts(batch.images.shape))
        for parameter, grad in zip(self._parameters, taken.of_parameters, strict=True):
            parameter.grad = grad

    def _train(self, images: Tensor) -> Tensor:
        return linear(*self._pooled(images), self._side)

    def _pooled(self, images: Tensor, meanwhile: Callable[[], None] = nothing) -> tuple[Tensor, Tensor, Tensor]:
        """The classifier's input in training, and its weight and bias."""
        weights = self._weights
        first, head, bias, *products = weights
        if self.rounded or self._side:
            copies = list(self.rounded.values()) or weights
            first, head, bias, *products = _Copied.apply(self._side, copies, *weights)  # type: ignore[no-untyped-call]
        u, rows = stem(images, for_batches(first))
        counts = self._counts(u.shape)
        blocks = self._chain if self._is_chain(u) else self._one_by_one
        u, last_rows, statistics = blocks(u, rows, products)
        norm = self._norms[-1]
        pooled, *of_last = batch_norm_relu_pool(u, norm.weight, norm.bias, norm.eps, last_rows)
        statistics = [*statistics, *of_last]
        means, variances = statistics[0::2], statistics[1::2]
        with self.aside(means + variances):
            self._update_statistics(means, variances, counts)
            meanwhile()
        return pooled, head, bias

    def _is_chain(self, x: Tensor) -> bool:
        """Whether all blocks are one op, on the device of x."""
        return self._fuse_pointwise and x.device.type == "cpu"

    def _chain(self, u: Tensor, rows: Tensor | None, products: Sequence[Tensor]) -> _AfterBlocks:
        """All blocks as one op."""
        parameters = [tensor for bns, product in zip(self._bns, products, strict=True) for tensor in (*bns, product)]
        return separable_blocks(u, rows, parameters, self._norms[0].eps, self._strides)

    def _one_by_one(self, u: Tensor, rows: Tensor | None, products: Sequence[Tensor]) -> _AfterBlocks:
        """Each block as an op or, where its product does not suit it, as two; with a side stream equal ones at once."""
        eps, means_and_variances = self._norms[0].eps, []
        blocks = zip(self._bns, self._strides, products, self._runs, strict=True)
        for bns, stride, product, run in blocks:
            if self._fuse_pointwise and suits(u.shape[1], len(product), u.shape[2], u.shape[3]):
                u, rows, _, *statistics = separable_block(u, *bns, product, eps, stride, rows)
            elif self._side and run > 1 and suits_equal_blocks(u):
                parameters = [*bns, product]
                for others, _, other, _ in itertools.islice(blocks, run - 1):
                    parameters += [*others, other]
                after, stride, product, _ = next(blocks)
                z, *statistics = equal_blocks(u, rows, [*parameters, *after], eps, stride, self._side)
                u, rows = pointwise(z, product, self._side), None
            else:
                z, _, *statistics = depthwise_block(u, *bns, eps, stride, u_rows=rows)
                u, rows = pointwise(z, product, self._side), None
            means_and_variances += statistics
        return u, rows, means_and_variances

    def _counts(self, shape: torch.Size) -> list[int]:
        """How many pixels each BN sees, for a stem's output of `shape`."""
        n, _, height, width = shape
        counts = [n * height * width]
        for stride in self._strides:
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
            counts += [n * height * width] * 2
        return counts

    @torch.no_grad()
    def folded(self) -> Callable[[Tensor], Tensor]:
        """The function for evaluation, with the weights and statistics of this moment.

        Returns:
            images -> logits. Scales and shifts of the BNs and the rounded weights are computed once, for all its calls.
        """
        scales = torch._foreach_rsqrt(torch._foreach_add(self._vars, [norm.eps for norm in self._norms]))
        torch._foreach_mul_(scales, [norm.weight for norm in self._norms])
        shifts = torch._foreach_sub([norm.bias for norm in self._norms], torch._foreach_mul(self._means, scales))
        affines = list(zip(scales, shifts, strict=True))
        first, head, bias, *products = _copies(self._weights, self._dtype)

        def evaluate(images: Tensor) -> Tensor:
            u, _ = stem(images, for_batches(first))
            for i, (bns, stride, product) in enumerate(zip(self._bns, self._strides, products, strict=True)):
                before, after, filters = affines[2 * i], affines[2 * i + 1], bns[2]
                u = pointwise(dwconv3x3_affine_relu(u, *before, filters, *after, stride), product)
            scale, shift = affines[-1]
            z = F.relu(u * scale[:, None, None] + shift[:, None, None]).to(u.dtype)
            return F.linear(_mean_of_map(z), head, bias)

        return evaluate

    @torch.no_grad()
    def _update_statistics(self, means: list[Tensor], variances: list[Tensor], counts: list[int]) -> None:
        update_statistics(self._means, self._vars, means, variances, counts, self._momentum)


def fused_forward(model: FusedModel, label_smoothing: float) -> Forward:
    """The fused forward: batch -> what `loss_and_sums` returns, with the loss computed by one op.

    Args:
        model: images -> logits.
        label_smoothing: 0 to 1.
    """

    def forward(batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch.images)
        loss, _, sums = mixup_cross_entropy(logits, batch.labels, batch.partner_labels, batch.lam, label_smoothing)
        return loss, sums

    return forward


def _runs(blocks: Sequence[object]) -> list[int]:
    """For each block how many equal ones begin with it. Amid a run it is 1, and the last block is in no run."""
    lengths = [len(list(run)) for _, run in itertools.groupby(blocks[:-1])]
    return [*(n for length in lengths for n in (length, *[1] * (length - 1))), 1]


def _conv(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    return module


def _mean_of_map(z: Tensor) -> Tensor:
    return F.avg_pool2d(z, z.shape[-2:]).flatten(1)


class _Copied(torch.autograd.Function):
    """Copies of weights in place of the weights, which get the copies' gradients as they are, when all are computed.

    A weight whose copy has none gets none.
    """

    @staticmethod
    def forward(ctx: Any, side: SideStream | None, copies: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.side = side
        ctx.set_materialize_grads(False)
        return tuple(copy.detach() for copy in copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.side is not None:
            ctx.side.join()
        return None, None, *grads


def _copies(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The weights in `dtype`: themselves, or copies that one kernel makes."""
    if dtype == weights[0].dtype:
        return [weight.detach() for weight in weights]
    copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    torch._foreach_copy_(copies, list(weights))
    return copies


def _buffer(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
