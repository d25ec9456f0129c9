"""The eager engine: one training step, written out. The other engines replace its forward and keep the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.batch import Batch
from fastcifar.optim import Ema
from fastcifar.run.clock import wait
from fastcifar.target import Target

Forward = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Means:
    """Loss and accuracy (0 to 1), means over the images of an epoch or a split; under MixUp weighted by lambda."""

    loss: float
    accuracy: float


def loss_and_sums(logits: Tensor, batch: Batch, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Mean loss [], and [sum of losses, correct predictions], of logits [B, K]; MixUp weights both labels."""
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
    """batch -> `loss_and_sums` of the model's logits."""

    def forward(batch: Batch) -> tuple[Tensor, Tensor]:
        return loss_and_sums(model(batch.images), batch, label_smoothing)

    return forward


class Engine:
    """Trains one model, a batch at a time, without reading anything back from the device.

    Args:
        model, optimizer, ema: trained in place; ema may be None.
        target: a precision of `bf16` and `fp16` runs under autocast; `fp16` scales its loss, and whether a step
            overflowed is decided on the device.
        logits: images -> logits, the model's function; None for the model itself.
        forward: another way to compute `forward_with_loss` in training, compiled or fused; None for eager.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        *,
        target: Target,
        logits: Callable[[Tensor], Tensor] | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self._target, device = target, target.device
        self._forward = forward or forward_with_loss(logits or model, target.config.label_smoothing)
        self._logits = logits or model
        self.scaler = torch.amp.GradScaler(device.type, enabled=target.dtype == torch.float16)
        self._one = torch.ones((), device=device)  # what backward starts from, without a kernel to make it each step
        # [sum of losses, correct predictions] over the images of the epoch so far
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._target.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._target.device.type, self._target.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor a step reads or writes beside its batch, by name, as the live objects."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = tensor
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.tensors.items()}
        return tensors | {"totals": self.totals}

    def train_step(self, batch: Batch, lr: float | Tensor) -> None:
        """Forward, backward, step; the sum of losses and the correct predictions are added to `totals`.

        Reads nothing from the device, so that a CUDA graph can hold all of it; `lr` is then a float32 tensor there.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self._autocast():
            loss, sums = self._forward(batch)
        self.scaler.scale(loss).backward(self._one.to(loss.dtype))  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self.totals += sums

    def pop_means(self, num_images: int) -> Means:
        """The means over the `num_images` images since the last call: `totals` is read from the device and set to 0."""
        loss, correct = (self.totals / num_images).tolist()
        self.totals.zero_()
        return Means(loss, correct)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], see: Callable[[Tensor, Tensor], None] | None = None) -> Means:
        """Loss and accuracy in evaluation mode, of the moving average where one is kept.

        `see` is shown every batch's logits, float32 [B, K], and labels, both on the device.
        """
        self.model.eval()
        if self.ema is not None:
            self.ema.swap()
        try:
            totals, num_images = torch.zeros_like(self.totals), 0
            for batch in batches:
                with self._autocast():
                    logits = self._logits(batch.images)
                    totals += loss_and_sums(logits, batch, label_smoothing=0.0)[1]
                if see is not None:
                    see(logits.float(), batch.labels)
                num_images += len(batch.labels)
            loss_mean, accuracy = (totals / num_images).tolist()
        finally:
            if self.ema is not None:
                self.ema.swap()
            self.model.train()
        return Means(loss_mean, accuracy)

    def warm_up(self, batches: Iterable[Batch]) -> float:
        """Runs forward and backward on each batch, so that compiling and choosing kernels is over when training starts.

        Leaves weights, running statistics and totals as they were. Returns the seconds it took.
        """
        start = time.perf_counter()
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        for batch in batches:
            with self._autocast():
                loss, _ = self._forward(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        wait(self._target.device)
        return time.perf_counter() - start
