"""From settings to an engine."""

from __future__ import annotations

import torch

from fastcifar import cpu
from fastcifar.config import Config
from fastcifar.engines.compiled import compiled_forward
from fastcifar.engines.eager import Engine, forward_with_loss
from fastcifar.engines.fused import FusedModel, fused_forward
from fastcifar.loaders import MEMORY_FORMAT
from fastcifar.model import MobileNet
from fastcifar.optim import Ema, build_optimizer


def build_engine(model: MobileNet, config: Config, device: torch.device) -> Engine:
    """The engine a settled config names, over `model` moved to `device` in the config's memory format.

    On the CPU with `tuned = true` freed memory is kept, and where no fused ops take their place the model's
    convolutions are replaced by faster equals (see `cpu`).
    """
    model.to(device=device, memory_format=MEMORY_FORMAT[config.memory_format])  # type: ignore[call-overload]
    if device.type == "cpu" and config.tuned:
        cpu.keep_freed_memory()
        if config.engine != "fused" and config.memory_format == "channels_last":
            cpu.tune(model)
    model.train()
    optimizer = build_optimizer(model, config)
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    logits, forward = None, None
    if config.engine == "fused":
        logits = FusedModel(model, fuse_pointwise=config.fuse_pointwise)
        forward = fused_forward(logits, config.label_smoothing)
    elif config.engine == "compiled":
        eager = forward_with_loss(model, config.label_smoothing)
        forward = compiled_forward(eager, config.batch_size, config.compile_mode)
    return Engine(
        model,
        optimizer,
        ema,
        device=device,
        precision=config.precision,
        label_smoothing=config.label_smoothing,
        logits=logits,
        forward=forward,
    )
