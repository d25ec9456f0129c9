"""Whole runs: the content of the folder, exact resuming after an interruption, and the messages on failure."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_folders import without_digests
from tiny import tiny_config, weights, write_tiny
from waiting import until_epochs

from fastcifar import session, trainer
from fastcifar.checkpoint import remedy
from fastcifar.config import Config
from fastcifar.data import sources
from fastcifar.data.dataset import Dataset
from fastcifar.engines import Engine
from fastcifar.errors import (
    CheckpointError,
    CompileError,
    DataError,
    DeviceMemoryError,
    InterruptedRunError,
    NonFiniteError,
    UsageError,
)
from fastcifar.evaluation import evaluate_run, predictions
from fastcifar.run.clock import process_seconds
from fastcifar.run.failure import FAILURE
from fastcifar.run.folder import RunFolder
from fastcifar.ui.display import Display

STEPS = 7  # 100 images in batches of 16


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny.npz")


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal when the given step (counted from 1 over the whole run) has been taken."""
    taken = 0
    images = Display.images

    def count(self: Display, n: int) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), number)
        images(self, n)

    monkeypatch.setattr(Display, "images", count)


def records(run: Path) -> list[dict[str, Any]]:
    """The metrics without their times."""
    kept = RunFolder.open(run).records
    return [{k: v for k, v in record.items() if k not in ("train_seconds", "images_per_second")} for record in kept]


