"""Where batches come from: training loaders with one protocol, and the batches of an evaluation."""

from fastcifar.loaders.build import build_loader, check_available
from fastcifar.loaders.host import HostLoader
from fastcifar.loaders.protocol import EvalBatches, Loader
from fastcifar.loaders.resident import Augmentation, ResidentLoader, augmentation_of

__all__ = [
    "Augmentation",
    "HostLoader",
    "Loader",
    "ResidentLoader",
    "augmentation_of",
    "build_loader",
    "check_available",
    "EvalBatches",
]
