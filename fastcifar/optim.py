"""The optimizer, its parameter groups, the learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcifar.config import Config


def param_groups(model: nn.Module, config: Config) -> list[dict[str, object]]:
    """All parameters with weight decay, or with `decay_norm_and_bias = false` only those of two or more dimensions."""
    params = list(model.parameters())
    if config.decay_norm_and_bias or config.weight_decay == 0:
        return [{"params": params, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.SGD:
    """SGD with coupled weight decay and dampening 0, all tensors in one fused call.

    The momentum buffers exist from the start. PyTorch allocates them uninitialised at the first step, and when fp16
    overflows there and the step is skipped, the second step reads garbage (seen: NaN on the CPU, torch 2.13).
    """
    groups = param_groups(model, config)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    if config.momentum:
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lr_table(config: Config, steps_per_epoch: int) -> NDArray[np.float64]:
    """The learning rate of every step of the run, float64 [epochs * steps_per_epoch].

    Cosine goes to 0 without restarts. Stepped once an epoch it is PyTorch's CosineAnnealingLR(T_max=epochs): the last
    epoch still trains at a rate above 0. Warm-up rises linearly, step by step, and cosine takes the steps after it.
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.lr_warmup_epochs * steps_per_epoch)
    table = np.empty(total)
    for step in range(total):
        if step < warmup:
            table[step] = config.lr * (step + 1) / warmup
        elif config.lr_schedule == "constant":
            table[step] = config.lr
        else:
            position = step - step % steps_per_epoch if config.lr_schedule_unit == "epoch" else step
            progress = max(0, position - warmup) / (total - warmup)
            table[step] = config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return table


class Ema:
    """An exponential moving average of the weights and running statistics, kept beside the model and evaluated for it.

    Arguments:
        model: averaged after every step.
        decay: weight of the past, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._source = dict(model.named_parameters()) | dict(model.named_buffers())
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._source.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        sources: list[Tensor] = [t.detach() for t in self._source.values()]
        torch._foreach_lerp_(list(self.tensors.values()), sources, 1 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's tensors and their averages; called again, puts them back."""
        for name, tensor in self._source.items():
            kept = tensor.detach().clone()
            tensor.detach().copy_(self.tensors[name])
            self.tensors[name].copy_(kept)
