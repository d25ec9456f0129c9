"""What several processes do in a step together: averaging gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastcifar.batch import Batch
from fastcifar.engines.eager import Forward


def averaging(model: nn.Module, forward: Forward) -> Forward:
    """`forward`, whose backward averages the gradients of all processes, while it still computes.

    The running statistics of batch norm stay each process's own: `Engine.unite` averages them.

    Args:
        model: its parameters get the gradients.
        forward: batch -> loss and sums, computed with these parameters.
    """
    # A 1x1 weight in channels_last and its gradient have the same memory and other strides, which is noted once.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return cast(Forward, DistributedDataParallel(_Loss(model, forward)))


class _Loss(nn.Module):
    """A forward as the module that DistributedDataParallel takes. It has the model's parameters, and no buffers."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.trained = nn.ParameterList(model.parameters())
        self._forward: Callable[[Batch], tuple[Tensor, Tensor]] = forward

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._forward(batch)
