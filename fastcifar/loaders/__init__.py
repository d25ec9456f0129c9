"""Where batches come from: every loader yields the same `Batch` for the same draws."""

from fastcifar.loaders.resident import Batch, ResidentLoader, eval_batches

__all__ = ["Batch", "ResidentLoader", "eval_batches"]
