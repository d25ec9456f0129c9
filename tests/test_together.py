"""Several runs in one process: each one's bits are those of its own process, and none disturbs another."""

import gc
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_split, weights, write_tiny

import fastcifar as fc
from fastcifar.config import Config
from fastcifar.engines import Engine
from fastcifar.errors import InterruptedRunError, NonFiniteError, UsageError
from fastcifar.loaders import ResidentLoader
from fastcifar.report.results import read_results
from fastcifar.run.folder import RunFolder
from fastcifar.target import Target
from fastcifar.together import train_together
from fastcifar.trainer import train
from fastcifar.ui.display import Display

pytestmark = [pytest.mark.machine, pytest.mark.usefixtures("no_curves")]

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
TIMES = ("images_per_second", "train_seconds")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("together") / "tiny.npz")


def together(configs: list[Config], folder: Path) -> list[Any]:
    return train_together(configs, [folder / str(i) for i in range(len(configs))], ["fastcifar"], progress=False)


def records(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in RunFolder.open(path).records]


def test_each_runs_bits_are_those_of_its_own_process(data: Path, tmp_path: Path) -> None:
    """Trials of other seeds, engines, lengths and splits, with everything that a step keeps."""
    configs = [
        tiny_config(data, seed=1, epochs=1, mixup_alpha=0.3),
        tiny_config(data, seed=2, epochs=2, engine="fused"),
        tiny_config(data, seed=1, epochs=2, val_size=20, ema_decay=0.5, batch_size=32, lr_schedule="cosine"),
    ]
    for i, path in enumerate(together(configs, tmp_path)):
        own = train(configs[i], tmp_path / f"own-{i}", ["fastcifar"], progress=False)
        assert records(path) == records(own)
        expected = weights(own)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(path).items())
        mine, theirs = (RunFolder.open(p).predictions() for p in (path, own))
        assert mine is not None and theirs is not None
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    shared, alone = (read_results([tmp_path / name]).runs[0] for name in ("0", "own-0"))
    assert shared.concurrent == 3 and alone.concurrent == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_of_one_seed_have_the_same_bits(precision: str, tmp_path: Path) -> None:
    """On a GPU their graphs are replayed at the same time.

    The bug: products with partial sums wrote these to one workspace, and all tensors differed from a run's alone. The
    layers and batches of a GPU are large enough for such products.
    """
    large = {"width_mult": 1.0, "batch_size": 128, "val_size": 0, "epochs": 8} if DEVICE != "cpu" else {}
    data = write_tiny(tmp_path / "tiny.npz", num_train=2048 if large else 124)
    config = tiny_config(data, engine="fused", precision=precision, device=DEVICE, mixup_alpha=0.3, **large)
    alone = weights(train(config, tmp_path / "alone", ["fastcifar"], progress=False))
    for path in together([config] * 3, tmp_path):
        other = [name for name, tensor in weights(path).items() if not torch.equal(tensor, alone[name])]
        assert not other, f"{len(other)} of {len(alone)} tensors, {other[0]} among them"


def test_one_that_fails_leaves_the_others(data: Path, tmp_path: Path) -> None:
    configs = [tiny_config(data, lr=100.0, momentum=0.99), tiny_config(data)]
    failed, path = together(configs, tmp_path)
    assert isinstance(failed, NonFiniteError) and (tmp_path / "0/failure.json").exists()
    assert RunFolder.open(path).summary() is not None


def test_a_signal_saves_them_all(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [tiny_config(data, epochs=2, seed=seed) for seed in range(2)]
    steps = iter(range(10**6))
    step = Engine.train_step

    def counted(self: Engine, *arguments: Any) -> None:
        step(self, *arguments)
        if next(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Engine, "train_step", counted)
    with pytest.raises(InterruptedRunError):
        together(configs, tmp_path)
    monkeypatch.setattr(Engine, "train_step", step)
    assert all(RunFolder.open(tmp_path / str(i)).has_checkpoint() for i in range(2))
    resumed = fc.load(tmp_path / "1").resume(progress=False)
    assert records(resumed.path) == records(train(configs[1], tmp_path / "own", ["fastcifar"], progress=False))


def test_they_share_one_copy_of_the_images() -> None:
    split = tiny_split(40)
    loaders = [ResidentLoader(split, Target(tiny_config(seed=seed))) for seed in range(2)]
    assert loaders[0]._images is loaders[1]._images
    other = ResidentLoader(tiny_split(40), Target(tiny_config()))
    assert other._images is not loaders[0]._images


@pytest.mark.parametrize("setting", [{"device": "auto"}, {"data": "cifar10"}, {"deterministic": True}])
def test_settings_of_the_whole_process_must_be_the_same(setting: dict[str, Any], data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(setting))}: runs in one process"):
        together([tiny_config(data), tiny_config(**{"data": str(data), **setting})], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_short_run_ends_the_determinism_of_no_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    most = 4 * 7

    def count(display: Display, number: int) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        if len(seen) > most + 3:  # both have begun
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "images", count)
    configs = [tiny_config(data, epochs=epochs, deterministic=True) for epochs in (1, 3)]
    together(configs, tmp_path / "whole")
    assert len(seen) == most and all(seen) and not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyboardInterrupt):
        together(configs, tmp_path / "cut")
    gc.collect()  # closes what still waits for its turn
    assert not torch.are_deterministic_algorithms_enabled()


def test_from_python(data: Path, tmp_path: Path) -> None:
    configs = [tiny_config(data, epochs=1, seed=seed) for seed in range(2)]
    runs = fc.train_together(configs, [tmp_path / "a", tmp_path / "b"], progress=False)
    assert [run.config.seed for run in runs] == [0, 1] and all(run.summary for run in runs)


def test_paths_are_recorded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `train` records them. The bug: `init_from` of runs in one process depended on the working folder."""
    monkeypatch.chdir(tmp_path)
    first = train(tiny_config(write_tiny(tmp_path / "tiny.npz"), epochs=1), Path("first"), [])
    config = tiny_config("tiny.npz", epochs=1, init_from="first")
    [run] = fc.train_together([config], ["run"], progress=False)
    assert run.config.init_from == str(tmp_path / first) and run.config.data == str(tmp_path / "tiny.npz")
