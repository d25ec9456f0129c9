"""The input of one training step or of one evaluation step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The input of one step, on the device. B images of S x S pixels.

    Attributes:
        images: [B, 3, S, S] in the compute dtype and the config's memory format.
        labels: int64 [B].
        partner_labels: int64 [B], the labels of the images mixed or pasted in; None without MixUp and CutMix.
        lam: float32 [], the weight of `labels` in the loss, 0 to 1; None exactly where `partner_labels` is.
        share: the weight of this batch's mean loss in the mean over all processes; 1 if their parts are equal.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor | None = None
    lam: Tensor | None = None
    share: float = 1.0

    def first(self, count: int) -> Batch:
        """A batch of the first `count` images."""
        partner = None if self.partner_labels is None else self.partner_labels[:count]
        return Batch(self.images[:count], self.labels[:count], partner, self.lam)

    def part(self, rows: slice, parts: int) -> Batch:
        """A batch of some of the images, as one of several processes trains on it.

        Args:
            rows: which images; at least one.
            parts: the number of processes.
        """
        partner = None if self.partner_labels is None else self.partner_labels[rows]
        share = (rows.stop - rows.start) * parts / len(self.labels)
        return Batch(self.images[rows], self.labels[rows], partner, self.lam, share)
