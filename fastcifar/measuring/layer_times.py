"""The time of one layer by itself, forward and backward, on tensors that the caches still hold."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.cpu import MatmulPointwise
from fastcifar.loaders import ResidentLoader
from fastcifar.measuring.kernels import (
    AUGMENTATION,
    BLOCK,
    COPIES,
    HEAD,
    NORM,
    OPTIMIZER,
    POINTWISE,
    SEPARABLE,
    STEM,
)
from fastcifar.measuring.layers import Layer
from fastcifar.measuring.timing import Call, time_calls
from fastcifar.ops import batch_norm_relu_pool, depthwise_block, separable_block, separable_blocks, stem
from fastcifar.session import Session


def time_layer(layer: Layer, session: Session) -> list[float]:
    """Times one layer by itself.

    An eager layer's backward brings the gradient of its weight back to float32, as in training. On the CPU the weight
    is cast before the measurement. On CUDA it is cast in each call, because a captured graph must not use a tensor that
    another stream has cast.

    Args:
        layer: one of `list_layers`.
        session: the session whose model, loader and optimizer are timed, on its device.

    Returns:
        The median seconds of the forward and, if the layer has a backward, of the backward. On CUDA the backward is the
        time of forward and backward together minus the forward, because a captured graph holds both. Empty for
        augmentation if the loader makes batches ahead.
    """
    config, device, dtype = session.target.config, session.target.device, session.target.dtype
    engine, loader = session.engine, session.loader
    if layer.kind == AUGMENTATION:
        if not isinstance(loader, ResidentLoader):  # its batches are made ahead
            return []
        loader.begin(1)
        return _medians([lambda: loader.batch(0)], device)
    if layer.kind == OPTIMIZER:
        for parameter in engine.model.parameters():
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
        medians = _medians([engine.optimizer.step], device)
        engine.optimizer.zero_grad(set_to_none=True)
        return medians
    if layer.kind == COPIES:
        weights = [p.detach().clone() for p in engine.model.parameters() if p.ndim > 1]  # the copy back rounds
        casts = [torch.empty_like(w, dtype=dtype) for w in weights]
        return _medians([lambda: _copy(casts, weights), lambda: _copy(weights, casts)], device)
    x = torch.randn(layer.in_shape, device=device).to(dtype)
    x = x.contiguous(memory_format=session.target.memory_format)
    x.requires_grad_(layer.kind != STEM)
    modules = [engine.model.get_submodule(name) for name in layer.modules]
    if config.engine == "fused":
        modules = [_in_dtype(module, dtype) for module in modules]
    forward = _function(layer, modules, device, fused=config.engine == "fused")
    targets = [p for module in modules for p in module.parameters()] + ([x] if x.requires_grad else [])
    cast = torch.autocast(device.type, dtype, config.precision != "fp32", cache_enabled=device.type == "cpu")
    with cast:
        if device.type == "cpu":
            y = forward(x)
            grad = torch.randn_like(y)
            return _medians(
                [lambda: forward(x), lambda: torch.autograd.grad(y, targets, grad, retain_graph=True)], device
            )

        grad = torch.randn_like(forward(x).detach())  # a graph that is kept would bind later ones to this stream

        def both() -> object:
            return torch.autograd.grad(forward(x), targets, grad)

        there, and_back = _medians([lambda: forward(x), both], device)
    return [there, max(and_back - there, 0.0)]


def _medians(calls: Sequence[Call], device: torch.device) -> list[float]:
    return [statistics.median(times) for times in time_calls(calls, device)]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies one by one, as autocast does."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module as the fused engine uses it: a copy with its weight in `dtype`; BN and depthwise as they are."""
    if isinstance(module, nn.BatchNorm2d) or getattr(module, "groups", 1) > 1:
        return module
    module = copy.deepcopy(module)
    assert isinstance(module.weight, Tensor)
    module.weight = nn.Parameter(module.weight.to(dtype))
    return module


def _function(layer: Layer, modules: Sequence[Any], device: torch.device, *, fused: bool) -> Callable[[Tensor], Tensor]:
    """The function that the engine computes for the layer's `modules`."""
    first = modules[0]
    if layer.kind in (BLOCK, SEPARABLE):
        norm, conv, norm1, *pointwise = modules
        bns = (norm.weight, norm.bias, conv.weight, norm1.weight, norm1.bias)
        if pointwise:
            parameters, eps, stride = (*bns, pointwise[0].weight), norm.eps, conv.stride[0]
            if device.type == "cpu":
                return lambda u: separable_blocks(u, None, parameters, eps, (stride,))[0]
            return lambda u: separable_block(u, *parameters, eps, stride)[0]
        return lambda u: depthwise_block(u, *bns, norm.eps, conv.stride[0])[0]
    if layer.kind == NORM:
        return lambda x: F.relu(first(x), inplace=True)
    if layer.kind == STEM and fused:
        return lambda x: stem(x, first.weight)[0]
    if layer.kind == HEAD and len(modules) == 2:
        return lambda u: modules[1](batch_norm_relu_pool(u, first.weight, first.bias, first.eps)[0])
    if layer.kind == HEAD:
        return lambda x: first(F.avg_pool2d(x, x.shape[-2:]).flatten(1))
    if layer.kind == POINTWISE and fused:
        return MatmulPointwise(first)
    return first  # type: ignore[no-any-return]
