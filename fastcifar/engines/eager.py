"""The eager engine: one training step, written out. The compiled and the fused engine replace only its forward."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.batch import Batch
from fastcifar.engines.products import Aside, in_place
from fastcifar.engines.synchronised import apart
from fastcifar.optim import Average, Ema, FusedSGD
from fastcifar.run.clock import wait
from fastcifar.target import Target

Forward = Callable[[Batch], tuple[Tensor, Tensor]]
"""batch -> what `loss_and_sums` returns."""

TakeGradients = Callable[[Batch, Tensor, Tensor, Callable[[], None]], None]
"""(batch, grad_loss, totals, meanwhile): gives each parameter its gradient, where that of the batch's mean loss is
`grad_loss`, float32 [] on the device, and adds to `totals` what `loss_and_sums` returns beside the loss. It calls
`meanwhile` once, see `Engine.train_step`."""


def nothing() -> None:
    """No work."""


@dataclass(frozen=True)
class Means:
    """Mean loss and accuracy over the images of an epoch or of a split.

    Attributes:
        loss: the mean cross-entropy, in nats.
        accuracy: 0 to 1. Under MixUp both labels count, weighted by lambda.
    """

    loss: float
    accuracy: float


def loss_and_sums(logits: Tensor, batch: Batch, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and what is added up over an epoch. Under MixUp lambda weights both labels.

    Args:
        logits: [B, K] in any floating dtype; the loss is computed in float32 or higher.
        batch: its labels and, under MixUp, its partner labels and lambda.
        label_smoothing: 0 to 1.

    Returns:
        The mean loss, [], and float32 [2]: the sum of the losses and the number of correct predictions.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    predicted = logits.detach().argmax(1)
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    correct = (predicted == batch.labels).sum().float()
    if batch.partner_labels is not None and batch.lam is not None:
        partner_loss = F.cross_entropy(logits, batch.partner_labels, label_smoothing=label_smoothing)
        partner_correct = (predicted == batch.partner_labels).sum().float()
        loss = torch.lerp(partner_loss, loss, batch.lam)
        correct = torch.lerp(partner_correct, correct, batch.lam)
    return loss, torch.stack((loss.detach() * len(batch.labels), correct))


def forward_with_loss(model: Callable[[Tensor], Tensor], label_smoothing: float) -> Forward:
    """The eager forward: batch -> `loss_and_sums` of the model's logits.

    Args:
        model: images -> logits.
        label_smoothing: 0 to 1.
    """

    def forward(batch: Batch) -> tuple[Tensor, Tensor]:
        return loss_and_sums(model(batch.images), batch, label_smoothing)

    return forward


class Engine:
    """Trains one model, a batch at a time, without reading anything back from the device.

    Args:
        model: trained in place.
        optimizer: updates the model's parameters.
        ema: the moving average of the weights; None if there is none.
        average: the mean of the weights of the last epochs; None if there is none.
        target: the settled config and its device. `bf16` and `fp16` run under autocast. With `fp16` the loss is scaled,
            and the device decides whether a step overflowed.
        forward: the compiled or fused forward for training; None for the eager forward.
        gradients: takes the place of the forward and of autograd from the loss on; None: there is no such function. Not
            in several processes.
        evaluation: makes the function images -> logits of one evaluation; None for the model itself.
        loaded: is called after `load` has overwritten the tensors.
        aside: does work of a step that only the optimizer or the next step needs; joined at the end of backward.

    Attributes:
        model: the argument.
        optimizer: the argument.
        ema: the argument.
        average: the argument.
        scaler: scales the loss with `fp16`, and does nothing otherwise.
        totals: float64 [2] on the device: the sum of losses and the correct predictions of the epoch so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD | FusedSGD,
        ema: Ema | None,
        average: Average | None = None,
        *,
        target: Target,
        forward: Forward | None = None,
        gradients: TakeGradients | None = None,
        evaluation: Callable[[], Callable[[Tensor], Tensor]] | None = None,
        loaded: Callable[[], None] = nothing,
        aside: Aside = in_place,
    ) -> None:
        self.model, self.optimizer, self.ema, self.average = model, optimizer, ema, average
        self._target, self._ranks, device = target, target.ranks, target.device
        self._forward = forward or forward_with_loss(model, target.config.label_smoothing)
        self._gradients = gradients
        self._evaluation, self._loaded = evaluation or (lambda: model), loaded
        self._aside = aside
        self.scaler = torch.amp.GradScaler(device.type, enabled=target.dtype == torch.float16)
        self._one = torch.ones((), device=device)
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)
        self._best: dict[str, Tensor] = {}
        if target.config.keep_best:
            self._best = {name: tensor.detach().clone() for name, tensor in self._evaluated().items()}

    def _autocast(self) -> AbstractContextManager[object]:
        if self._target.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._target.device.type, self._target.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that training reads or writes, except the batches, by name. The tensors are not copied."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = tensor
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.tensors.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        return tensors | {"totals": self.totals}

    def _evaluated(self) -> dict[str, Tensor]:
        """The weights and running statistics that `evaluate` uses, by name."""
        if self.ema is not None:
            return self.ema.tensors
        return dict(self.model.named_parameters()) | dict(self.model.named_buffers())

    @torch.no_grad()
    def keep_best(self) -> None:
        """Copies the weights that `evaluate` uses. They are among `tensors` as `best.NAME`, with `keep_best = true`."""
        for name, tensor in self._evaluated().items():
            self._best[name].copy_(tensor)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites every tensor of `tensors()` in place: a captured CUDA graph holds their addresses.

        Args:
            tensors: the new values, by the same names.
        """
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self._loaded()

    def apply_average(self) -> None:
        """Makes the model's weights those of `average`, which there must be. The running statistics stay."""
        assert self.average is not None
        self.load(self.tensors() | {f"model.{name}": tensor for name, tensor in self.average.tensors.items()})

    def train_step(self, batch: Batch, lr: float | Tensor, meanwhile: Callable[[], None] = nothing) -> None:
        """Takes one step: forward, backward, update. Loss and correct predictions are added to `totals`.

        It reads nothing from the device, so that a CUDA graph can hold the whole step.

        Args:
            batch: the training batch.
            lr: the learning rate; in a CUDA graph, a float32 tensor on the device.
            meanwhile: is called once, to launch work that only the optimizer or the next step needs. An engine with a
                stream for such work does it there, with its own.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._take_gradients(batch, self.totals, meanwhile)
        self.scaler.step(cast(torch.optim.Optimizer, self.optimizer))
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()

    def _take_gradients(self, batch: Batch, totals: Tensor, meanwhile: Callable[[], None] = nothing) -> None:
        """Forward and backward. Loss and correct predictions are added to `totals`."""
        if self._gradients is not None:
            self._gradients(batch, self.scaler.scale(self._one), totals, meanwhile)
            return
        meanwhile()
        with self._autocast():
            loss, sums = self._forward(batch)
        with self._aside([sums]):
            totals += sums
        self.scaler.scale(loss).backward(self._weight(batch, loss.dtype))  # type: ignore[no-untyped-call]

    def _weight(self, batch: Batch, dtype: torch.dtype) -> Tensor | None:
        """What the gradient of the loss is multiplied by; None is 1.

        On CUDA the 1 is kept, because backward() would make it anew each step; a number given to backward() imports
        sympy, which takes half a second.
        """
        if batch.share == 1 and self._one.device.type == "cpu":
            return None
        return (self._one if batch.share == 1 else self._one * batch.share).to(dtype)

    def pop_means(self, num_images: int) -> Means:
        """The mean loss and accuracy since the last call. Reads `totals` from the device, and sets them to 0.

        Args:
            num_images: the number of images that were trained on since the last call, in all processes.
        """
        loss, correct = (self._ranks.summed(self.totals) / num_images).tolist()
        self.totals.zero_()
        return Means(loss, correct)

    @torch.no_grad()
    def unite(self) -> None:
        """Makes the tensors of all processes equal, to be evaluated and saved; alone it does nothing.

        The running statistics become the mean of the processes', and the first process's `totals` those of all. Weights
        and momenta are equal already.
        """
        buffers = list(self.model.buffers())
        if self.ema is not None:
            buffers += [self.ema.tensors[name] for name, _ in self.model.named_buffers()]
        self._ranks.average_(buffers)
        self.totals.copy_(self._ranks.summed(self.totals))
        self._keep_totals_once()

    @torch.no_grad()
    def receive(self) -> None:
        """Takes over the tensors and the loss scale of the first process; alone it does nothing."""
        self._ranks.broadcast_(self.tensors().values())
        self._loaded()
        self.scaler.load_state_dict(self._ranks.from_first(self.scaler.state_dict()))
        self._keep_totals_once()

    def _keep_totals_once(self) -> None:
        if not self._ranks.is_first:
            self.totals.zero_()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], see: Callable[[Tensor, Tensor], None] | None = None) -> Means:
        """Evaluates the model or, if there is a moving average, the average.

        Args:
            batches: this process's batches; at least one batch in all processes together.
            see: is called with each batch's logits, float32 [B, K], and labels, int64 [B], both on the device.

        Returns:
            Mean loss, without label smoothing, and accuracy, over the images of all processes.
        """
        self.model.eval()
        if self.ema is not None:
            self.ema.swap()
        try:
            totals, num_images, logits_of = torch.zeros_like(self.totals), 0, self._evaluation()
            for batch in batches:
                with self._autocast():
                    logits = logits_of(batch.images)
                    totals += loss_and_sums(logits, batch, label_smoothing=0.0)[1]
                if see is not None:
                    see(logits.float(), batch.labels)
                num_images += len(batch.labels)
            loss_mean, accuracy = (self._ranks.summed(totals) / self._ranks.total(num_images)).tolist()
        finally:
            if self.ema is not None:
                self.ema.swap()
            self.model.train()
        return Means(loss_mean, accuracy)

    @torch.no_grad()
    def estimate_statistics(self, batches: Iterable[Batch]) -> None:
        """Sets the running statistics of every BN to the mean over the batches' own statistics.

        It runs the model itself, op by op, whatever the engine: the momentum of the running statistics, which is
        another one for each batch, is a constant in compiled and fused forwards. A batch of one image is left out: the
        last maps of a small image have one number a channel, which has no variance.

        Args:
            batches: each of several processes has the same. Without one of two images the statistics stay as they are.
        """
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta, seen = [norm.momentum for norm in norms], 0
        with self._autocast(), apart(self.model):
            for batch in batches:
                if len(batch.labels) == 1:
                    continue
                seen += len(batch.labels)
                for norm in norms:
                    norm.momentum = len(batch.labels) / seen
                self.model(batch.images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def warm_up(self, batches: Iterable[Batch]) -> float:
        """Runs forward and backward on each batch, so that compiling and choosing kernels end before training starts.

        Weights, running statistics and totals stay as they were.

        Args:
            batches: a batch of each size that training will have.

        Returns:
            The seconds that it took.
        """
        start = time.perf_counter()
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        for batch in batches:
            self._take_gradients(batch, torch.zeros_like(self.totals))
            self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        wait(self._target.device)
        return time.perf_counter() - start
