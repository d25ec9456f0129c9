"""Equal blocks in a row as one autograd node, for a GPU: their pointwise weights' gradients are one batched product.

A small product takes as long as a larger one, and meanwhile holds the whole GPU. The factors of all blocks lie together
in memory, where the ops before the product write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fastcifar.engines.products import SideStream, pointwise

_ops = torch.ops.fastcifar

LONGEST = 4096
"""Up to how many pixels blocks are taken together. Five of 2048 took an H200 7 to 9 us less, factors copied."""

_OF_BLOCK = 6  # gamma0, beta0, w, gamma1, beta1, product
_SAVED = 11  # of a depthwise_block


def suits(u: Tensor) -> bool:
    """Whether `equal_blocks` takes u: small maps, of which one may lie behind another on 16 bytes, as the ops ask."""
    return u[:, 0].numel() <= LONGEST and u.numel() * u.element_size() % 16 == 0


def equal_blocks(
    u: Tensor, rows: Tensor | None, parameters: Sequence[Tensor], eps: float, stride: int, side: SideStream
) -> tuple[Tensor, ...]:
    """Equal blocks of stride 1, each `depthwise_block` and `pointwise`, and the `depthwise_block` after them.

    That one is included because its gradient of u is a factor of the last weight's gradient.

    Args:
        u: [N, C, H, W], the input of the first block, which `suits`.
        rows: as `u_rows` of `depthwise_block`, for the first block.
        parameters: gamma0, beta0, w, gamma1, beta1 and the product's weight [C, C, 1, 1] of each block, one block after
            the other, and the first five of the block after them.
        eps: of every BN.
        stride: of the block after them.
        side: computes the gradients of the products' weights, which nothing may read before `SideStream.join`.

    Returns:
        z of the block after them, and mean0, var0, mean1 and var1 of each block, that one included.
    """
    return cast("tuple[Tensor, ...]", _EqualBlocks.apply(side, eps, stride, u, rows, *parameters))  # type: ignore[no-untyped-call]


class _EqualBlocks(torch.autograd.Function):
    """With the same calls as `depthwise_block` and `pointwise` make, except for the weights' gradients."""

    @staticmethod
    def forward(
        ctx: Any, side: SideStream, eps: float, stride: int, u: Tensor, rows: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        *blocks, after = _parts(parameters, _OF_BLOCK)
        zs = u.new_empty(len(blocks), *u.permute(0, 2, 3, 1).shape)
        saved, statistics = [], []
        for z, (*bns, product) in zip(map(_as_map, zs), blocks, strict=True):
            y, *own = _ops._depthwise_block_into(z, u, *bns, eps, 1, u_rows=rows)
            saved += [u, y, *bns, *own]
            statistics += own
            u, rows = pointwise(z, product), None
        last, y, *own = _ops.depthwise_block(u, *after, eps, stride)
        statistics += own
        ctx.save_for_backward(zs, *(block[-1] for block in blocks), *saved, u, y, *after, *own)
        ctx.side, ctx.eps, ctx.stride = side, eps, stride
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        return last, *statistics

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        zs, *saved = ctx.saved_tensors
        products, blocks = saved[: len(zs)], _parts(saved[len(zs) :], _SAVED)
        grads_v = torch.empty_like(zs)  # of the products' outputs
        strides = [*[1] * len(zs), ctx.stride]
        of_bns: list[Sequence[Tensor]] = []
        for i in reversed(range(len(zs))):
            grad_v = grads_v[i]
            given = (_as_map(grad_v), grad_z, *blocks[i + 1], ctx.eps, strides[i + 1])
            of_bns.append(_ops._depthwise_block_backward_into(*given))
            grad_z = _as_map(grad_v.flatten(0, 2).mm(products[i].flatten(1)).view_as(grad_v))
        of_products = ctx.side.product(grads_v.flatten(1, 3).transpose(1, 2), zs.flatten(1, 3))
        grad_u, *of_parameters = _ops._depthwise_block_backward(grad_z, *blocks[0], ctx.eps, 1)
        for product, of_product, bns in zip(products, of_products, reversed(of_bns), strict=True):
            of_parameters += [of_product.view_as(product), *bns]
        return None, None, None, grad_u, None, *of_parameters


def _parts(tensors: Sequence[Tensor], length: int) -> list[Sequence[Tensor]]:
    """So many of the tensors in each part; the last part may have fewer."""
    return [tensors[i : i + length] for i in range(0, len(tensors), length)]


def _as_map(pixels: Tensor) -> Tensor:
    """[N, H, W, C] -> [N, C, H, W] in channels_last."""
    return pixels.permute(0, 3, 1, 2)
