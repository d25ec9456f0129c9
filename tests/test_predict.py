"""`fastcifar predict`: pictures of any size, in folders and alone; the answers are those that the run recorded."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, tiny_split, write_tiny

from fastcifar.cli import main as cli
from fastcifar.data.published import CIFAR100_SUPERCLASS_OF
from fastcifar.errors import DataError
from fastcifar.prediction import Prediction, predict
from fastcifar.run.folder import RunFolder
from fastcifar.run.schema import Images
from fastcifar.trainer import train

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    return train(tiny_config(write_tiny(folder / "tiny.npz"), epochs=1), folder / "run", [], progress=False)


def probabilities(prediction: Prediction) -> Any:
    """By class, for comparisons: what is classified together rounds differently."""
    return pytest.approx({guess.class_name: guess.probability for guess in prediction.guesses}, abs=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images as files, whose names have the numbers of `places`."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(tiny_split(40, seed=1).images):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def test_the_answers_are_those_that_the_run_recorded(run: Path, pictures: Path) -> None:
    recorded = RunFolder.open(run).predictions()
    assert recorded is not None
    found = predict(RunFolder.open(run), [pictures])
    assert [int(p.file.stem) for p in found] == list(range(40)) and all(p.resized == "" for p in found)
    order = np.argsort(recorded["places"])
    names = recorded["class_names"]
    assert [p.guesses[0].class_name for p in found] == names[recorded["predicted"][order]].tolist()
    confidence = [p.guesses[0].probability for p in found]
    assert confidence == pytest.approx(recorded["confidence"][order].tolist(), abs=1e-5)
    assert sum(guess.probability for guess in found[0].guesses) == pytest.approx(1)


def test_a_large_picture_is_scaled_as_it_says(run: Path, tmp_path: Path, capsys: Captured) -> None:
    """The centre is of one colour, and the rest is of others, so that a crop and a stretch differ."""
    wide = np.zeros((200, 600, 3), np.uint8)
    wide[:, :200], wide[:, 200:400], wide[:, 400:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:32, 200:232]).save(tmp_path / "centre.png")
    files = [tmp_path / "wide.png", tmp_path / "centre.png"]
    cropped, centre = predict(RunFolder.open(run), files)
    assert (
        probabilities(cropped) == probabilities(centre).expected
        and cropped.resized == "centre 200x200 of 600x200 to 32x32"
    )
    stretched, _ = predict(RunFolder.open(run), files, fit="stretch")
    assert stretched.guesses != cropped.guesses  # by little: the network has hardly been trained
    assert stretched.resized == "whole 600x200 to 32x32"
    for more, said in (
        ([], "the picture was scaled: "),
        (files[1:], "1 of 2 pictures was scaled: "),
        (files, "2 of 3 pictures were scaled, such as "),
    ):
        assert cli.main(["predict", str(run), str(files[0]), *map(str, more)]) == 0
        note = f"note: {said}centre 200x200 of 600x200 to 32x32; --resize stretch takes whole pictures\n"
        assert capsys.readouterr().err.endswith(note)


def test_a_photograph_is_turned_upright(run: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    a, b = predict(RunFolder.open(run), [tmp_path / "turned.png", tmp_path / "upright.png"])
    assert probabilities(a) == probabilities(b).expected


def test_json_and_csv(run: Path, pictures: Path, capsys: Captured) -> None:
    assert (
        cli.main(["predict", str(run), str(pictures / "00.png"), str(pictures / "01.png"), "--top", "2", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [Path(one["file"]).name for one in found] == ["00.png", "01.png"] and len(found[0]["top"]) == 2
    assert cli.main(["predict", str(run), str(pictures / "00.png"), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"], "there are four classes"
    assert float(rows[0]["probability"]) == pytest.approx(found[0]["top"][0]["probability"], abs=1e-6)
    assert cli.main(["predict", str(run), str(pictures), "--csv", "--json"]) == 2


def test_a_run_that_does_not_name_its_classes(run: Path, pictures: Path, tmp_path: Path) -> None:
    """A run of an earlier version: the images name the classes, and they are needed only then."""
    folder = RunFolder.open(run)
    images = folder.environment.pop("images")
    assert predict(folder, [pictures / "00.png"])[0].guesses[0].class_name in images["class_names"]
    with pytest.raises(DataError, match="name them with --data"):
        predict(folder, [pictures / "00.png"], data=str(tmp_path / "gone.npz"))


def test_superclasses_are_shown_where_they_are_known(
    run: Path, pictures: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["apple", "bear", "bee", "whale"]
    above = sorted({CIFAR100_SUPERCLASS_OF[name] for name in names})
    of = [above.index(CIFAR100_SUPERCLASS_OF[name]) for name in names]
    images = Images(name="four", size=32, class_names=names, superclass_names=above, superclass_of=of)
    monkeypatch.setattr(RunFolder, "images", images)
    assert cli.main(["predict", str(run), str(pictures / "00.png")]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["picture", "probability", "class", "superclass"] and len(rows) == 4
    for row in rows:
        *_, name, superclass = row.split()
        assert CIFAR100_SUPERCLASS_OF[name] == superclass


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.png", "no such file"), ("empty", "holds no picture"), ("text.png", "damaged or no image")],
)
def test_what_is_no_picture_is_named(run: Path, tmp_path: Path, name: str, message: str, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    (tmp_path / "text.png").write_text("this is no picture")
    assert cli.main(["predict", str(run), str(tmp_path / name)]) == 3
    out, err = capsys.readouterr()
    assert out == "" and message in err and name in err
