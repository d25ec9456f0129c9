"""BN and ReLU as one op, beside PyTorch's two ops."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, Case, cases

from fastcifar.ops import batch_norm_relu

EPS = 1e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = {(c.batch, c.channels, c.dtype): c for c in cases(metafunc.config.getoption("--full"))}
    metafunc.parametrize("case", list(found.values()), ids=str)


def test_forward(race: Any, benchmark: Any, case: Case) -> None:
    benchmark.group = f"batch_norm_relu forward, {case.dtype}"
    x, gamma, beta = case.activation(case.size), case.per_channel(), case.per_channel()
    rivals = {"eager": lambda: F.relu(F.batch_norm(x, None, None, gamma, beta, True, 0.1, EPS), inplace=True)}
    race(lambda: batch_norm_relu(x, gamma, beta, EPS), rivals, case.bytes(case.size, case.size), DEVICE)


def test_backward(race: Any, benchmark: Any, case: Case) -> None:
    benchmark.group = f"batch_norm_relu backward, {case.dtype}"
    inputs = [case.activation(case.size), case.per_channel(), case.per_channel()]
    x, gamma, beta = [tensor.requires_grad_() for tensor in inputs]
    grad = case.activation(case.size)
    _, mean, var = (tensor.detach() for tensor in batch_norm_relu(x, gamma, beta, EPS))
    arguments = (grad, x.detach(), gamma.detach(), beta.detach(), mean, var, EPS)
    peer = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    # On CUDA in a stream of its own: a backward runs on its forward's stream, and the default one can't be captured
    with torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else nullcontext():  # type: ignore[no-untyped-call]
        eager = F.relu(F.batch_norm(peer[0], None, None, peer[1], peer[2], True, 0.1, EPS), inplace=True)
    rivals = {"eager": lambda: torch.autograd.grad(eager, peer, grad, retain_graph=True)}
    num_bytes = case.bytes(*[case.size] * 3)
    race(lambda: torch.ops.fastcifar._batch_norm_relu_backward(*arguments), rivals, num_bytes, DEVICE)
