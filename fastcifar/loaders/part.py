"""The batches of one of several processes: its part of every batch of the run."""

from __future__ import annotations

from fastcifar.batch import Batch
from fastcifar.loaders.protocol import Loader
from fastcifar.ranks import Ranks


class PartLoader:
    """A loader whose batches hold one process's rows of the batches of another loader.

    Every process makes the whole batch and keeps its rows, so that the batches of a run, with their MixUp pairs across
    the parts, are the same for any number of processes. Making a batch costs little beside training on it.

    Args:
        whole: makes the batches of the run.
        ranks: whose rows are kept.

    Attributes:
        num_images, batch_size, num_batches: those of the run, and not of this process.
    """

    def __init__(self, whole: Loader, ranks: Ranks) -> None:
        self._whole, self._ranks = whole, ranks
        self.num_images, self.batch_size, self.num_batches = whole.num_images, whole.batch_size, whole.num_batches

    def begin(self, epoch: int, first_step: int = 0) -> None:
        """Starts an epoch; see `Loader.begin`."""
        self._whole.begin(epoch, first_step)

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of a step; see `Loader.batch`."""
        batch = self._whole.batch(step)
        return batch.part(self._ranks.rows(len(batch.labels)), self._ranks.size)

    def close(self) -> None:
        """Ends worker processes and threads."""
        self._whole.close()