def same_weights(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    return all(torch.equal(x[k], y[k]) for k in x)


def test_a_run_leaves_everything_in_its_folder(data: Path, tmp_path: Path) -> None:
    run = trainer.train(tiny_config(data), tmp_path / "run", ["fastcifar", "train"])
    folder = RunFolder.open(run)
    assert [r["epoch"] for r in folder.records] == [1, 2, 3]
    for record in folder.records:
        assert 0 <= record["train_accuracy"] <= 1 and 0 <= record["val_accuracy"] <= 1
        assert record["lr"] == 0.05 and record["images_per_second"] > 0
        assert np.isfinite([record["train_loss"], record["val_loss"]]).all()
    seconds = [r["train_seconds"] for r in folder.records]
    assert seconds == sorted(seconds) and seconds[0] > 0
    summary = folder.summary()
    assert summary is not None
    assert summary["epochs"] == 3 and 0 <= summary["test_accuracy"] <= 1
    assert summary["process_seconds"] > summary["train_seconds"] > 0 and summary["compile_seconds"] > 0
    assert folder.config.engine == "eager" and folder.config.precision == "fp32" and folder.config.device == "cpu"
    names = {p.name for p in run.iterdir()}
    assert {"config.toml", "environment.json", "metrics.jsonl", "metrics.csv", "curves.png", "curves.svg"} <= names
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert header == "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,images_per_second,train_seconds"
    assert len(rows) == 3


def test_auto_is_settled_in_the_run_folder(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, device="auto", precision="auto", engine="auto", epochs=1)
    settled = RunFolder.open(trainer.train(config, tmp_path / "run", [])).config
    assert "auto" not in (settled.device, settled.precision, settled.engine)


def test_a_precision_that_is_slower_here_is_noted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.train(tiny_config(data, precision="fp16", epochs=1), tmp_path / "run", [])
    assert "fp16 is emulated on cpu: expect it to be slower than fp32" in capsys.readouterr().err


@pytest.mark.usefixtures("no_curves")
def test_the_same_seed_gives_the_same_run_and_another_another(data: Path, tmp_path: Path) -> None:
    a, b, c = (
        trainer.train(tiny_config(data, seed=s, epochs=1), tmp_path / n, []) for s, n in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert records(a) == records(b) != records(c)
    assert same_weights(a, b) and not same_weights(a, c)


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("engine", ["eager", "fused"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluate_reproduces_the_recorded_accuracy(data: Path, tmp_path: Path, split: str, engine: str) -> None:
    config = tiny_config(data, ema_decay=0.9, mixup_alpha=0.2, precision="bf16", engine=engine)
    run = trainer.train(config, tmp_path / "run", [])
    result = evaluate_run(run, split)
    summary = RunFolder.open(run).summary()
    assert summary is not None and result["loss"] == summary[f"{split}_loss"], "the run's own ops, to the last bit"
    assert result["accuracy"] == result["recorded_accuracy"] == summary[f"{split}_accuracy"]
    assert result["num_images"] == {"test": 40, "val": 24}[split]


def test_a_model_cut_within_an_epoch_has_no_recorded_accuracy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        stop_at(patch, STEPS + 3)
        trainer.train(tiny_config(data), tmp_path / "run", [])
    result = evaluate_run(tmp_path / "run", "val")
    assert (result["epoch"], result["step"], result["recorded_accuracy"]) == (1, 3, None)


RECIPES: dict[str, dict[str, object]] = {
    "plain": {},
    "everything": dict(
        mixup_alpha=0.2, ema_decay=0.9, nesterov=True, label_smoothing=0.1, weight_decay=5e-4, flip="alternating",
        lr_schedule="cosine", lr_schedule_unit="step", lr_warmup_epochs=0.5, decay_norm_and_bias=False,
    ),
    "bf16": dict(precision="bf16", mixup_alpha=0.2),
    "fused": dict(precision="bf16", engine="fused", mixup_alpha=0.2),
    "fp16": dict(precision="fp16", lr_schedule="cosine"),
}  # fmt: skip


# after the first step, before, at and after the end of an epoch, before the last step of the run
CUTS = (1, STEPS - 1, STEPS, STEPS + 3, 3 * STEPS - 1)


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    ("recipe", "step"),
    [("everything", cut) for cut in CUTS]
    + [("plain", STEPS - 1), ("bf16", STEPS + 3), ("fp16", STEPS + 3)]
    + [("fused", STEPS + 3)],
)
def test_a_cut_run_continues_bit_for_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, step: int
) -> None:
    config = tiny_config(data, **RECIPES[recipe])
    whole = data.parent / f"whole-{recipe}"  # one for all cuts of a recipe
    if not whole.exists():
        trainer.train(config, whole, [])
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(InterruptedRunError) as caught:
            trainer.train(config, tmp_path / "cut", [])
    assert caught.value.exit_code == 143 and f"--resume {tmp_path / 'cut'}" in str(caught.value)
    resumed = trainer.resume(tmp_path / "cut", {}, [])
    assert same_weights(whole, resumed)
    assert records(whole) == records(resumed)
    final = [RunFolder.open(r).summary() for r in (whole, resumed)]
    assert final[0] is not None and final[1] is not None and final[0]["test_loss"] == final[1]["test_loss"]


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize(
    "settings",
    [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0, "cutout": 8, "low_res_epochs": 1, "average_epochs": 2}],
    ids=["mixup", "cutmix"],
)
def test_cut_three_times(
    settings: dict[str, float], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data, **settings)
    whole = trainer.train(config, tmp_path / "whole", [])
    for attempt, step in enumerate((3, 8, 6)):
        with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
            stop_at(patch, step, signal.SIGINT)
            if attempt:
                trainer.resume(tmp_path / "cut", {}, [])
            else:
                trainer.train(config, tmp_path / "cut", [])
    assert same_weights(whole, trainer.resume(tmp_path / "cut", {}, []))
    assert records(whole) == records(tmp_path / "cut")


def fastcifar(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcifar", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def options(config: Config) -> list[str]:
    changed = config.model_dump(exclude_defaults=True, exclude={"preset"})
    return [word for key, value in changed.items() for word in (f"--{key}", str(value))]


def test_a_killed_process_continues_from_its_last_checkpoint(data: Path, tmp_path: Path) -> None:
    """SIGKILL, which no handler can catch, comes at any step; then the README's command resumes the run."""
    config = tiny_config(data, epochs=7)
    one_thread = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = trainer.train(config, tmp_path / "whole", [])
    finally:
        torch.set_num_threads(one_thread)
    process = fastcifar("train", *options(config), "--out", tmp_path / "cut")
    until_epochs(process, tmp_path / "cut", 2)
    process.kill()
    process.communicate()
    assert len(records(tmp_path / "cut")) < 7
    resumed = fastcifar("train", "--resume", tmp_path / "cut")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert same_weights(whole, tmp_path / "cut") and records(whole) == records(tmp_path / "cut")


def test_a_checkpoint_that_could_not_be_removed_goes_at_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: after an error of the disk in the last save, the folder before it stayed for ever."""
    tried, rmtree = [], shutil.rmtree

    def fails_once(path: Path, **how: bool) -> None:
        tried.append(path.name)
        if len(tried) != 2:
            rmtree(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr("fastcifar.run.checkpoint.shutil.rmtree", fails_once)
        run = trainer.train(tiny_config(data), tmp_path / "run", [])
    assert tried == ["checkpoint-1", "checkpoint-2", "checkpoint-2"]
    assert [folder.name for folder in run.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_finished_run_is_not_resumed(data: Path, tmp_path: Path) -> None:
    run = trainer.train(tiny_config(data, epochs=1), tmp_path / "run", [])
    with pytest.raises(UsageError, match="finished"):
        trainer.resume(run, {}, [])
    assert not (run / FAILURE).exists(), "it is not called failed"


@pytest.mark.parametrize("progress", [True, False])
def test_a_download_is_shown_as_the_run_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: bool
) -> None:
    shown = []
    load = sources.load

    def loaded(*data: str, progress: bool = True, **more: Any) -> Dataset:
        shown.append(progress)
        return load(*data, progress=progress, **more)

    monkeypatch.setattr(sources, "load", loaded)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        stop_at(patch, 1)
        trainer.train(tiny_config(data), tmp_path / "run", [], progress=progress)
    trainer.resume(tmp_path / "run", {}, [], progress=progress)
    assert shown == [progress] * 2


def test_a_run_killed_before_its_test_is_finished_by_resume(data: Path, tmp_path: Path) -> None:
    run = trainer.train(tiny_config(data, epochs=2), tmp_path / "run", [])
    before, records_before = RunFolder.open(run).summary(), records(run)
    (run / "summary.json").unlink()
    trainer.resume(run, {}, [])
    after = RunFolder.open(run).summary()
    assert before is not None and after is not None
    assert before["test_accuracy"] == after["test_accuracy"] and records(run) == records_before


def test_other_images_are_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_tiny(tmp_path / "other.npz", num_train=120)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        stop_at(patch, 8)
        trainer.train(tiny_config(data), tmp_path / "run", [])
    with pytest.raises(CheckpointError, match="other images"):
        trainer.resume(tmp_path / "run", {"data": str(other)}, [])
    with pytest.raises(CheckpointError, match="other images"):
        evaluate_run(tmp_path / "run", data=str(other))


def test_other_images_are_refused_before_the_first_checkpoint_too(data: Path, tmp_path: Path) -> None:
    run = trainer.train(tiny_config(data, epochs=1), tmp_path / "run", [])
    (run / "summary.json").unlink()
    (run / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="other images"):
        trainer.resume(run, {"data": str(write_tiny(tmp_path / "other.npz", num_train=120))}, [])


def test_a_checkpoint_of_another_width_is_refused(data: Path, tmp_path: Path) -> None:
    run = trainer.train(tiny_config(data, epochs=1), tmp_path / "run", [])
    without_digests(run)
    settings = (run / "config.toml").read_text()
    (run / "config.toml").write_text(settings.replace("width_mult = 0.125", "width_mult = 0.5"))
    with pytest.raises(CheckpointError, match="another model"):
        evaluate_run(run)


def test_the_whole_process_includes_the_curves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    monkeypatch.setattr(RunFolder, "draw_curves", lambda self: drawn.append(process_seconds()))
    summary = RunFolder.open(trainer.train(tiny_config(data, epochs=1), tmp_path / "run", [])).summary()
    assert summary is not None and drawn and summary["process_seconds"] >= drawn[0]


def test_a_validation_split_that_is_too_large_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="val_size = 124"):
        trainer.train(tiny_config(data, val_size=124), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def test_a_batch_that_is_never_whole_is_not_compiled(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only whole batches are compiled"):
        trainer.train(tiny_config(data, batch_size=101, engine="compiled"), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused_before_the_data_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(UsageError, match="--out"):
        trainer.train(tiny_config(tmp_path / "no-such-data.npz"), tmp_path, [])


@pytest.mark.parametrize("is_same_process", [True, False])
def test_the_clocks_of_a_cut_run_add_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_same_process: bool
) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        stop_at(patch, 8)
        trainer.train(tiny_config(data), tmp_path / "run", [])
    saved = RunFolder.open(tmp_path / "run").load_checkpoint()[1]["clocks"]
    if not is_same_process:
        monkeypatch.setattr("fastcifar.run.clock._own_parts", {})
    summary = RunFolder.open(trainer.resume(tmp_path / "run", {}, [])).summary()
    assert summary is not None
    assert (summary["process_seconds"] < process_seconds()) == is_same_process, "no second counts twice"
    for clock, seconds in saved.items():
        assert summary[clock] > seconds > 0, clock
    assert summary["process_seconds"] > saved["process_seconds"] + summary["train_seconds"] - saved["train_seconds"]


def test_a_diverged_run_stops_and_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="lower --lr") as caught:
        trainer.train(tiny_config(data, lr=100.0, weight_decay=1.0, momentum=0.99, epochs=30), tmp_path / "run", [])
    assert caught.value.exit_code == 5
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes a weight NaN right after the given step, counted from 1 over the whole run."""
    taken = 0
    images = Display.images

    def count(self: Display, n: int) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            with torch.no_grad():
                ENGINES[-1].model.head.weight[0, 0] = float("nan")
        images(self, n)

    build = session.build_engine
    monkeypatch.setattr(session, "build_engine", lambda *a, **named: ENGINES.append(build(*a, **named)) or ENGINES[-1])
    monkeypatch.setattr(Display, "images", count)


ENGINES: list[Any] = []


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("how", ["amid an epoch, then SIGTERM", "after an epoch's last step", "in the last epoch"])
def test_nothing_that_is_not_finite_is_saved_over_a_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The bug: after a NaN in the middle of an epoch, SIGTERM saved it over the good checkpoint."""
    step = {"amid an epoch, then SIGTERM": STEPS + 2, "after an epoch's last step": 2 * STEPS}.get(how, 3 * STEPS)
    config = tiny_config(data, eval_every=1 if how == "in the last epoch" else 3)
    with monkeypatch.context() as patch, pytest.raises(NonFiniteError) as caught:
        poison(patch, step)
        if "SIGTERM" in how:
            stop_at(patch, step + 1)
        trainer.train(config, tmp_path / "run", [])
    assert caught.value.exit_code == 5
    kept = RunFolder.open(tmp_path / "run")
    tensors, state = kept.load_checkpoint()
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert (state["epoch"], state["step"]) == ((3, 0) if how == "in the last epoch" else (2, 0))
    assert kept.summary() is None
    resumed = trainer.resume(tmp_path / "run", {}, [])
    assert same_weights(resumed, trainer.train(config, tmp_path / "whole", [])), "what was kept goes on as if nothing"


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_what_is_not_finite_is_noticed_within_the_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """No checkpoint is due, and neither the losses nor the validation see it: the epoch's end does."""
    config = tiny_config(data, engine=engine, eval_every=3, checkpoint_seconds=1e6)
    poison(monkeypatch, 2 * STEPS)
    with pytest.raises(NonFiniteError, match="is not finite after epoch 2: it is not saved, and nothing was saved"):
        trainer.train(config, tmp_path / "run", [])
    assert len(records(tmp_path / "run")) == 2


def test_advice_for_what_is_not_finite_names_another_precision_only_for_fp16() -> None:
    fp16, fp32, bf16 = (remedy(tiny_config(precision=precision)) for precision in ("fp16", "fp32", "bf16"))
    assert fp16.endswith(", or use --precision bf16 in place of fp16")
    assert fp32 == bf16 == "lower --lr, or warm it up (--lr-warmup-epochs)"


@pytest.mark.parametrize("settings", [{"lr": 100.0}, {"std": (1e-30, 1e-30, 1e-30)}], ids=["lr", "std"])
def test_a_loss_that_only_validation_sees_is_no_success(data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """The bug: exit code 0, with a validation and test loss of NaN."""
    with pytest.raises(NonFiniteError) as caught:
        trainer.train(tiny_config(data, epochs=1, batch_size=100, **settings), tmp_path / "run", [])
    assert caught.value.exit_code == 5 and "is not finite after epoch 1" in str(caught.value)
    assert "lower --lr" in str(caught.value) and "fp16" not in str(caught.value)
    assert RunFolder.open(tmp_path / "run").summary() is None


def test_all_images_can_be_trained_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer.train(tiny_config(data, val_size=0, epochs=2), tmp_path / "run", [])
    assert "nothing is validated" in capsys.readouterr().err
    assert [(r["val_loss"], r["val_accuracy"]) for r in records(run)] == [(None, None)] * 2
    summary = RunFolder.open(run).summary()
    assert summary is not None and summary["val_accuracy"] is None and 0 <= summary["test_accuracy"] <= 1
    header, first, _ = (run / "metrics.csv").read_text().splitlines()
    assert dict(zip(header.split(","), first.split(","), strict=True))["val_accuracy"] == ""
    with pytest.raises(UsageError, match="val_size = 0.*--split test"):
        evaluate_run(run, "val")
    assert evaluate_run(run)["recorded_accuracy"] == summary["test_accuracy"]


@pytest.mark.parametrize("where", ["warm_up", "train_step"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2202009600 bytes."),
    ],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_names_the_settings_to_lower(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"fastcifar.engines.eager.Engine.{where}", full)
    with pytest.raises(DeviceMemoryError, match="batch_size = 16"):
        trainer.train(tiny_config(data), tmp_path / "run", [])


def test_an_augmentation_that_does_not_compile_is_explained_for_the_eager_engine_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA torch.compile makes the batches of the eager engine, and needs a C compiler."""
    from torch._inductor.exc import TritonMissing

    def fail(*_: object) -> None:
        raise TritonMissing(None)

    monkeypatch.setattr("fastcifar.loaders.resident.ResidentLoader.batch", fail)
    with pytest.raises(CompileError, match="torch.compile failed at the first step") as caught:
        trainer.train(tiny_config(data), tmp_path / "run", [])
    assert "--engine eager" not in str(caught.value)


def test_validation_every_few_epochs_and_always_at_the_end(data: Path, tmp_path: Path) -> None:
    run = trainer.train(tiny_config(data, epochs=5, eval_every=2), tmp_path / "run", [])
    assert [r["val_accuracy"] is not None for r in records(run)] == [False, True, False, True, True]


def test_test_images_are_touched_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    evaluate = Engine.evaluate

    def count(self: Any, batches: Any, see: Any = None) -> Any:
        seen = list(batches)
        sizes.append(sum(len(b.labels) for b in seen))
        return evaluate(self, seen, see)

    monkeypatch.setattr(Engine, "evaluate", count)
    trainer.train(tiny_config(data), tmp_path / "run", [])
    assert sizes == [24, 24, 24, 40]


@pytest.mark.slow
def test_without_a_compiler_the_compiled_engine_explains_itself(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, engine="compiled", epochs=1)
    process = fastcifar(
        "train",
        *options(config),
        "--out",
        tmp_path / "run",
        CXX="/no/such/compiler",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
    )
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "Traceback" not in err
    assert "torch.compile failed at the first step" in err and "apt install g++" in err and "--engine eager" in err


def test_predictions_belong_to_the_test_accuracy_and_are_made_again_when_missing(data: Path, tmp_path: Path) -> None:
    run = trainer.train(tiny_config(data, epochs=1), tmp_path / "run", ["test"])
    found = predictions(run)
    names = found.pop("class_names")
    assert {name: array.dtype.name for name, array in found.items()} == {
        "labels": "int16", "predicted": "int16", "confidence": "float32", "label_probability": "float32",
        "places": "int64",
    }  # fmt: skip
    assert names.tolist() == ["class 0", "class 1", "class 2", "class 3"]
    with np.load(data) as source:  # whose rows are in another order than the predictions
        assert np.array_equal(source["test_labels"][found["places"]], found["labels"])
    right = found["predicted"] == found["labels"]
    summary = RunFolder.open(run).summary()
    assert summary is not None and right.mean() == pytest.approx(summary["test_accuracy"], abs=1e-9)
    assert np.array_equal(found["confidence"][right], found["label_probability"][right])
    assert summary["test_loss"] == pytest.approx(-np.log(found["label_probability"]).mean(), rel=1e-5)
    (run / "predictions.npz").unlink()
    again = predictions(run)
    assert all(np.array_equal(again[name], found[name]) for name in found)
    (run / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"predictions\.npz is damaged"):
        predictions(run)


def test_images_that_were_moved_are_asked_for(tmp_path: Path) -> None:
    """The bug: no such file, did you mean another one, and no word of --data."""
    path = write_tiny(tmp_path / "tiny.npz")
    run = trainer.train(tiny_config(path, epochs=1), tmp_path / "run", [])
    path.rename(tmp_path / "moved.npz")
    with pytest.raises(DataError, match="lie elsewhere now, name them with --data"):
        evaluate_run(run)
    assert evaluate_run(run, data=str(tmp_path / "moved.npz"))["recorded_accuracy"] is not None
