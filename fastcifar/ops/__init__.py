"""Fused ops with compiled kernels, from the batch to the loss; each op's `<op>_ref` computes the same in PyTorch."""

from fastcifar.ops._library import available, cpu_isa, fingerprint, why_unavailable
from fastcifar.ops._modules import Conversion, DepthwiseConv3x3, convert
from fastcifar.ops._threads import own_threads
from fastcifar.ops.advance_step import advance_step
from fastcifar.ops.batch_norm_relu import batch_norm_relu
from fastcifar.ops.batch_norm_relu_pool import batch_norm_relu_pool
from fastcifar.ops.classifier_gradient import classifier_gradient
from fastcifar.ops.depthwise_block import depthwise_block
from fastcifar.ops.dwconv3x3 import dwconv3x3
from fastcifar.ops.dwconv3x3_affine_relu import dwconv3x3_affine_relu
from fastcifar.ops.mixup_cross_entropy import mixup_cross_entropy
from fastcifar.ops.mixup_cross_entropy_gradient import mixup_cross_entropy_gradient
from fastcifar.ops.separable_block import separable_block
from fastcifar.ops.separable_blocks import separable_blocks
from fastcifar.ops.sgd import sgd
from fastcifar.ops.stem import stem
from fastcifar.ops.training_batch import training_batch
from fastcifar.ops.update_statistics import update_statistics

__all__ = [
    "Conversion",
    "DepthwiseConv3x3",
    "advance_step",
    "available",
    "batch_norm_relu",
    "batch_norm_relu_pool",
    "classifier_gradient",
    "convert",
    "cpu_isa",
    "depthwise_block",
    "dwconv3x3",
    "dwconv3x3_affine_relu",
    "fingerprint",
    "mixup_cross_entropy",
    "mixup_cross_entropy_gradient",
    "own_threads",
    "separable_block",
    "separable_blocks",
    "sgd",
    "stem",
    "training_batch",
    "update_statistics",
    "why_unavailable",
]
