"""Where batches come from: three loaders behind one iterator, and the batches of an evaluation."""

from fastcifar.loaders.batch import MEMORY_FORMAT, Batch, Loader, eval_batches
from fastcifar.loaders.build import build_loader
from fastcifar.loaders.resident import Augmentation, ResidentLoader, augmentation_of

__all__ = [
    "MEMORY_FORMAT",
    "Augmentation",
    "Batch",
    "Loader",
    "ResidentLoader",
    "augmentation_of",
    "build_loader",
    "eval_batches",
]
