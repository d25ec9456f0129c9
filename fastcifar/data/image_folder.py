"""Decoding an image folder, {train,test}/<class>/*.png or another format of `images.FORMATS` -> arrays."""

import os
import stat
import unicodedata
from pathlib import Path

import numpy as np

from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import Decoded, how_to_convert
from fastcifar.data.images import LARGEST_IMAGE, OTHER_SUFFIXES, SUFFIXES, OtherSizeError, open_images, side_of
from fastcifar.data.notes import listed, nearest
from fastcifar.data.paths import is_litter, read_bytes
from fastcifar.errors import DataError


def read_image_folder(folder: Path, size: int | None = None) -> Decoded:
    """Reads the images and labels of an image folder.

    Hidden entries, entries that operating systems leave behind, and files that are not images are skipped. The notes of
    the result name skipped class folders and files.

    Args:
        folder: holds train/ and test/, each with one folder for each class.
        size: the side to which images are scaled, of whatever size they are; None takes them as they are, all of the
            size of the first one.

    Returns:
        The images and labels.

    Raises:
        DataError: train/ and test/ have different classes, a class has no image, or an image is refused.
        OSError: a folder cannot be read.
    """
    notes, skipped = [], []
    class_names = {}
    for split in SPLITS:
        inside = _kinds(folder / split)
        if broken := [name for name, kind in inside.items() if kind == "broken link" and not is_litter(name)]:
            raise DataError(f"{folder / split / broken[0]} is a link to nowhere: a class would be missing")
        folders = [name for name, kind in inside.items() if kind == "folder"]
        skipped += [f"{split}/{name}" for name in folders if is_litter(name)]
        class_names[split] = [name for name in folders if not is_litter(name)]
    _check_classes(folder, class_names)
    names = class_names["train"]
    images, labels, files, ignored, side = {}, {}, {}, [], size
    for split in SPLITS:
        found: list[str] = []
        targets: list[int] = []
        for label, name in enumerate(names):
            usable, others = _image_files(folder, f"{split}/{name}")
            ignored += others
            found += usable
            targets += [label] * len(usable)
        files[split] = tuple(found)
        first = folder / found[0]
        side = side or side_of(read_bytes(first, LARGEST_IMAGE), str(first), folder)
        try:
            images[split] = open_images([folder / file for file in found], side, scale=size is not None)
        except OtherSizeError as error:
            raise DataError(f"{error}; {how_to_convert(folder)}") from error
        labels[split] = np.array(targets, dtype=np.int64)
    if ignored:
        notes.append(f"ignored {len(ignored)} of {folder} that are no image files, the first {folder / ignored[0]}")
    if skipped:
        notes.append(f"skipped {len(skipped)} hidden or system folders of {folder}, the first {skipped[0]}")
    if unused := _other_splits(folder, set(names)):
        notes.append(f"{folder} also holds {listed(unused)}, of which nothing is used")
    return Decoded(images, labels, len(names), tuple(names), files=files, notes=tuple(notes))


def entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """The entries of a folder. For 60,000 entries it takes 0.2 s; Path.glob takes 0.6 s."""
    with os.scandir(folder) as found:
        return list(found)


def _kinds(folder: Path) -> dict[str, str]:
    """The kind of each entry (file, folder, broken link or other), sorted by name. Links are followed."""
    kinds = {}
    for entry in sorted(entries(folder), key=lambda entry: entry.name):
        try:
            mode = entry.stat().st_mode
        except OSError:
            kinds[entry.name] = "broken link"
            continue
        kinds[entry.name] = "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"
    return kinds


def _check_classes(folder: Path, class_names: dict[str, list[str]]) -> None:
    for split, other in (SPLITS, SPLITS[::-1]):
        there = set(class_names[other])
        if missing := [name for name in class_names[split] if name not in there]:
            alike = {unicodedata.normalize("NFC", name) for name in there}
            hint = nearest(missing[0], class_names[other])
            if unicodedata.normalize("NFC", missing[0]) in alike:
                hint = f" {other}/ has the same name in another form of Unicode: rename one of the two folders."
            raise DataError(
                f"{folder}: class {missing[0]!r} is in {split}/ but not in {other}/ ({len(missing)} such).{hint}"
            )
    if not class_names["train"]:
        raise DataError(f"{folder}: train/ and test/ hold no class folders")


def _image_files(folder: Path, inside: str) -> tuple[list[str], list[str]]:
    """The image files of one class, sorted, and the entries that are no image files, as paths below `folder`."""
    usable, others = [], []
    kinds = {name: kind for name, kind in _kinds(folder / inside).items() if not is_litter(name)}
    for name, kind in kinds.items():
        path = f"{inside}/{name}"
        suffix = os.path.splitext(name)[1].lower()
        if suffix in SUFFIXES and kind in ("file", "broken link"):  # reading the link says what is wrong with it
            usable.append(path)
        elif suffix in OTHER_SUFFIXES and kind == "file":
            raise DataError(f"{folder / path} is in a format that is not taken: convert it to PNG first")
        else:
            others.append(path)
    if not usable:
        hint = f", only {listed([path.rsplit('/', 1)[-1] for path in others], 3)}" if others else ""
        hint += "; images are looked for in the class folder itself" if "folder" in kinds.values() else ""
        raise DataError(f"{folder / inside} holds no image{hint}")
    return usable, others


def _other_splits(folder: Path, names: set[str]) -> list[str]:
    """The folders beside train/ and test/ that look like a third split, by their name or by the classes in them."""
    found = []
    for entry in sorted(entries(folder), key=lambda entry: entry.name):
        if entry.name in SPLITS or is_litter(entry.name) or not entry.is_dir():
            continue
        try:
            if entry.name.lower().startswith("val") or names & set(os.listdir(entry)):
                found.append(f"{entry.name}/")
        except OSError:
            continue  # a folder that cannot be read is not part of the data
    return found
