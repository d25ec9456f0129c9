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
from fastcifar.engines.gradients import for_batches
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
from fastcifar.ops import (
    batch_norm_relu_pool,
    classifier_gradient,
    depthwise_block,
    mixup_cross_entropy_gradient,
    separable_block,
    separable_blocks,
    stem,
)
from fastcifar.ops.classifier_gradient import suits as suits_classifier
from fastcifar.session import Session


def time_layer(layer: Layer, session: Session) -> list[float]:
    """Times one layer by itself.

    An eager layer's backward brings the gradient of its weight back to float32, as in training. On the CPU the weight
    is cast before the measurement. On CUDA it is cast in each call, because a captured graph must not use a tensor that
    another stream has cast. The fused engine's classifier is one op with the loss and their gradients, and counts as
    backward.

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
    fused = config.engine == "fused"
    if fused:
        modules = [_in_dtype(module, dtype) for module in modules]
    forward = _function(layer, modules, device, fused=fused)
    classifier: Any = modules.pop() if fused and layer.kind == HEAD else None
    targets = [p for module in modules for p in module.parameters()] + ([x] if x.requires_grad else [])
    cast = torch.autocast(device.type, dtype, config.precision != "fp32", cache_enabled=device.type == "cpu")
    with cast:
        grad = torch.randn_like(forward(x).detach())  # a graph that is kept would bind later ones to this stream
        gradient = _ending(classifier, config.batch_size, device) if classifier else lambda y: grad

        def backward(y: Tensor, keep: bool = False) -> object:
            return torch.autograd.grad(y, targets, gradient(y.detach()), retain_graph=keep)

        if device.type == "cpu":
            y = forward(x)
            return _medians([lambda: forward(x), lambda: backward(y, keep=True)], device)
        there, and_back = _medians([lambda: forward(x), lambda: backward(forward(x))], device)
    return [there, max(and_back - there, 0.0)]


def _ending(classifier: nn.Linear, batch_size: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What the fused engine computes between forward and backward of the rest: pooled -> its gradient."""
    weight, bias = classifier.weight.detach(), classifier.bias.detach()
    labels = torch.randint(len(bias), (batch_size,), device=device)
    targets = labels, None, None, 0.0, torch.ones((), device=device), torch.zeros(2, dtype=torch.float64, device=device)

    def gradient(pooled: Tensor) -> Tensor:
        if suits_classifier(pooled, len(bias)):
            return classifier_gradient(pooled, weight, bias, *targets)[0]
        grad = mixup_cross_entropy_gradient(F.linear(pooled, weight, bias), *targets)
        grad.t().mm(pooled), grad.sum(0)  # of weight and bias: only their time counts
        return grad.mm(weight)

    return gradient


def _medians(calls: Sequence[Call], device: torch.device) -> list[float]:
    return [statistics.median(times) for times in time_calls(calls, device)]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies one by one, as autocast does."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module as the fused engine uses it: a copy in `dtype`; BN and depthwise as they are."""
    if isinstance(module, nn.BatchNorm2d) or getattr(module, "groups", 1) > 1:
        return module
    return copy.deepcopy(module).to(dtype)


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
        return lambda x: stem(x, for_batches(first.weight))[0]
    if layer.kind == STEM:
        return lambda x: first(x[:, : first.in_channels])
    if layer.kind == HEAD and fused:
        return lambda u: batch_norm_relu_pool(u, first.weight, first.bias, first.eps)[0]
    if layer.kind == HEAD:
        return lambda x: first(F.avg_pool2d(x, x.shape[-2:]).flatten(1))
    if layer.kind == POINTWISE and fused:
        return MatmulPointwise(first)
    return first  # type: ignore[no-any-return]
