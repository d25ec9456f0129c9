"""The optimizer, its parameter groups, the learning-rate schedule and the averages of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcifar import ops
from fastcifar.config import Config


def param_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """The parameter groups of the optimizer.

    Args:
        model: its parameters are grouped.
        config: `weight_decay`, `decay_norm_and_bias` and `decay_depthwise` are read.

    Returns:
        One group with weight decay. If not every parameter decays, there is a second group, without weight decay: the
        parameters of one dimension, which are the biases and the BN scales and shifts, with
        `decay_norm_and_bias = false`; the depthwise filters with `decay_depthwise = false`.
    """

    def decays(name: str, parameter: Tensor) -> bool:
        if parameter.ndim <= 1:
            return config.decay_norm_and_bias
        return config.decay_depthwise or not name.endswith("depthwise.weight")

    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if config.weight_decay == 0 or decays(name, parameter) else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    return [*groups, {"params": others, "weight_decay": 0.0}] if others else groups


class FusedSGD:
    """`torch.optim.SGD` in float32 whose step is one call of `ops.sgd`, for all groups together.

    It has what the engine and GradScaler use of an Optimizer, and is none: making an Optimizer imports the compiler of
    torch.compile, which takes a second or two of each process.

    Args:
        groups: the parameter groups, which differ in their weight decay at most.
        config: `lr`, `momentum` and `nesterov` are read.
        rounded: copies of parameters in another dtype, which each step writes. Such a parameter's gradient may have the
            dtype of its copy.

    Attributes:
        param_groups: the groups, each with its learning rate as `lr`.
        state: by parameter, its momentum buffer as `momentum_buffer`, which must exist before the first step.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves the scale and the skipped step to `step`

    def __init__(self, groups: list[dict[str, Any]], config: Config, rounded: Mapping[Tensor, Tensor]) -> None:
        self.param_groups = [{**group, "lr": config.lr} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {p: {} for group in groups for p in group["params"]}
        self._config, self._rounded = config, rounded
        self._rows = [
            (parameter, rounded.get(parameter, parameter.new_empty(0)), group["weight_decay"])
            for group in groups
            for parameter in group["params"]
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        assert set_to_none
        for parameter in self.state:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters that have a gradient."""
        rows = [row for row in self._rows if row[0].grad is not None]
        if not rows:
            return
        params, copies, decays = zip(*rows, strict=True)
        momentum, lr = self._config.momentum, self.param_groups[0]["lr"]
        ops.sgd(
            params,
            [p.grad for p in params],
            [self.state[p]["momentum_buffer"] for p in params] if momentum else [],
            copies if self._rounded else [],
            lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=params[0].dtype, device=params[0].device),
            decays,
            momentum,
            self._config.nesterov,
            getattr(self, "grad_scale", None),  # GradScaler sets both for a step, in fp16
            getattr(self, "found_inf", None),
        )


def build_optimizer(
    model: nn.Module, config: Config, rounded: Mapping[Tensor, Tensor] | None = None
) -> torch.optim.SGD | FusedSGD:
    """SGD with coupled weight decay and dampening 0; one fused call updates all tensors.

    The momentum buffers are made here, filled with zeros. PyTorch would allocate them uninitialised at the first step;
    if fp16 overflows in that step, the step is skipped and the second step reads garbage (seen: NaN on the CPU, torch
    2.13).

    Args:
        model: its parameters are trained.
        config: the settings of optimizer and weight decay.
        rounded: for `FusedSGD`, whose step is an op of ours; None: PyTorch's own step.
    """
    groups = param_groups(model, config)
    optimizer: torch.optim.SGD | FusedSGD
    if rounded is None:
        optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    else:
        optimizer = FusedSGD(groups, config, rounded)
    if config.momentum:
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lr_table(config: Config, steps_per_epoch: int) -> NDArray[np.float64]:
    """The learning rate of every step of the run.

    The cosine schedule falls to 0 without restarts. With `lr_schedule_unit = "epoch"` it equals PyTorch's
    CosineAnnealingLR(T_max=epochs), whose last epoch still has a rate above 0. Warm-up rises linearly with each step;
    the cosine schedule covers the steps after the warm-up.

    Args:
        config: the settings whose names start with `lr`, and `epochs`.
        steps_per_epoch: the number of batches in an epoch.

    Returns:
        float64 [epochs * steps_per_epoch].
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
    """An exponential moving average of a model's weights and running statistics, which is evaluated in their place.

    Args:
        model: the model whose tensors are averaged.
        decay: the weight of the previous average at each update, between 0 and 1.

    Attributes:
        tensors: the averages, by the name of the model's tensor.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._source = dict(model.named_parameters()) | dict(model.named_buffers())
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._source.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the model's tensors. To be called after every step."""
        sources: list[Tensor] = [t.detach() for t in self._source.values()]
        torch._foreach_lerp_(list(self.tensors.values()), sources, 1 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's tensors with their averages. A second call restores both."""
        for name, tensor in self._source.items():
            kept = tensor.detach().clone()
            tensor.detach().copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


class Average:
    """The mean of a model's weights after each of the last epochs.

    Args:
        model: the model whose parameters are averaged.
        epochs: the number of epochs of the run.
        last: how many of them are averaged.

    Attributes:
        tensors: the mean so far, by the name of the parameter.
    """

    def __init__(self, model: nn.Module, epochs: int, last: int) -> None:
        self._source = dict(model.named_parameters())
        self._before = epochs - last
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._source.items()}

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Adds the weights to the mean, if the epoch is one of the last. To be called after every epoch.

        Args:
            epoch: counted from 1.
        """
        if (count := epoch - self._before) > 0:
            sources: list[Tensor] = [t.detach() for t in self._source.values()]
            torch._foreach_lerp_(list(self.tensors.values()), sources, 1 / count)
