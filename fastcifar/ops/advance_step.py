"""The learning rate of a step out of the run's, and the step counted, in one launch."""

from __future__ import annotations

from torch import Tensor

from fastcifar.ops._library import define


def advance_step(counters: Tensor, lrs: Tensor, lr: Tensor) -> None:
    """Takes the learning rate of the run's next step, and counts the step, in place. It has no gradient.

    Equal to `lr.copy_(lrs[counters[1]])` and `counters += 1`, except that the number of the step is read on the device,
    so that one captured graph takes every step. A number that no step has is clamped.

    Args:
        counters: int64 [2], contiguous: the step of the epoch and the step of the run, from 0.
        lrs: float32 [steps], contiguous: the learning rate of every step of the run; at least one.
        lr: float32 [1].

    Raises:
        RuntimeError: an argument has another shape, dtype or device, or a gap; the message names it.
    """
    _advance_step(counters, lrs, lr)


def advance_step_ref(counters: Tensor, lrs: Tensor, lr: Tensor) -> None:
    """`advance_step` in plain PyTorch."""
    lr.copy_(lrs.index_select(0, counters[1:].clamp(0, len(lrs) - 1)))
    counters.add_(1)


_advance_step = define("advance_step(Tensor(a!) counters, Tensor lrs, Tensor(b!) lr) -> ()", advance_step_ref)
