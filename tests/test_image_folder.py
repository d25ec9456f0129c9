"""An image folder is read if each of its images has one meaning in RGB."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import data_files
import numpy as np
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
    with pytest.raises(DataError, match=rf"{path} has 33x32 pixels.*fastcifar data convert .* OUT.npz --size 32"):
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


# ---------------------------------------------------------------------------------------------------- what is skipped

LITTER = (".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


@pytest.mark.parametrize("name", LITTER)
@pytest.mark.parametrize("where", ["train", "test", "train/cat"])
def test_hidden_and_system_folders_are_no_classes(
    name: str, where: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load(folder)
    shutil.copytree(folder / "train" / "dog", folder / where / name)
    capsys.readouterr()
    assert same(load(folder), expected)
    told = f"skipped 1 hidden or system folders of {folder}, the first {where}/{name}\n"
    assert (told in capsys.readouterr().err) == ("/" not in where)


def test_hidden_folders_in_both_splits(folder: Path) -> None:
    expected = load(folder)
    for split in ("train", "test"):
        shutil.copytree(folder / split / "dog", folder / split / ".ipynb_checkpoints")
    assert same(load(folder), expected)


def test_hidden_files_are_skipped_wherever_they_lead(folder: Path) -> None:
    """An editor's lock file is a hidden link to nowhere."""
    expected = load(folder)
    (folder / "train" / "cat" / ".#0.png").symlink_to("someone@host.123:1")
    (folder / "train" / ".#cat").symlink_to("/nowhere")
    assert same(load(folder), expected)


@pytest.mark.parametrize("name", ["features.h5", "licence.pdf", "stack.mpg", "notes.txt", "weather.grib"])
def test_files_that_are_no_images_are_ignored(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load(folder)
    (folder / "train" / "cat" / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    capsys.readouterr()
    assert same(load(folder), expected)
    told = f"ignored 1 of {folder} that are no image files, the first {folder}/train/cat/{name}\n"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["ico", "psd", "dds"])
def test_pictures_of_other_formats_are_not_left_out_in_silence(suffix: str, folder: Path) -> None:
    (folder / "train" / "cat" / f"x.{suffix}").touch()
    with pytest.raises(DataError, match=rf"x\.{suffix} is in a format that is not taken: convert it to PNG first"):
        load(folder)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to nothing", "link to itself"])
def test_nothing_odd_stops_the_program(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load(folder)
    odd = folder / "train" / "cat" / "odd.txt"
    if kind == "pipe":
        os.mkfifo(odd.with_suffix(".png"))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            handle = os.open(odd.parent, os.O_RDONLY)
            made.bind(f"/proc/self/fd/{handle}/odd.png")  # a short path: a socket's has at most 107 bytes
            os.close(handle)
    elif kind == "device":
        odd.with_suffix(".png").symlink_to("/dev/zero")
    else:
        odd.symlink_to("/nowhere" if kind == "link to nothing" else odd.name)
    capsys.readouterr()
    assert same(load(folder), expected)
    assert "ignored 1 of" in capsys.readouterr().err


def test_class_that_leads_nowhere_is_told(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "yak").symlink_to(folder / "elsewhere")
    with pytest.raises(DataError, match=r"train/yak is a link to nowhere: a class would be missing"):
        load(folder)


@pytest.mark.parametrize("name", ["valid", "val", "validation", "dev"])
def test_a_third_split_is_not_used_and_that_is_told(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load(folder)
    shutil.copytree(folder / "test", folder / name)
    (folder / "docs").mkdir()
    first_image(folder).touch()  # so that it is read again
    capsys.readouterr()
    for _ in range(2):
        assert same(load(folder), expected)
        assert f"{folder} also holds {name}/, of which nothing is used\n" in capsys.readouterr().err


def test_images_one_folder_too_deep(folder: Path) -> None:
    """As in Tiny ImageNet: train/<class>/images/*.JPEG."""
    inside = folder / "train" / "cat" / "images"
    inside.mkdir()
    for path in (folder / "train" / "cat").glob("*.png"):
        path.rename(inside / path.name)
    with pytest.raises(DataError, match="cat holds no image, only images; images are looked for in the class folder"):
        load(folder)


# ---------------------------------------------------------------------------------------------------- names


def test_names_that_are_not_utf8(folder: Path) -> None:
    expected = load(folder)
    cat = os.fsencode(folder / "train" / "cat")
    os.rename(os.fsencode(first_image(folder)), cat + b"/\xe9.png")
    with open(cat + b"/notes_\xe9.txt", "wb"):
        pass
    dataset = load(folder)
    assert dataset.digest == expected.digest
    assert dataset.train.files is not None and r"train/cat/\xe9.png" in dataset.train.files


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"b\xe9b\xe9", r"b\xe9b\xe9"),
        (b"\x1b[31mcat", r"\x1b[31mcat"),
        (b"ca\nt", r"ca\nt"),
        ("ca\u202et".encode(), r"ca\u202et"),
        ("猫".encode(), "猫"),
    ],
)
def test_class_names_are_fit_to_be_shown(name: bytes, shown: str, folder: Path) -> None:
    """The bug: a class named after a terminal's escape sequence colours the terminal; one that is no UTF-8 ends it."""
    for split in ("train", "test"):
        os.rename(os.fsencode(folder / split / "cat"), os.fsencode(folder / split) + b"/" + name)
    for _ in range(2):  # decoded, then from the cache
        assert shown in load(folder).class_names


def test_names_that_become_one_when_shown_are_refused(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "\x1b")
        (folder / split / "dog").rename(folder / split / r"\x1b")
    with pytest.raises(DataError, match="two classes are both named"):
        load(folder)


def test_one_name_in_two_forms_of_unicode(folder: Path) -> None:
    (folder / "train" / "cat").rename(folder / "train" / "caf\u00e9")
    (folder / "test" / "cat").rename(folder / "test" / "cafe\u0301")
    with pytest.raises(DataError, match=r"test/ has the same name in another form of Unicode"):
        load(folder)


# ---------------------------------------------------------------------------------------------------- places


def test_each_image_knows_its_file(folder: Path) -> None:
    for _ in range(2):  # decoded, then from the cache
        dataset = load(folder)
        for name, split in (("train", dataset.train), ("test", dataset.test)):
            assert split.files is not None and split.places is not None
            in_order = sorted(p.relative_to(folder).as_posix() for p in (folder / name).rglob("*.png"))
            assert sorted(split.places.tolist()) == list(range(len(split)))
            for image, label, place, file in zip(split.images, split.labels, split.places, split.files, strict=True):
                assert in_order[place] == file
                assert np.array_equal(np.asarray(Image.open(folder / file)), image)
                assert Path(file).parent.name == dataset.class_names[label]
