"""From settings to an engine."""

from __future__ import annotations

from fastcifar import cpu, machine
from fastcifar.engines.compiled import compiled_forward
from fastcifar.engines.eager import Engine, forward_with_loss
from fastcifar.engines.fused import FusedModel, fused_forward
from fastcifar.model import MobileNet
from fastcifar.optim import Average, Ema, build_optimizer
from fastcifar.target import Target


def build_engine(model: MobileNet, target: Target, *, captured: bool = False) -> Engine:
    """The engine that the target's config names.

    On the CPU, `tuned = true` makes the allocator keep freed memory and, for engines other than `fused`, replaces the
    model's convolutions by equal ones that are faster (see `cpu`).

    Args:
        model: is moved to the target's device and memory format, and trained in place.
        target: the settled config and its device.
        captured: whether each step will be captured as a CUDA graph.

    Returns:
        The engine, with its optimizer and, if `ema_decay` or `average_epochs` is not 0, its average of the weights.
    """
    config = target.config
    model.to(device=target.device, memory_format=target.memory_format)  # type: ignore[call-overload]
    if target.device.type == "cpu" and config.tuned:
        cpu.keep_freed_memory()
        if config.engine != "fused" and config.memory_format == "channels_last":
            slow_products = config.precision == "fp32" and machine.this().cpu.has_slow_library_products
            cpu.tune(model, products=not slow_products)
    model.train()
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    average = Average(model, config.epochs, config.average_epochs) if config.average_epochs else None
    forward = None
    if config.engine == "fused":
        fused = FusedModel(model, dtype=target.dtype, fuse_pointwise=target.fuses_pointwise)
        optimizer = build_optimizer(model, config, fused.rounded)
        forward = fused_forward(fused, config.label_smoothing)
        return Engine(
            model,
            optimizer,
            ema,
            average,
            target=target,
            forward=forward,
            evaluation=fused.folded,
            loaded=fused.round_weights,
        )
    if config.engine == "compiled":
        eager = forward_with_loss(model, config.label_smoothing)
        forward = compiled_forward(eager, config.batch_size, config.compile_mode, captured=captured)
    return Engine(model, build_optimizer(model, config), ema, average, target=target, forward=forward)
