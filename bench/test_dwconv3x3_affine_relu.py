"""The block in evaluation mode as one op, beside eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import DEVICE, Case, cases

from fastcifar.ops import dwconv3x3_affine_relu


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("case", cases(metafunc.config.getoption("--full")), ids=str)


@torch.no_grad()
def test_forward(race: Any, benchmark: Any, case: Case) -> None:
    benchmark.group = f"dwconv3x3_affine_relu, {case.dtype}"
    u, w = case.activation(case.size), case.weight()
    scale0, shift0, scale1, shift1 = (case.per_channel() for _ in range(4))
    narrow, one, zero = w.to(case.dtype), torch.ones_like(scale0), torch.zeros_like(scale0)

    def eager() -> Any:
        h = F.relu(F.batch_norm(u, zero, one, scale0, shift0, False), inplace=True)
        y = F.conv2d(h, narrow, stride=case.stride, padding=1, groups=case.channels)
        return F.relu(F.batch_norm(y, zero, one, scale1, shift1, False), inplace=True)

    ours = (u, scale0, shift0, w, scale1, shift1, case.stride)
    race(lambda: dwconv3x3_affine_relu(*ours), {"eager": eager}, case.bytes(case.size, case.out_size), DEVICE)
