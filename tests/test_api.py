"""The Python interface: what `import fastcifar as fc` offers, and that the code of docs/python.md runs."""

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config, write_tiny

import fastcifar as fc
from fastcifar.config import Config
from fastcifar.presets import load_preset

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fc.Run:
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTCIFAR_DATA", str(folder / "cache"))
        config = tiny_config(write_tiny(folder / "tiny.npz"), ema_decay=0.5)
        return fc.train(config, folder / "run", progress=False)


def test_the_import_is_light_and_says_what_there_is() -> None:
    script = (
        "import sys, fastcifar as fc; dir(fc); fc.errors; print({'torch', 'numpy', 'pydantic'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True, cwd=ROOT) == "set()\n"
    assert set(fc.__all__) <= set(dir(fc)) and all(getattr(fc, name) for name in fc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'; it has .*train"):
        fc.trian  # noqa: B018


def test_a_preset_with_settings_of_ones_own(tmp_path: Path) -> None:
    config = fc.preset("final", lr=0.1, seed=3)
    assert config == load_preset("final").model_copy(update={"lr": 0.1, "seed": 3})
    (tmp_path / "my.toml").write_text('base = "final"\n[settings]\nlr = 0.2\n')
    assert fc.preset(str(tmp_path / "my.toml"), seed=1).lr == 0.2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("finall", {}, "did you mean final"),
        ("final", {"learning_rate": 0.1}, "did you mean lr"),
        ("final", {"lr": "fast"}, "expected a number above 0"),
        ("final", {"epochs": 0}, "from 1 to 100000"),
    ],
)
def test_wrong_settings_are_the_command_lines_errors(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(fc.errors.UsageError, match=message):
        fc.preset(name, **settings)


def test_a_run_tells_what_it_came_to(run: fc.Run) -> None:
    assert isinstance(run.config, Config) and run.config.epochs == 3
    assert 0 <= run.summary["test_accuracy"] <= 1 and [r["epoch"] for r in run.records] == [1, 2, 3]
    assert f"{run.summary['test_accuracy']:.2%}" in repr(run)
    again = fc.load(str(run.path))
    assert (again.path, again.config, again.summary) == (run.path, run.config, run.summary)


def test_the_record_of_a_run_has_the_command_that_does_the_same(run: fc.Run) -> None:
    from fastcifar.run.folder import RunFolder

    command = RunFolder.open(run.path).environment["command"]
    assert command[:2] == ["fastcifar", "train"] and command[command.index("--ema-decay") + 1] == "0.5"
    assert "--preset" not in command, "tiny is no preset"


def test_the_model_says_what_was_recorded(run: fc.Run) -> None:
    """The model has the moving average, which was evaluated, and not the weights that were trained."""
    test = fc.datasets.load(run.config.data).test
    model = run.model()
    assert not model.training
    with torch.no_grad():
        logits = model(run.normalize(test.images))
    assert (logits.argmax(1).numpy() == test.labels).mean() == pytest.approx(run.summary["test_accuracy"])
    predictions = run.predictions()
    assert np.array_equal(predictions["predicted"], logits.argmax(1).numpy())


def test_evaluate_measures_again(run: fc.Run) -> None:
    found = fc.evaluate(run, "val")
    assert found.accuracy == found.recorded_accuracy == run.records[-1]["val_accuracy"]
    assert fc.evaluate(run.path).accuracy == run.summary["test_accuracy"]
    with pytest.raises(fc.errors.UsageError, match="expected 'test' or 'val'"):
        fc.evaluate(run, "train")


def test_a_thread_trains_without_touching_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "cache"))
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), epochs=1)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fc.train(config, tmp_path / "run", progress=False)))
    thread.start()
    thread.join()
    assert found and found[0].summary["epochs"] == 1


def test_progress_false_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "cache"))
    fc.train(tiny_config(write_tiny(tmp_path / "tiny.npz"), epochs=1), tmp_path / "run", progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_finished_run_is_not_resumed(run: fc.Run) -> None:
    with pytest.raises(fc.errors.UsageError, match="finished"):
        run.resume()
    with pytest.raises(fc.errors.UsageError, match="a resumed run keeps its settings"):
        run.resume(lr=0.1)


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") >= 6
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean lr?" in done.stdout
    assert (tmp_path / "runs/study-quick/report/index.html").is_file()


def test_paths_are_those_of_the_command_line(run: fc.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bugs: a folder named ~, and a run that is not found after the working folder changed."""
    monkeypatch.setenv("HOME", str(run.path.parent))
    monkeypatch.chdir(run.path.parent)
    for name in ("~/run", "run"):
        found = fc.load(name)
        monkeypatch.chdir(tmp_path)
        assert found.path == run.path and not found.model().training
        monkeypatch.chdir(run.path.parent)
    with pytest.raises(fc.errors.UsageError, match="no such folder"):
        fc.load("~nosuchuser/run")
    with pytest.raises(fc.errors.UsageError, match="no such folder"):
        fc.train(fc.preset("quick"), "~nosuchuser/run")


def test_numbers_of_numpys_and_paths_are_settings(tmp_path: Path) -> None:
    config = fc.preset(
        "quick", epochs=np.int64(3), lr=np.float32(0.5), nesterov=np.bool_(True), data=tmp_path / "a.npz"
    )
    assert (config.epochs, config.lr, config.nesterov) == (3, 0.5, True) and config.data == str(tmp_path / "a.npz")
    halves = np.array([0.5, 0.25, 0.5])
    assert fc.preset("quick", mean=halves).mean == (0.5, 0.25, 0.5) and fc.api._as_text(halves) == "0.5,0.25,0.5"


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 3, 32, 32), np.uint8), np.zeros((32, 32, 3), np.uint8)],
    ids=["floats", "channels first", "one image"],
)
def test_images_of_another_kind_are_refused(run: fc.Run, images: Any) -> None:
    """The bug: floats from 0 to 1 were normalised as if they were bytes."""
    with pytest.raises(fc.errors.UsageError, match=r"expected uint8 \[N, 32, 32, 3\]"):
        run.normalize(images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": 0},
        {"seeds": []},
        {"seeds": [-1]},
        {"seeds": [2**40]},
        {"jobs": 0},
        {"jobs": "2"},
        {"num_trials": -1},
        {"epochs_scale": -1},
        {"epochs_scale": 0},
        {"epochs_scale": float("nan")},
    ],
)
def test_a_study_checks_its_numbers(wrong: dict[str, Any], tmp_path: Path) -> None:
    """The bug: `seeds=[]` trained the three default seeds."""
    with pytest.raises(fc.errors.UsageError, match="expected a number"):
        fc.study("lr-0.05", quick=True, out=tmp_path / "study", **wrong)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("device", ["gpu", None, "cuda:x"])
def test_a_device_of_no_such_name_is_refused(run: fc.Run, device: Any) -> None:
    with pytest.raises(fc.errors.UsageError, match="device"):
        fc.evaluate(run, device=device)


def test_things_of_another_kind_are_refused_as_such(tmp_path: Path) -> None:
    calls: list[Any] = [lambda: fc.load(None), lambda: fc.preset(None), lambda: fc.train({"lr": 0.1})]  # type: ignore
    calls.append(lambda: fc.study(Path("mine.toml"), out=tmp_path / "study"))  # type: ignore[arg-type]
    for call in calls:
        with pytest.raises(fc.errors.UsageError, match="expected"):
            call()
