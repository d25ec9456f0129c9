"""The depthwise convolution as a module: alone, and in networks of timm's."""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcifar.loaders.torchvision_import import import_torchvision
from fastcifar.ops import DepthwiseConv3x3, convert

pytestmark = pytest.mark.machine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NETWORKS = {"mobilenetv1_100": (13, 0), "mobilenetv2_100": (17, 0), "efficientnet_lite0": (7, 9)}
"""For each of timm's networks how many convolutions fit, and how many depthwise ones do not (they are 5x5)."""


@pytest.fixture(scope="module")
def timm() -> Any:
    if not (importlib.util.find_spec("timm") and importlib.util.find_spec("torchvision")):
        pytest.skip("timm or torchvision is not installed")
    import_torchvision()  # beside any torch; timm imports it
    return importlib.import_module("timm")


def outcome(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of the input and of all parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape)
    return y, *torch.autograd.grad((y.float() * weights).sum(), [x, *module.parameters()])


def error(got: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    return sum(float((a.detach() - t.detach()).square().sum()) for a, t in zip(got, truth, strict=True)) ** 0.5


def assert_close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a - b).float().norm() <= tolerance * b.float().norm() + 1e-6


def conv(channels: int = 6, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, **{"kernel_size": 3, "padding": 1, "groups": channels, **settings})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_convolution_that_it_replaces(stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = conv(stride=stride, bias=bias).to(DEVICE)
    torch.manual_seed(0)
    ours = DepthwiseConv3x3(6, stride, bias).to(DEVICE)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    theirs.load_state_dict(ours.state_dict())
    for x in (torch.randn(2, 6, 7, 5), torch.randn(2, 6, 8, 8).to(memory_format=torch.channels_last)):
        assert_close(outcome(ours, x.to(DEVICE)), outcome(theirs, x.to(DEVICE)), 1e-5)
    one = torch.randn(6, 7, 5, device=DEVICE)
    torch.testing.assert_close(ours(one), theirs(one))


@pytest.mark.parametrize("stride", [0, 3, (1, 2)])
def test_another_stride_is_refused(stride: Any) -> None:
    with pytest.raises(ValueError, match="expected 1 or 2"):
        DepthwiseConv3x3(4, stride)


def test_under_autocast_it_is_as_exact_as_the_original() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 9, 9, device=DEVICE).to(memory_format=torch.channels_last)
    theirs = conv(16).to(DEVICE)
    ours = copy.deepcopy(theirs)
    assert convert(ours).replaced == ("",)
    truth = outcome(copy.deepcopy(theirs).double(), x.double())
    with torch.autocast(DEVICE, torch.bfloat16):
        got, expected = outcome(ours, x), outcome(theirs, x)
    assert got[0].dtype == torch.bfloat16
    for a, b, t in zip(got, expected, truth, strict=True):
        assert a.dtype == b.dtype and (a - t).norm() <= 1.5 * (b - t).norm()


def test_a_bfloat16_model_is_computed_in_bfloat16() -> None:
    torch.manual_seed(0)
    theirs = conv().to(DEVICE, torch.bfloat16)
    ours = copy.deepcopy(theirs)
    convert(ours)
    x = torch.randn(2, 6, 5, 5, device=DEVICE, dtype=torch.bfloat16)
    assert_close(outcome(ours, x), outcome(theirs, x), 0.02)


