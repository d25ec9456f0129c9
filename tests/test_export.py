"""`fastcifar export`: each format holds the run's function, and what differs from it is never written."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_split, write_tiny

from fastcifar.cli import main as cli
from fastcifar.engines import Means
from fastcifar.errors import UsageError
from fastcifar.exporting.formats import FORMATS
from fastcifar.run.folder import RunFolder
from fastcifar.session import Session
from fastcifar.trainer import train

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    config = tiny_config(write_tiny(folder / "tiny.npz"), epochs=1, ema_decay=0.5)
    return train(config, folder / "run", [], progress=False)


def recorded(run: Path) -> list[int]:
    """The class of each test image that the run recorded, in the order of `tiny_split`."""
    found = RunFolder.open(run).predictions()
    assert found is not None
    classes: list[int] = found["predicted"][np.argsort(found["places"])].tolist()
    return classes


@pytest.mark.parametrize("name", FORMATS)
def test_the_card_says_how_the_file_is_used(
    run: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The code of the model card, run as it stands, gives the predictions that the run recorded."""
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    assert cli.main(["export", str(run), "--format", name, "--out", str(tmp_path / "out"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (
        done["num_images"] == 24
        and done["difference"] < 1e-4
        and done["file"] == str(tmp_path / "out" / FORMATS[name].file)
    )
    monkeypatch.chdir(tmp_path / "out")
    text = Path("README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    images = tiny_split(40, seed=1).images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    names = {"images": images, "torch": torch, "np": np}
    with torch.no_grad():
        exec(code, names)
    logits = np.asarray(names["logits"])
    assert logits.shape == (40, 4) and logits.argmax(1).tolist() == recorded(run)
    facts = json.loads(Path("config.json").read_text())
    assert facts["classes"] == ["class 0", "class 1", "class 2", "class 3"] and facts["epoch"] == 1
    summary = RunFolder.open(run).summary()
    assert summary is not None and f"| test | {summary['test_accuracy']:.2%} |" in text


def test_the_card_of_the_best_weights_has_their_accuracy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What the summary says of test and training images was measured with the last weights."""
    means = iter([(1.0, 0.75), (2.0, 0.5), (3.0, 0.25)])  # of two validations and of the test
    monkeypatch.setattr(Session, "evaluate", lambda *_: Means(*next(means)))
    monkeypatch.setattr("fastcifar.trainer.measure_test", lambda session, dataset: (session.evaluate(None), {}))
    config = tiny_config(write_tiny(tmp_path / "tiny.npz"), epochs=2, keep_best=True)
    path = train(config, tmp_path / "run", [], progress=False)
    table = {
        "best": "| val | 75.00% |\n\nThese weights were not measured on the test images. The model is of epoch 1 of 2",
        "last": "| test | 25.00% |\n| val | 50.00% |\n| train |",
    }
    for weights, text in table.items():
        out = tmp_path / weights
        words = ["export", str(path), "--format", "safetensors", "--weights", weights, "--out", str(out)]
        assert cli.main(words) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.endswith("images: all logits are equal\n")
        assert f"| images | accuracy |\n|---|---|\n{text}" in (out / "README.md").read_text()


def test_another_function_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A format that loses a tensor, or a bit of one, is found before anything is written."""
    fmt = FORMATS["safetensors"]

    def write(classifier: Any, images: Any, facts: Any) -> bytes:
        classifier.model.head.bias.data[0] += 0.1
        content = fmt.write(classifier, images, facts)
        classifier.model.head.bias.data[0] -= 0.1
        return content

    monkeypatch.setitem(FORMATS, "safetensors", dataclasses.replace(fmt, write=write))  # type: ignore[arg-type]
    assert cli.main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 1
    assert "is not the run's model" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        assert cli.main(["export", str(run), "--format", "pt2", "--out", str(tmp_path / name)]) == 2
        assert "nothing is ever overwritten" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fastcifar.exporting.formats import check_available

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"pip install 'fastcifar\[onnx\]'"):
        check_available("onnx")
