"""A training step of timm's networks at 224x224, batch 16, before and after `fastcifar.ops.convert`.

The first row of a network is the network as timm makes it, the second the same in channels_last, the third converted.
`--full` also has the compiled network, before and after.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from typing import Any

import pytest
import torch
from layers import DEVICE
from torch import nn

from fastcifar.loaders.torchvision_import import import_torchvision
from fastcifar.ops import convert
from fastcifar.target import fast_precisions, find_device

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
BATCH = 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full")
    metafunc.parametrize("name", ["mobilenetv1_100", "mobilenetv2_100", "efficientnet_lite0"])
    metafunc.parametrize("precision", fast_precisions(find_device("auto")))
    compiled = ["compiled, channels_last", "compiled, converted"] if full else []
    metafunc.parametrize("variant", ["contiguous", "channels_last", "converted", *compiled])


@pytest.fixture(scope="module")
def originals() -> dict[str, nn.Module]:
    return {}


def test_step(benchmark: Any, originals: dict[str, nn.Module], name: str, precision: str, variant: str) -> None:
    benchmark.group = f"{name}, {precision}, batch {BATCH}, 224x224"
    if name not in originals:
        import_torchvision()
        originals[name] = importlib.import_module("timm").create_model(name).to(DEVICE)
    model, images = copy.deepcopy(originals[name]), torch.randn(BATCH, 3, 224, 224, device=DEVICE)
    labels = torch.randint(0, 1000, (BATCH,), device=DEVICE)
    if variant != "contiguous":
        model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
    if "converted" in variant:
        print(convert(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    forward = torch.compile(model) if "compiled" in variant else model

    def step() -> Any:
        with torch.autocast(DEVICE, DTYPES[precision], enabled=precision != "fp32"):
            loss = nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item() if DEVICE == "cuda" else loss

    benchmark.extra_info["images"] = BATCH
    benchmark.pedantic(step, rounds=30 if DEVICE == "cuda" else 5, warmup_rounds=3 if DEVICE == "cuda" else 1)
