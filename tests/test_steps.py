"""Launched and replayed steps: both train the same, and a CUDA graph can hold everything in a replayed step.

The CPU has no graphs. There a "replay" runs the step that would be captured.
"""

from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_session
from torch.utils._python_dispatch import TorchDispatchMode

from fastcifar.config import Config
from fastcifar.engines import Engine
from fastcifar.engines.steps import LaunchedSteps, ReplayedSteps, build_steps
from fastcifar.loaders import ResidentLoader
from fastcifar.optim import lr_table
from fastcifar.target import Target

pytestmark = pytest.mark.machine

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
NUM_IMAGES = 40  # two full batches of 16 and a last one of 8

# Ops that wait for the device, or whose output has a shape that only the device knows.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique2", "_unique2"}


def build(config: Config) -> tuple[Engine, ResidentLoader]:
    session = tiny_session(target_of(config).config, NUM_IMAGES)
    assert isinstance(session.loader, ResidentLoader)
    return session.engine, session.loader


def target_of(config: Config) -> Target:
    return Target(config.model_copy(update={"device": str(DEVICE)}))


def fused(**settings: Any) -> Config:
    defaults = {"engine": "fused", "precision": "bf16", "lr_schedule": "cosine", "epochs": 3, "mixup_alpha": 0.2}
    return tiny_config(**{**defaults, **settings})


def train(config: Config, replayed: bool) -> Engine:
    engine, loader = build(config)
    lrs = lr_table(config, loader.num_batches)
    steps = (
        ReplayedSteps(engine, loader, lrs, target_of(config))
        if replayed
        else LaunchedSteps(engine, loader, lrs, target_of(config))
    )
    steps.warm_up()
    for epoch in range(1, config.epochs + 1):
        steps.begin(epoch)
        assert [steps.take(step) for step in range(loader.num_batches)] == [16, 16, 8]
    return engine


@pytest.mark.parametrize(
    "settings",
    [{}, {"mixup_alpha": 0.0, "ema_decay": 0.9}, {"precision": "fp32", "lr_warmup_epochs": 1.5, "nesterov": True}],
    ids=["mixup", "ema", "fp32"],
)
def test_replayed_steps_train_what_launched_ones_train(settings: dict[str, Any]) -> None:
    """They differ only in the learning rate's rounding: it is float32 in replayed steps, float64 in launched steps."""
    launched, replayed = train(fused(**settings), False).tensors(), train(fused(**settings), True).tensors()
    first = launched["model.stem.weight"]
    assert not torch.equal(first, build(fused(**settings))[0].tensors()["model.stem.weight"]), "nothing was trained"
    for name, tensor in launched.items():
        torch.testing.assert_close(
            replayed[name], tensor, rtol=2e-2, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("engine, precision", [("fused", "fp32"), ("fused", "bf16"), ("eager", "fp32")])
def test_with_a_learning_rate_that_float32_holds_they_are_the_same_bit_for_bit(
    engine: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of the eager engine too, whose launched steps make them from views of the draws.

    In bf16 the rounded copies of the weights, which warming up has changed, are restored too.
    """
    config = fused(engine=engine, lr=0.0625, lr_schedule="constant", precision=precision)
    # cuDNN, which the eager engine uses on a GPU, else takes kernels whose bits differ from run to run.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    launched, replayed = train(config, False).tensors(), train(config, True).tensors()
    assert all(torch.equal(launched[name], replayed[name]) for name in launched)


def test_warm_up_leaves_everything_as_it_was() -> None:
    engine, loader = build(config := fused(ema_decay=0.9))
    before = {name: tensor.clone() for name, tensor in engine.tensors().items()}
    ReplayedSteps(engine, loader, lr_table(config, loader.num_batches), target_of(config)).warm_up()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.tensors().items())
    assert all(p.grad is None for p in engine.model.parameters())


def test_an_epoch_goes_on_amid() -> None:
    config = fused(lr=0.0625)
    whole, (engine, loader) = train(config, True), build(config)
    steps = ReplayedSteps(engine, loader, lr_table(config, loader.num_batches), target_of(config))
    steps.warm_up()
    for epoch in (1, 2, 3):
        for first in range(3):
            steps.begin(epoch, first)
            steps.take(first)
    assert all(torch.equal(whole.tensors()[name], tensor) for name, tensor in engine.tensors().items())


class Watch(TorchDispatchMode):
    """Notes the ops that wait for the device, and copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.shapes: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.waits.append(name)
        result = func(*args, **(kwargs or {}))
        self.shapes.append(
            (str(func), [tuple(t.shape) for t in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(t)])
        )
        return result


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mixup_alpha", [0.0, 0.2])
def test_a_step_reads_nothing_on_the_host_and_its_shapes_stay(precision: str, mixup_alpha: float) -> None:
    engine, loader = build(config := fused(precision=precision, mixup_alpha=mixup_alpha, ema_decay=0.9))
    steps = ReplayedSteps(engine, loader, lr_table(config, loader.num_batches), target_of(config))
    steps.warm_up()
    seen = []
    for epoch in (1, 2):
        steps.begin(epoch)
        for _ in range(2):
            with Watch() as watch:
                steps._step(16)
            assert watch.waits == [] and len(watch.shapes) > 50
            seen.append(watch.shapes)
    assert all(shapes == seen[0] for shapes in seen)


def test_the_watch_sees_a_wait() -> None:
    with Watch() as watch:
        torch.ones(3).sum().item()
    assert watch.waits == ["_local_scalar_dense"]


def test_which_steps_an_engine_takes() -> None:
    engine, loader = build(config := fused())
    lrs = lr_table(config, loader.num_batches)
    notes: list[str] = []
    cpu = Target(config)
    assert isinstance(build_steps(engine, loader, lrs, cpu, notes.append), LaunchedSteps) and not notes

    class FromTheHost:
        num_images, batch_size, num_batches = 40, 16, 3

    cuda = Target(config.model_copy(update={"loader": "torchvision", "device": "cuda:0"}))
    found = build_steps(engine, FromTheHost(), lrs, cuda, notes.append)  # type: ignore[arg-type]
    assert isinstance(found, LaunchedSteps)
    assert notes[0].startswith("loader = torchvision: batches come from the host, so steps are launched op by op")
