"""Optimizer, schedule and moving average, compared with PyTorch's and with the formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.config import Config
from fastcifar.engines.fused import FusedModel
from fastcifar.model import build_model
from fastcifar.optim import Average, Ema, build_optimizer, lr_table, param_groups


def test_constant() -> None:
    assert np.array_equal(lr_table(Config(lr=0.05, epochs=3), 10), np.full(30, 0.05))


def test_cosine_by_epoch_is_pytorchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300)
    ours = lr_table(Config(lr=0.05, epochs=300, lr_schedule="cosine"), 313)
    assert ours.shape == (93_900,)
    for epoch in range(300):
        assert np.ptp(ours[epoch * 313 : (epoch + 1) * 313]) == 0
        assert ours[epoch * 313] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_cosine_by_step_with_warmup() -> None:
    config = Config(lr=0.2, epochs=10, lr_schedule="cosine", lr_schedule_unit="step", lr_warmup_epochs=1)
    table = lr_table(config, 100)
    assert np.allclose(table[:100], 0.2 * np.arange(1, 101) / 100)
    assert table[100] == pytest.approx(0.2) and table.argmax() in (99, 100)
    assert np.all(np.diff(table[100:]) < 0) and 0 < table[-1] < 1e-5


def test_warmup_shorter_than_an_epoch() -> None:
    table = lr_table(Config(lr=1.0, epochs=2, lr_warmup_epochs=0.5), 10)
    assert np.allclose(table[:6], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_one_group_decays_everything_by_default() -> None:
    groups = param_groups(build_model(10, 0.25, 0), Config(weight_decay=5e-4))
    assert len(groups) == 1 and groups[0]["weight_decay"] == 5e-4


def test_norm_and_bias_can_be_left_out_of_decay() -> None:
    model = build_model(10, 0.25, 0)
    decayed, rest = param_groups(model, Config(weight_decay=5e-4, decay_norm_and_bias=False))
    assert rest["weight_decay"] == 0.0 and decayed["weight_decay"] == 5e-4
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}  # type: ignore[attr-defined]
    assert all("norm" in names[id(p)] or names[id(p)] == "head.bias" for p in rest["params"])  # type: ignore[attr-defined]
    assert len(decayed["params"]) + len(rest["params"]) == len(names)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm_and_bias", [True, False])
def test_depthwise_filters_can_be_left_out_of_decay(norm_and_bias: bool) -> None:
    model = build_model(10, 0.25, 0)
    config = Config(weight_decay=5e-4, decay_depthwise=False, decay_norm_and_bias=norm_and_bias)
    decayed, rest = param_groups(model, config)
    names = {id(p): n for n, p in model.named_parameters()}
    left_out = {names[id(p)] for p in rest["params"]}  # type: ignore[attr-defined]
    depthwise = {f"blocks.{i}.depthwise.weight" for i in range(13)}
    assert depthwise <= left_out and (left_out == depthwise) == norm_and_bias and rest["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(left_out) == len(names)  # type: ignore[arg-type]
    assert len(param_groups(model, Config(decay_depthwise=False))) == 1


def test_average_is_the_mean_over_the_last_epochs() -> None:
    model = nn.Linear(2, 1, bias=False)
    average = Average(model, epochs=5, last=3)
    for epoch, value in enumerate((7.0, 8.0, 1.0, 2.0, 6.0), 1):
        nn.init.constant_(model.weight, value)
        average.update(epoch)
    assert torch.allclose(average.tensors["weight"], torch.full((1, 2), 3.0))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_formula(nesterov: bool) -> None:
    """Coupled L2, dampening 0: g += wd * w; v = mu * v + g; w -= lr * (g + mu * v if nesterov else v)."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    config = Config(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    optimizer = build_optimizer(model, config)
    w = model.weight.detach().clone()
    v = torch.zeros_like(w)
    for _ in range(4):
        grad = torch.randn(3, 5, dtype=torch.float64)
        model.weight.grad, model.bias.grad = grad.clone(), torch.zeros(3, dtype=torch.float64)
        optimizer.step()
        g = grad + 0.01 * w
        v = 0.9 * v + g
        w -= 0.1 * (g + 0.9 * v if nesterov else v)
        torch.testing.assert_close(model.weight.detach(), w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_op_is_torchs_optimizer_in_training(dtype: torch.dtype) -> None:
    """Three steps of the fused model: the same weights, and copies that are the rounded weights."""
    config = Config(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norm_and_bias=False)
    results = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = build_model(16, 0.25, 0).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        fused = FusedModel(model, dtype=dtype)
        optimizer = build_optimizer(model, config, fused.rounded if ours else None)
        for _ in range(3):
            images = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last).to(dtype)
            fused(images).float().square().sum().backward()
            if not ours:  # PyTorch's optimizer wants gradients of the weights' dtype
                for p in fused.rounded:
                    grad, p.grad = p.grad, None
                    p.grad_dtype, p.grad = torch.float32, None if grad is None else grad.float()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not ours:
                fused.round_weights()
                for p in fused.rounded:
                    p.grad_dtype = dtype
        assert all(torch.equal(copy, p.detach().to(dtype)) for p, copy in fused.rounded.items())
        results.append([p.detach() for p in model.parameters()])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_ema_averages_weights_and_statistics_and_swaps_back() -> None:
    model = build_model(10, 0.25, 0)
    ema = Ema(model, 0.9)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(3):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.randn_like(tensor))
        ema.update()
        for name, tensor in model.state_dict().items():
            expected[name].lerp_(tensor, 0.1)
    assert "norm.running_var" in ema.tensors
    live = {k: v.clone() for k, v in model.state_dict().items()}
    ema.swap()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    ema.swap()
    assert all(torch.equal(v, live[k]) for k, v in model.state_dict().items())
