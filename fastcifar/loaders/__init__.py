"""Where batches come from: every loader yields the same `Batch` for the same draws."""

from fastcifar.loaders.resident import Augmentation, Batch, ResidentLoader, augmentation_of, eval_batches

__all__ = ["Augmentation", "Batch", "ResidentLoader", "augmentation_of", "eval_batches"]
