"""Fused depthwise, BN and augmentation ops with compiled kernels; each `<op>_ref` says the same in plain PyTorch."""

from fastcifar.ops._library import available, cpu_isa, why_unavailable
from fastcifar.ops.batch_norm_relu import batch_norm_relu
from fastcifar.ops.depthwise_block import depthwise_block
from fastcifar.ops.dwconv3x3 import dwconv3x3
from fastcifar.ops.dwconv3x3_affine_relu import dwconv3x3_affine_relu
from fastcifar.ops.training_batch import training_batch

__all__ = [
    "available",
    "batch_norm_relu",
    "cpu_isa",
    "depthwise_block",
    "dwconv3x3",
    "dwconv3x3_affine_relu",
    "training_batch",
    "why_unavailable",
]
