"""One step's input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One step's input, on the device.

    Args:
        images: [B, 3, S, S] in the compute dtype and the config's memory format.
        labels: int64 [B].
        partner_labels: int64 [B], the labels of the images mixed in; None without MixUp.
        lam: float32 [], the weight of `labels`; None without MixUp.
    """

    images: Tensor
    labels: Tensor
    partner_labels: Tensor | None = None
    lam: Tensor | None = None

    def first(self, count: int) -> Batch:
        """Its first `count` images, as a batch."""
        partner = None if self.partner_labels is None else self.partner_labels[:count]
        return Batch(self.images[:count], self.labels[:count], partner, self.lam)
