"""An image folder is read if each of its images has one meaning in RGB."""

from pathlib import Path
from typing import Any

import data_files
import pytest
from data_files import SPLITS10, first_image, load, same
from PIL import Image

from fastcifar.data.published import CIFAR10
from fastcifar.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return data_files.write_folder(tmp_path / "images", SPLITS10, CIFAR10.class_names)


def test_damaged_image_is_named(folder: Path) -> None:
    path = first_image(folder)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{path} is damaged or no image"):
        load(folder)


def test_other_sizes_are_refused_naming_the_first(folder: Path) -> None:
    path = first_image(folder)
    Image.new("RGB", (33, 32)).save(path)
    Image.new("RGB", (64, 64)).save(folder / "train" / "dog" / "z.png")
    with pytest.raises(DataError, match=rf"{path} has 33x32 pixels; only 32x32 is taken"):
        load(folder)


@pytest.mark.parametrize(
    ("mode", "colour", "message"),
    [("RGBA", (1, 2, 3, 4), "partly transparent"), ("I;16", 1000, "of mode I;16, which has no exact 8-bit RGB")],
)
def test_images_without_an_rgb_meaning_are_refused(folder: Path, mode: str, colour: Any, message: str) -> None:
    Image.new(mode, (32, 32), colour).save(first_image(folder))
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tiff", "ppm", "gif"])
def test_any_pillow_format(folder: Path, suffix: str) -> None:
    expected = load(folder)
    path = first_image(folder)
    image = Image.open(path)
    if suffix == "gif":  # at most 256 colours
        image = image.quantize(200).convert("RGB")
        image.save(path)
        expected = load(folder)
    image.save(path.with_suffix(f".{suffix}"), lossless=True)
    path.unlink()
    assert same(load(folder), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_modes_that_mean_rgb(folder: Path, mode: str) -> None:
    path = first_image(folder)
    Image.open(path).convert("L").convert("RGB").save(path)
    expected = load(folder)
    Image.open(path).convert("L").convert(mode).save(path)
    assert same(load(folder), expected)


def test_classes_of_train_and_test_must_agree(folder: Path) -> None:
    (folder / "test" / "cat").rename(folder / "test" / "cats")
    with pytest.raises(
        DataError, match=r"class 'cat' is in train/ but not in test/ \(1 such\)\. Did you mean 'cats'\?"
    ):
        load(folder)


def test_class_without_images(folder: Path) -> None:
    first_image(folder).parent.joinpath("x").mkdir()
    for path in (folder / "test" / "cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="cat holds no image"):
        load(folder)


def test_files_that_are_no_images_are_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load(folder)
    (folder / "train" / "cat" / ".DS_Store").touch()
    (folder / "train" / "cat" / "readme.txt").touch()
    (folder / "train" / "about.txt").touch()
    capsys.readouterr()
    assert same(load(folder), expected)
    assert "ignored 1 of" in capsys.readouterr().err
