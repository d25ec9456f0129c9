"""Where batches come from: loaders behind one protocol, and the batches of an evaluation."""

from fastcifar.loaders.batch import MEMORY_FORMAT, Batch, Loader, eval_batches
from fastcifar.loaders.build import build_loader
from fastcifar.loaders.host import HostLoader
from fastcifar.loaders.resident import Augmentation, ResidentLoader, augmentation_of

__all__ = [
    "MEMORY_FORMAT",
    "Augmentation",
    "Batch",
    "HostLoader",
    "Loader",
    "ResidentLoader",
    "augmentation_of",
    "build_loader",
    "eval_batches",
]
