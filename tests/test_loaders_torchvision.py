"""The worker processes of the torchvision loader: their death, their end, and a torchvision that is missing."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_split, weights, write_tiny
from waiting import until_epochs

from fastcifar import trainer
from fastcifar.config import Config
from fastcifar.errors import LoaderError, UsageError
from fastcifar.loaders.torchvision import TorchvisionLoader
from fastcifar.loaders.torchvision_import import import_torchvision
from fastcifar.signals import STOP
from fastcifar.target import Target

CPU = torch.device("cpu")


def loader_of(config: Config, num_images: int = 1000) -> TorchvisionLoader:
    return TorchvisionLoader(tiny_split(num_images), Target(config))


def test_a_worker_that_dies_is_an_error_not_a_wait() -> None:
    loader = loader_of(tiny_config(loader_workers=2))
    loader.begin(1)
    loader.batch(0)
    processes = list(loader._workers)
    assert len(processes) == 2
    processes[0].kill()
    start = time.monotonic()
    with pytest.raises(LoaderError, match="worker process is gone.*--resume"):
        for step in range(1, loader.num_batches):
            loader.batch(step)
    assert time.monotonic() - start < 30, "torch looks every 5 s"
    loader.close()
    assert not any(process.is_alive() for process in processes)


def test_close_ends_the_workers_also_amid_an_epoch_and_twice() -> None:
    loader = loader_of(tiny_config(loader_workers=2))
    loader.begin(1)
    loader.batch(0)
    processes = list(loader._workers)
    loader.close()
    loader.close()
    assert processes and not any(process.is_alive() for process in processes)
    assert not set(processes) & set(multiprocessing.active_children())


def test_workers_outlive_the_signals_of_a_terminal_and_of_a_batch_system() -> None:
    loader = loader_of(tiny_config(loader_workers=1))
    loader.begin(1)
    loader.batch(0)
    (process,) = loader._workers
    for number in STOP:
        assert process.pid is not None
        os.kill(process.pid, number)
    for step in range(1, loader.num_batches):
        loader.batch(step)
    assert process.is_alive()
    loader.close()


def test_no_more_workers_than_batches_and_one_for_each_core_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.run.environment.usable_cores", lambda: 3.5)
    for settings, num_images, expected in (({}, 100, 3), ({"loader_workers": 5}, 100, 5), ({}, 20, 2)):
        loader = loader_of(tiny_config(**settings), num_images)
        assert loader._loader is not None and loader._loader.num_workers == expected
        loader.close()


def test_an_exception_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fail(self: TorchvisionLoader, step: int) -> None:
        seen.extend(self._workers)
        raise KeyError("of the test")

    monkeypatch.setattr(TorchvisionLoader, "_fetch", fail)
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), loader="torchvision", loader_workers=2)
    with pytest.raises(KeyError):
        trainer.train(config, tmp_path / "run", [])
    assert seen and not any(process.is_alive() for process in seen)


def test_missing_torchvision_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UsageError, match=r"pip install 'fastcifar\[torchvision\]'"):
        import_torchvision()
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), loader="torchvision")
    with pytest.raises(UsageError, match="--loader resident"):
        trainer.train(config, tmp_path / "run", [])


def test_a_torchvision_for_another_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN2at')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=f"torch {torch.__version__}.*undefined symbol".replace("+", r"\+")):
        import_torchvision()


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fastcifar", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def is_gone(group: int) -> bool:
    """Whether no process of the group is left. After a kill, helper processes take up to 5 s to end."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_signal_to_all_of_a_runs_processes_leaves_a_state_and_no_process(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "tiny.npz", 424)
    config = tiny_config(data, batch_size=50, epochs=12, loader="torchvision", loader_workers=2)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in config.model_dump(exclude_defaults=True).items()]
    options = [option for option in options if not option.startswith("--preset")]
    whole = trainer.train(config, tmp_path / "whole", [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        cut = tmp_path / str(number)
        process = start("train", *options, "--out", cut)
        until_epochs(process, cut, 2)
        if number == signal.SIGKILL:
            process.kill()  # only the process itself: its workers must notice its death
        else:
            os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
        assert is_gone(process.pid), "orphans"
        resumed = start("train", "--resume", cut)
        output, _ = resumed.communicate(timeout=240)
        assert resumed.returncode == 0, output
        a, b = weights(whole), weights(cut)
        assert all(torch.equal(a[name], b[name]) for name in a)
