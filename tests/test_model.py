"""The network is the protocol's, layer by layer, and stays in channels_last memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar import cpu
from fastcifar.model import build_model, count_macs, count_parameters


def test_size_of_the_report() -> None:
    assert count_parameters(build_model(100, 1.0, seed=0)) == 3_309_476
    assert round(count_macs() / 1e6, 1) == 46.4


@pytest.mark.parametrize(("width", "channels"), [(0.5, 16), (1.0, 32), (0.1, 8), (1.5, 48)])
def test_width_and_classes(width: float, channels: int) -> None:
    model = build_model(7, width, seed=0)
    assert model.stem.out_channels == channels
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_feature_maps() -> None:
    shapes: list[tuple[int, ...]] = []
    model = build_model(100, 1.0, seed=0).eval()
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: shapes.append((out.shape[1], out.shape[2])))
    model(torch.zeros(1, 3, 32, 32))
    assert shapes == [
        (64, 32), (128, 16), (128, 16), (256, 8), (256, 8), *[(512, 4)] * 6, (1024, 2), (1024, 2),
    ]  # fmt: skip


def test_it_computes_what_the_protocol_says() -> None:
    """Compared with a second implementation, written from the protocol's table with functional calls."""
    torch.manual_seed(0)
    model = build_model(100, 0.5, seed=3).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    weights = iter(model.parameters())

    def bn_relu(x: Tensor) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        gamma, beta = next(weights).view(1, -1, 1, 1), next(weights).view(1, -1, 1, 1)
        return ((x - mean) / (var + 1e-5).sqrt() * gamma + beta).clamp(min=0)

    x = bn_relu(F.conv2d(images, next(weights), padding=1))
    planes = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    for out, stride in zip(planes, strides, strict=True):
        x = bn_relu(F.conv2d(x, next(weights), stride=stride, padding=1, groups=x.shape[1]))
        x = bn_relu(F.conv2d(x, next(weights)))
        assert x.shape[1] == out // 2
    expected = x.mean((2, 3)) @ next(weights).T + next(weights)
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (build_model(10, 0.25, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["stem.weight"], c["stem.weight"])


def test_initialisation_is_pytorchs_default() -> None:
    model = build_model(100, 0.25, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(model.stem.weight, nn.Conv2d(3, 8, 3, padding=1, bias=False).weight)


@pytest.mark.parametrize("products", [None, True, False])
def test_activations_and_gradients_stay_channels_last(products: bool | None) -> None:
    model = build_model(10, 0.25, seed=0).to(memory_format=torch.channels_last)
    if products is not None:
        cpu.tune(model, products=products)
        assert any(isinstance(module, cpu.MatmulPointwise) for module in model.modules()) == products
    seen = 0

    def check(module: nn.Module, args: object, out: Tensor) -> None:
        def check_grad(grad: Tensor) -> None:
            nonlocal seen
            seen += 1
            assert grad.is_contiguous(memory_format=torch.channels_last), f"gradient of {type(module).__name__}"

        assert out.is_contiguous(memory_format=torch.channels_last), f"output of {type(module).__name__}"
        out.register_hook(check_grad)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | cpu.MatmulPointwise | cpu.Fp32Depthwise):
            module.register_forward_hook(check)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model(images).square().mean().backward()
    assert seen == 54


def test_tuning_for_the_cpu_keeps_function_and_names() -> None:
    stock, tuned, exact = (build_model(10, 0.25, seed=0) for _ in range(3))
    cpu.tune(tuned)
    assert stock.state_dict().keys() == tuned.state_dict().keys()
    assert [n for n, _ in stock.named_parameters()] == [n for n, _ in tuned.named_parameters()]
    images = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    expected = exact.double()(images.double()).detach()
    torch.testing.assert_close(tuned(images).detach().double(), expected, rtol=1e-4, atol=1e-4)

    # In bf16 the rounding of 27 layers grows to a tenth of the logits. The error is no larger than the stock network's.
    with torch.autocast("cpu", torch.bfloat16):
        error = {m: float((m(images).detach().double() - expected).norm() / expected.norm()) for m in (stock, tuned)}
    assert error[tuned] < 1.5 * error[stock] and error[tuned] < 0.3


def test_dirac_makes_the_square_products_the_identity_and_leaves_the_rest() -> None:
    default, dirac = (build_model(10, 0.25, 3, init=init) for init in ("default", "dirac"))  # type: ignore[arg-type]
    changed = set()
    for (name, a), (_, b) in zip(default.named_parameters(), dirac.named_parameters(), strict=True):
        if not torch.equal(a, b):
            changed.add(name)
            assert torch.equal(b[:, :, 0, 0], torch.eye(len(b))), name
    assert changed == {f"blocks.{i}.pointwise.weight" for i in (2, 4, 6, 7, 8, 9, 10, 12)}