@pytest.mark.parametrize("channels_last", [False, True])
def test_it_keeps_the_memory_format(channels_last: bool) -> None:
    """A model in PyTorch's default format may go on with `view`."""
    ours = conv().to(DEVICE)
    convert(ours)
    x = torch.randn(2, 6, 5, 7, device=DEVICE)
    y = ours(x.to(memory_format=torch.channels_last) if channels_last else x)
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert channels_last or y.view(2, -1).shape == (2, 6 * 5 * 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_pytorch_computes_what_has_no_kernels(dtype: torch.dtype) -> None:
    theirs = conv()
    ours = copy.deepcopy(theirs)
    convert(ours)
    x = torch.randn(2, 6, 5, 7)
    assert torch.equal(ours.to(dtype)(x.to(dtype)), theirs.to(dtype)(x.to(dtype)))
    if dtype == torch.float16:
        with torch.autocast("cpu", dtype):
            assert torch.equal(ours.float()(x), theirs.float()(x))


UNFIT = {
    "kernel_size = (5, 5), not (3, 3)": conv(kernel_size=5, padding=2),
    "stride = (2, 1)": conv(stride=(2, 1)),
    "padding = (0, 0), not (1, 1) or same": conv(padding=0),
    "dilation = (2, 2)": conv(dilation=2),
    "padding_mode = reflect": conv(padding_mode="reflect"),
    "6 channels to 12 in 6 groups": nn.Conv2d(6, 12, 3, padding=1, groups=6),
    "6 channels to 6 in 2 groups": nn.Conv2d(6, 6, 3, padding=1, groups=2),
    "its weight is float64": conv(dtype=torch.float64),
    "a Own": type("Own", (nn.Conv2d,), {})(6, 6, 3, padding=1, groups=6),
}


@pytest.mark.parametrize("why", UNFIT)
def test_what_does_not_fit_is_left_and_told(why: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), copy.deepcopy(UNFIT[why]), conv(), conv(padding="same"))
    before = type(model[1])
    found = convert(model)
    assert found.replaced == ("2", "3") and list(found.left) == ["1"] and why in found.left["1"]
    assert type(model[0]) is nn.Conv2d and type(model[1]) is before and type(model[2]) is DepthwiseConv3x3
    assert str(found).startswith("depthwise convolutions replaced: 2; grouped convolutions left: 1\n  1: ")
    assert convert(model).replaced == (), "a second time there is nothing to do"


def test_optimizers_and_hooks_of_before_still_work() -> None:
    model = nn.Sequential(conv(), conv()).to(DEVICE)
    model.append(model[0])  # one module at two places
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[Any] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(module))
    convert(model)
    before = [p.clone() for p in model.parameters()]
    model(torch.randn(2, 6, 4, 4, device=DEVICE)).square().sum().backward()
    optimizer.step()
    assert seen == [model[0]] * 2 and not any(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timms_compute_the_same(timm: Any, name: str) -> None:
    """Outputs and gradients are as close to float64 as the original's.

    The networks have SiLU in place of ReLU6: a number near 0 or 6 that falls on the other side of a ReLU6 moves the
    gradients by per cents, and which numbers do depends on the processor.
    """
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10, drop_rate=0.0, act_layer=nn.SiLU)
    theirs.to(DEVICE, memory_format=torch.channels_last)
    ours = copy.deepcopy(theirs)
    found = convert(ours)
    assert (len(found.replaced), len(found.left)) == NETWORKS[name]
    assert all("kernel_size = (5, 5)" in why for why in found.left.values())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(4, 3, 64, 64, device=DEVICE).to(memory_format=torch.channels_last)
    got, expected, truth = outcome(ours, x), outcome(theirs, x), outcome(copy.deepcopy(theirs).double(), x.double())
    assert error(got[:1], truth[:1]) <= 2 * error(expected[:1], truth[:1])
    assert error(got[1:], truth[1:]) <= 2 * error(expected[1:], truth[1:])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-4)


def test_compiled_under_autocast() -> None:
    """Without a graph break, and as without compilation. aot_eager traces forward and backward, and compiles no C++."""
    torch.manual_seed(0)
    block = nn.Sequential(conv(8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), conv(8, stride=2, bias=False))
    model = block.to(DEVICE, memory_format=torch.channels_last)
    convert(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 8, 9, 9, device=DEVICE).to(memory_format=torch.channels_last)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert_close(outcome(compiled, x), outcome(model, x), 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_timms_compiled_by_inductor(timm: Any, name: str) -> None:
    """With running statistics: those of a batch multiply each rounding, and gradients in bfloat16 say nothing then."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).to(DEVICE, memory_format=torch.channels_last).eval()
    x = torch.randn(4, 3, 64, 64, device=DEVICE).to(memory_format=torch.channels_last)
    truth = outcome(copy.deepcopy(model).double(), x.double())
    convert(model)
    for enabled in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            got, expected = outcome(torch.compile(model, fullgraph=True), x), outcome(model, x)
        assert error(got, truth) <= 1.5 * error(expected, truth)
