"""From settings to an engine."""

from __future__ import annotations

from functools import partial

from fastcifar import cpu, machine
from fastcifar.engines.compiled import compiled_forward
from fastcifar.engines.eager import Engine, forward_with_loss
from fastcifar.engines.fused import FusedModel, fused_forward
from fastcifar.engines.parallel import averaging
from fastcifar.engines.products import SideStream
from fastcifar.engines.synchronised import synchronise
from fastcifar.model import MobileNet
from fastcifar.optim import Average, Ema, build_optimizer
from fastcifar.target import Target


def build_engine(model: MobileNet, target: Target, *, captured: bool = False) -> Engine:
    """The engine that the target's config names.

    On the CPU, `tuned = true` makes the allocator keep freed memory and, for engines other than `fused`, replaces the
    model's convolutions by equal ones that are faster (see `cpu`). If several processes train the run, a step averages
    their gradients.

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
    if target.ranks.size > 1 and config.sync_batch_norm:
        synchronise(model)
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    average = Average(model, config.epochs, config.average_epochs) if config.average_epochs else None
    forward = forward_with_loss(model, config.label_smoothing)
    fused = gradients = None
    if config.engine == "fused":
        wide, in_blocks = target.ranks.size > 1, target.fuses_pointwise
        # Not for launched steps: they wait for the host, which would have more to do.
        side = SideStream(target.device) if captured else None
        fused = FusedModel(model, dtype=target.dtype, fuse_pointwise=in_blocks, wide_gradients=wide, side=side)
        forward = fused_forward(fused, config.label_smoothing)
        if target.ranks.size == 1:
            gradients = partial(fused.take_gradients, label_smoothing=config.label_smoothing)
    elif config.engine == "compiled":
        per_process = config.batch_size // target.ranks.size
        forward = compiled_forward(forward, per_process, config.compile_mode, captured=captured)
    if target.ranks.size > 1:
        forward = averaging(model, forward)
    if fused is None:
        return Engine(model, build_optimizer(model, config), ema, average, target=target, forward=forward)
    optimizer, evaluation, loaded = build_optimizer(model, config, fused.rounded), fused.folded, fused.round_weights
    return Engine(
        model,
        optimizer,
        ema,
        average,
        target=target,
        forward=forward,
        gradients=gradients,
        evaluation=evaluation,
        loaded=loaded,
        aside=fused.aside,
    )
