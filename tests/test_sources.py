"""Every layout gives the same data set, in the same order; nothing damaged or hostile gets through."""

import io
import json
import os
import pickle
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from data_files import FINE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastcifar.data import layouts, sources
from fastcifar.data.sources import Dataset, Split
from fastcifar.errors import DataError, UsageError

SPLITS = data_files.make_splits()
SPLITS10 = data_files.make_splits(1, num_classes=10, per_class=5)


def dump2(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def dump4(value: object) -> bytes:
    return pickle.dumps(value, protocol=4)


def text_keys(value: dict[bytes, Any]) -> bytes:
    return dump4({key.decode(): entry for key, entry in value.items()})


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "python 2 pickles": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS)),
    "python 3 pickles, protocol 2": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS, dump2)),
    "python 3 pickles, protocol 4": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS, dump4)),
    "pickles with text keys": lambda p: data_files.write_files(p / "py", data_files.python_files(SPLITS, text_keys)),
    "binary": lambda p: data_files.write_files(p / "bin", data_files.binary_files(SPLITS)),
    "npz": lambda p: data_files.write_npz(p / "c.npz", SPLITS),
    "image folder": lambda p: data_files.write_folder(p / "images", SPLITS),
    "python archive": lambda p: data_files.write_archive(p / "a.tar.gz", data_files.python_files(SPLITS)),
    "binary archive": lambda p: data_files.write_archive(p / "a.tar.gz", data_files.binary_files(SPLITS)),
    "tar": lambda p: data_files.write_archive(p / "a.tar", data_files.binary_files(SPLITS)),
    "tar.xz, unusual name": lambda p: data_files.write_archive(p / "x" / "a.xz", data_files.binary_files(SPLITS)),
    "folder above": lambda p: data_files.write_files(p / "above" / "py", data_files.python_files(SPLITS)).parent,
    "folder above an archive": lambda p: (
        data_files.write_archive(p / "above" / "a.tgz".replace("tgz", "tar.gz"), data_files.python_files(SPLITS)).parent
    ),
}
LAYOUTS10: dict[str, Callable[[Path], Path]] = {
    "pickles": lambda p: data_files.write_files(p / "py", data_files.python10_files(SPLITS10)),
    "binary": lambda p: data_files.write_files(p / "bin", data_files.binary10_files(SPLITS10)),
    "archive": lambda p: data_files.write_archive(p / "a.tar.gz", data_files.python10_files(SPLITS10)),
    "npz": lambda p: data_files.write_npz(p / "c.npz", SPLITS10, label_names=np.array(sources.CIFAR10.class_names)),
    "image folder": lambda p: data_files.write_folder(p / "images", SPLITS10, sources.CIFAR10.class_names),
}


def same(a: Dataset, b: Dataset) -> bool:
    return (
        a.digest == b.digest
        and (a.class_names, a.superclass_names, a.superclass_of) == (b.class_names, b.superclass_names, b.superclass_of)
        and all(
            np.array_equal(x.images, y.images) and np.array_equal(x.labels, y.labels)
            for x, y in ((a.train, b.train), (a.test, b.test))
        )
    )


def load(path: Path, cache: Path | None = None) -> Dataset:
    return sources.load(str(path), cache=cache or path.parent / "cache", progress=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(data_files.write_npz(tmp_path_factory.mktemp("tiny") / "c.npz", SPLITS))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_data_set(layout: str, tiny: Dataset, tmp_path: Path) -> None:
    dataset = load(LAYOUTS[layout](tmp_path))
    assert same(dataset, tiny)
    for split in (dataset.train, dataset.test):
        assert (
            split.images.dtype == np.uint8 and split.images.flags.c_contiguous and split.images.shape[1:] == (32, 32, 3)
        )
        assert split.labels.dtype == np.int64


def test_pixels_and_labels_are_kept(tiny: Dataset) -> None:
    for split, (images, labels) in zip((tiny.train, tiny.test), SPLITS.values(), strict=True):
        pairs = sorted((label, image.tobytes()) for image, label in zip(split.images, split.labels, strict=True))
        assert pairs == sorted((label, image.tobytes()) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS10)
def test_every_layout_of_cifar10(layout: str, tmp_path: Path) -> None:
    reference = load(
        data_files.write_npz(tmp_path / "r" / "r.npz", SPLITS10, label_names=np.array(sources.CIFAR10.class_names))
    )
    dataset = load(LAYOUTS10[layout](tmp_path))
    assert same(dataset, reference)
    assert dataset.num_classes == 10 and dataset.superclass_of == () and dataset.class_names[3] == "cat"


@given(st.permutations(range(20)), st.permutations(range(10)))
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter(images_order: list[int], classes_order: list[int]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    images[1] = images[0]  # twice the same image, once with the same label
    labels = np.arange(20) // 2
    names = tuple(f"name {i}" for i in range(10))
    reference = _dataset(images, labels, names)
    shuffled = np.array(images_order)
    new_label = np.argsort(classes_order)
    dataset = _dataset(images[shuffled], new_label[labels[shuffled]], tuple(names[i] for i in classes_order))
    assert same(dataset, reference)


def _dataset(images: Any, labels: Any, names: tuple[str, ...] | None) -> Dataset:
    pair = {"train": images, "test": images}, {"train": labels, "test": labels}
    return sources._dataset(layouts.Decoded(*pair, len(names) if names else 10, names), "x")


@given(st.integers(0, 19), st.integers(0, 3071), st.integers(0, 7))
@settings(max_examples=20, deadline=None)
def test_one_bit_or_label_changes_the_digest(image: int, pixel: int, bit: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(20) // 2
    split = Split(images, labels)
    other = images.copy()
    other.reshape(20, -1)[image, pixel] ^= 1 << bit
    assert sources.split_digest(Split(other, labels)) != sources.split_digest(split)
    relabelled = labels.copy()
    relabelled[image] = (labels[image] + 1) % 10
    assert sources.split_digest(Split(images, relabelled)) != sources.split_digest(split)


# ---------------------------------------------------------------------------------------------------- names


def test_superclasses_come_with_the_names(tiny: Dataset) -> None:
    assert len(tiny.superclass_names) == 20 and np.bincount(tiny.superclass_of).tolist() == [5] * 20
    of = {name: tiny.superclass_names[above] for name, above in zip(tiny.class_names, tiny.superclass_of, strict=True)}
    assert (of["apple"], of["otter"], of["tractor"]) == ("fruit_and_vegetables", "aquatic_mammals", "vehicles_2")


def test_contradicting_superclass_is_refused(tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    names = pickle.loads(files["meta"], encoding="bytes")
    names[b"coarse_label_names"][0:2] = names[b"coarse_label_names"][1::-1]
    files["meta"] = data_files.python2_pickle(names)
    with pytest.raises(DataError, match="superclass of aquarium_fish: aquatic_mammals as labelled, fish as published"):
        load(data_files.write_files(tmp_path / "py", files))


def test_superclass_that_differs_between_images_is_refused(tmp_path: Path) -> None:
    files = data_files.binary_files(SPLITS)
    content = bytearray(files["train.bin"])
    content[0] ^= 1
    with pytest.raises(DataError, match=r"images of class \d+ lie in several superclasses"):
        load(data_files.write_files(tmp_path / "bin", files | {"train.bin": bytes(content)}))


def test_superclasses_of_other_names_are_the_layouts_own(tmp_path: Path) -> None:
    files = data_files.binary_files(SPLITS) | {"fine_label_names.txt": b"".join(b"n%02d\n" % i for i in range(100))}
    dataset = load(data_files.write_files(tmp_path / "bin", files))
    assert dataset.superclass_names == data_files.COARSE and dataset.superclass_of == data_files.COARSE_OF
    del files["coarse_label_names.txt"], files["fine_label_names.txt"]
    dataset = load(data_files.write_files(tmp_path / "bin2", files))
    assert dataset.class_names[7] == "class 7" and dataset.superclass_names[3] == "superclass 3"


def test_names_that_are_not_there(tmp_path: Path) -> None:
    arrays = {
        f"{s}_{kind}": a for s, pair in SPLITS.items() for kind, a in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "c.npz", **arrays)
    dataset = load(tmp_path / "c.npz")
    assert dataset.class_names == tuple(f"class {i}" for i in range(100)) and dataset.superclass_of == ()


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two classes are both named 'apple'"):
        load(data_files.write_npz(tmp_path / "c.npz", SPLITS, label_names=np.array(["apple", "apple", *FINE[2:]])))


def test_published_names_with_other_images_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load(data_files.write_npz(tmp_path / "c.npz", SPLITS))
    assert dataset.name == "c"
    note = capsys.readouterr().err
    assert "has the classes of cifar100, but its train split has 200 images, 2 to 2 a class" in note


# ---------------------------------------------------------------------------------------------------- recognising


def test_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'cifar-100' is neither .* Did you mean 'cifar100'\?"):
        sources.load("cifar-100")


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "cifar100.npz", SPLITS)
    with pytest.raises(DataError, match=r"no such file or folder: .*cifar10\.npz\. Did you mean 'cifar100\.npz'\?"):
        load(path.with_name("cifar10.npz"))


def test_folder_without_images_says_what_it_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "train_data").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as error:
        load(tmp_path)
    text = str(error.value)
    assert "looked for: the published archive (cifar-100-python.tar.gz" in text
    assert "found: notes.txt, train_data/" in text
    assert "is train_data/ meant to be train/?" in text
    with pytest.raises(DataError, match="found: nothing"):
        load(tmp_path / "train_data")


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("test", "train belongs to CIFAR-100, python version, but test is missing"),
        ("data_batch_3", "data_batch_1 belongs to CIFAR-10, python version, but data_batch_3 is missing"),
    ],
)
def test_incomplete_copy_names_what_is_missing(missing: str, hint: str, tmp_path: Path) -> None:
    files = data_files.python10_files(SPLITS10) if "batch" in missing else data_files.python_files(SPLITS)
    del files[missing]
    with pytest.raises(DataError, match=hint):
        load(data_files.write_files(tmp_path / "py", files))


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_half_of_an_image_folder(part: str, folder: Path) -> None:
    with pytest.raises(DataError, match=rf"It is one part of {folder} \(image folder\): name that folder"):
        load(folder / part)


@pytest.mark.parametrize("part", ["train", "meta"])
def test_one_file_of_a_published_version(part: str, tmp_path: Path) -> None:
    folder = data_files.write_files(tmp_path / "py", data_files.python_files(SPLITS))
    with pytest.raises(DataError, match=rf"It is one part of {folder} \(CIFAR-100, python version\): name that folder"):
        load(folder / part)


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("Training/", "Training/ meant to be train/"),
        ("cifar-100-pyton/", "meant to be cifar-100-python/"),
        ("tran.bin", ""),
    ],
)
def test_hints_at_a_near_name(entry: str, hint: str, tmp_path: Path) -> None:
    assert hint in layouts._hint(tmp_path, entry)


def test_file_that_vanishes(folder: Path) -> None:
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"cannot read .*gone\.png: No such file or directory"):
        load(folder)


def test_image_folder_without_test(tmp_path: Path) -> None:
    folder = data_files.write_folder(tmp_path / "images", SPLITS10, sources.CIFAR10.class_names)
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match="train/ is there, but test/ is missing"):
        load(folder)


def test_ambiguous_folder_lists_what_it_holds(tmp_path: Path) -> None:
    data_files.write_npz(tmp_path / "a" / "one.npz", SPLITS)
    data_files.write_files(tmp_path / "a" / "two", data_files.binary_files(SPLITS))
    with pytest.raises(DataError) as error:
        load(tmp_path / "a")
    text = str(error.value)
    assert "more than one set of images; name one of them" in text
    assert "one.npz  (npz)" in text and "two  (CIFAR-100, binary version)" in text


def test_archive_beside_what_it_was_extracted_to(tiny: Dataset, tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    data_files.write_archive(tmp_path / "a" / "cifar-100-python.tar.gz", files)
    data_files.write_files(tmp_path / "a" / "cifar-100-python", files)
    assert same(load(tmp_path / "a"), tiny)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"a\.bin is neither an \.npz nor a tar archive"):
        load(tmp_path / "a.bin")


# ---------------------------------------------------------------------------------------------------- hostile pickles


class _Payload:
    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("file", ["train", "test", "meta"])
@pytest.mark.parametrize("call", [os.system, eval, np.load, getattr, print], ids=lambda call: call.__name__)
def test_pickle_that_calls_something_is_refused(file: str, call: Callable[..., object], tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    files = data_files.python_files(SPLITS)
    table = pickle.loads(files[file], encoding="bytes")
    table[b"extra"] = _Payload(call, f"touch {proof}", "x") if call is getattr else _Payload(call, f"touch {proof}")
    files[file] = pickle.dumps(table, protocol=2)
    with pytest.raises(DataError, match=rf"{file} is not a CIFAR pickle: it asks for \S*{call.__name__}, .* not run"):
        load(data_files.write_files(tmp_path / "py", files))
    assert not proof.exists()


def test_dotted_global_does_not_reach_through(tmp_path: Path) -> None:
    """Protocol 4 looks up ``a.b.c`` inside a module: an allowed module must not open the way to its attributes."""
    stream = b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."
    files = data_files.python_files(SPLITS) | {"train": stream}
    with pytest.raises(DataError, match=r"asks for numpy\.ndarray\.__class__"):
        load(data_files.write_files(tmp_path / "py", files))


def test_nothing_of_numpy_is_handed_to_a_pickle() -> None:
    """Even its array constructor takes any shape and state; the stand-ins only take notes."""
    assert all(item.__module__ == "fastcifar.data.layouts" for item in layouts._Unpickler._ALLOWED.values())


@pytest.mark.parametrize("target", list(layouts._Unpickler._ALLOWED), ids=".".join)
@pytest.mark.parametrize("state", [b"}\x8c\x05statesK\x01s", b"N}\x8c\x05statesK\x01s\x86"], ids=["dict", "slots"])
def test_pickle_cannot_set_attributes_of_the_stand_ins(target: tuple[str, str], state: bytes) -> None:
    stream = b"\x80\x04c" + "\n".join(target).encode() + b"\n" + state + b"b."
    before = dict(vars(layouts._Unpickler._ALLOWED[target]))
    with pytest.raises(DataError, match="not a CIFAR pickle"):
        layouts._unpickle(stream, "x")
    assert dict(vars(layouts._Unpickler._ALLOWED[target])) == before


def test_one_damaged_number_takes_no_memory() -> None:
    """A memo index of 64 Mi, one flipped bit away: a gigabyte in the unpickler written in C."""
    tracemalloc.start()
    try:
        layouts._unpickle(b"\x80\x02}r\x00\x00\x00\x04.", "x")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


PICKLES = data_files.python_files(data_files.make_splits(2, per_class=1))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_pickle_is_a_data_error_or_data(data: st.DataObject) -> None:
    """Cut or flipped anywhere: read, or refused with a sentence; nothing else ever escapes."""
    name = data.draw(st.sampled_from(["train", "meta"]))
    content = bytearray(PICKLES[name])
    end = len(content)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, end - 1))]
    else:
        where = data.draw(st.one_of(st.integers(0, end - 1), st.integers(0, min(1200, end - 1))))
        content[where] ^= 1 << data.draw(st.integers(0, 7))
    version = layouts.VERSIONS[0]
    try:
        layouts._read_published(version, PICKLES | {name: bytes(content)}, Path("here"))
    except DataError as error:
        assert str(error).startswith("here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"fine_labels": [0] * 199}, "'fine_labels' is not a list of 200 whole numbers"),
        ({b"fine_labels": ["a"] * 200}, "'fine_labels' is not a list of 200 whole numbers"),
        ({b"fine_labels": [100] * 200}, "label 100 in the train split; allowed: 0 to 99"),
        ({b"fine_labels": [-1] * 200}, "label out of range"),
        ({b"data": np.zeros((200, 3071), np.uint8)}, r"\(200, 3071\) u1, not N x 3072 bytes"),
        ({b"data": np.zeros((200, 3072), np.int16)}, r"i2, not N x 3072 bytes"),
        ({b"data": b"abc"}, "no array under the key 'data'"),
    ],
)
def test_wrong_content_of_a_pickle(change: dict[bytes, Any], message: str, tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    table = pickle.loads(files["train"], encoding="bytes") | change
    with pytest.raises(DataError, match=message):
        load(data_files.write_files(tmp_path / "py", files | {"train": data_files.python2_pickle(table)}))


# ---------------------------------------------------------------------------------------------------- archives


def test_member_paths_are_not_trusted(tiny: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.tar.gz"
    data_files.write_archive(path, data_files.python_files(SPLITS), inside="../../..//etc")
    before = sorted(tmp_path.rglob("*"))
    assert same(load(path, tmp_path / "cache"), tiny)
    assert [p for p in sorted(tmp_path.rglob("*")) if (tmp_path / "cache") not in (p, *p.parents)] == before


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    files = data_files.python_files(SPLITS)
    train = files.pop("train")
    (tmp_path / "train").write_bytes(train)
    path = data_files.write_archive(tmp_path / "a.tar", files)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("cifar/train")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "train")
        archive.addfile(link)
    with pytest.raises(DataError, match="holds no published version of CIFAR.*of which it has meta, test\n"):
        load(path)


def test_archive_with_two_of_one_name(tmp_path: Path) -> None:
    path = data_files.write_archive(tmp_path / "a.tar", data_files.python_files(SPLITS))
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("other/train"), io.BytesIO())
    with pytest.raises(DataError, match="more than one file named train"):
        load(path)


def test_oversized_member_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_LARGEST_FILE", 1000)
    path = data_files.write_archive(tmp_path / "a.tar.gz", data_files.python_files(SPLITS))
    with pytest.raises(DataError, match="more than any CIFAR file has"):
        load(path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2", "tar"])
@pytest.mark.parametrize("kept", [0.001, 0.5, 0.98])
def test_archive_cut_short(kind: str, kept: float, tmp_path: Path) -> None:
    path = data_files.write_archive(tmp_path / f"a.{kind}", data_files.python_files(SPLITS))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"is not a whole archive|holds no published version"):
        load(path)


# ---------------------------------------------------------------------------------------------------- npz


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_images": np.zeros((200, 3, 32, 32), np.uint8)},
            r"not uint8 \[N, 32, 32, 3\]; transpose\(0, 2, 3, 1\)",
        ),
        ({"train_images": np.zeros((200, 32, 32, 3), np.float32)}, r"train_images is float32 \[200, 32, 32, 3\], not"),
        ({"test_images": np.zeros((100, 28, 28, 3), np.uint8)}, r"test_images is uint8 \[100, 28, 28, 3\], not"),
        ({"train_labels": np.zeros(200)}, r"train_labels is float64 \[200\], not whole numbers \[N\]"),
        ({"train_labels": np.zeros((200, 1), int)}, r"train_labels is int64 \[200, 1\], not whole numbers \[N\]"),
        ({"train_labels": np.zeros(199, int)}, "200 train_images, but 199 train_labels"),
        ({"train_labels": np.full(200, 100)}, "label 100 in the train split; allowed: 0 to 99"),
        ({"test_labels": np.full(100, -1)}, "label -1 in the test split; allowed: 0 to 99"),
        (
            {"test_images": np.zeros((0, 32, 32, 3), np.uint8), "test_labels": np.zeros(0, int)},
            "test split holds no image",
        ),
        ({"label_names": np.arange(100)}, r"label_names is int64 \[100\], not a list of strings"),
        ({"train_labels": np.array([object()] * 200)}, "damaged or no .npz of plain arrays .*allow_pickle"),
    ],
)
def test_wrong_npz(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(data_files.write_npz(tmp_path / "c.npz", SPLITS, **change))


def test_npz_with_a_misspelt_key(tmp_path: Path) -> None:
    arrays = {"train_image": SPLITS["train"][0], "train_labels": SPLITS["train"][1]}
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match=r"no array 'train_images'; it holds .* Did you mean 'train_image'\?"):
        load(tmp_path / "c.npz")


def test_unnamed_labels_start_at_0(tmp_path: Path) -> None:
    splits = {split: (images, labels + 1) for split, (images, labels) in SPLITS.items()}
    arrays = {
        f"{s}_{kind}": a for s, pair in splits.items() for kind, a in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match="labels start at 1, not at 0"):
        load(tmp_path / "c.npz")


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_npz_cut_short(kept: float, tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"c\.npz"):
        load(path)


def test_npz_with_a_flipped_bit(tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load(path)


# ---------------------------------------------------------------------------------------------------- image folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return data_files.write_folder(tmp_path / "images", SPLITS10, sources.CIFAR10.class_names)


def first_image(folder: Path) -> Path:
    return sorted((folder / "train" / "cat").iterdir())[0]


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


# ---------------------------------------------------------------------------------------------------- cache


def test_decoded_once_until_the_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", SPLITS)
    reads = []
    read = layouts.Source.read
    monkeypatch.setattr(layouts.Source, "read", lambda source: reads.append(source) or read(source))
    first, second = load(path), load(path)
    assert len(reads) == 1 and same(first, second)
    data_files.write_npz(path, data_files.make_splits(7))
    assert load(path).digest != first.digest
    assert len(reads) == 2
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    load(path)
    assert len(reads) == 3


def test_one_changed_image_of_a_folder_is_seen(folder: Path) -> None:
    first = load(folder)
    path = first_image(folder)
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)
    second = load(folder)
    assert second.digest != first.digest
    path.unlink()
    assert load(folder).digest not in (first.digest, second.digest)


def test_cache_holds_no_pickle(tmp_path: Path) -> None:
    load(data_files.write_npz(tmp_path / "c.npz", SPLITS))
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    content = entry.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {"train_images", "test_labels", "__metadata__"} < set(header)


# ---------------------------------------------------------------------------------------------------- split, info


@given(st.integers(0, 199), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_split_is_disjoint_and_covers(tiny: Dataset, val_size: int, seed: int) -> None:
    train, val = tiny.train_val(val_size, seed)
    assert len(val) == val_size and len(train) == 200 - val_size
    found = [image.tobytes() for part in (train, val) for image in part.images]
    assert sorted(found) == sorted(image.tobytes() for image in tiny.train.images)
    assert np.array_equal(tiny.train_val(199, seed)[1].images[:val_size], val.images)  # a smaller one lies in a larger
    again = tiny.train_val(val_size, seed)
    assert np.array_equal(again[1].images, val.images) and np.array_equal(again[0].labels, train.labels)


def test_split_depends_on_the_seed_and_never_on_numpys_version(tiny: Dataset) -> None:
    index = {image.tobytes(): i for i, image in enumerate(tiny.train.images)}
    picked = [[index[image.tobytes()] for image in tiny.train_val(5, seed)[1].images] for seed in (0, 1)]
    assert picked == [[151, 167, 0, 136, 72], [185, 2, 41, 20, 143]]


def test_split_is_not_stratified_but_random(tiny: Dataset) -> None:
    counts = np.mean([np.bincount(tiny.train_val(100, seed)[1].labels, minlength=100) for seed in range(200)], axis=0)
    assert abs(counts - 1).max() < 0.3


@pytest.mark.parametrize("val_size", [-1, 200, 10_000])
def test_val_size_out_of_range(tiny: Dataset, val_size: int) -> None:
    with pytest.raises(UsageError, match=rf"val_size = {val_size}: c has 200 training images; allowed: 0 to 199"):
        tiny.train_val(val_size, 0)


def test_split_seed_out_of_range(tiny: Dataset) -> None:
    with pytest.raises(UsageError, match="split_seed = -1"):
        tiny.train_val(1, -1)


def test_info_counts_what_numpy_counts(tiny: Dataset) -> None:
    images = np.concatenate([tiny.train.images] * 6)  # more than one chunk
    labels = np.concatenate([tiny.train.labels] * 5 + [np.zeros(200, np.int64)])
    dataset = Dataset("x", Split(images, labels), tiny.test, tiny.class_names, (), (), "")
    found = sources.info(dataset)
    pixels = images.astype(np.float64).reshape(len(images), -1, 3) / 255
    train = found["train"]
    assert (train.count, train.class_min, train.class_max, train.class_mean) == (1200, 10, 210, 12.0)
    np.testing.assert_allclose(train.mean, pixels.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(train.std, pixels.std(axis=(0, 1)), rtol=1e-10)
    np.testing.assert_allclose(train.image_std, pixels.std(axis=1, ddof=1).mean(axis=0), rtol=1e-10)
    assert found["test"].count == 100


# ---------------------------------------------------------------------------------------------------- the real data


@pytest.fixture(scope="module")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(real_data / "cifar100.npz", tmp_path_factory.mktemp("real"))


@pytest.mark.real_data
@pytest.mark.parametrize("layout", ["cifar-100-python", "folder"])
def test_real_layouts_are_the_same_data_set(layout: str, real: Dataset, real_data: Path, tmp_path: Path) -> None:
    dataset = load(real_data / layout, tmp_path / "cache")
    assert same(dataset, real) and dataset.name == real.name == "cifar100"
    sources.CIFAR100.check(dataset)


@pytest.mark.real_data
def test_real_digests(real: Dataset) -> None:
    assert {
        "train": sources.split_digest(real.train),
        "test": sources.split_digest(real.test),
    } == sources.CIFAR100_DIGESTS
    with pytest.raises(DataError, match="content digest differs"):
        changed = real.test.images.copy()
        changed[0, 0, 0, 0] ^= 1
        decoded = layouts.Decoded(
            {"train": real.train.images, "test": changed},
            {"train": real.train.labels, "test": real.test.labels},
            100,
            real.class_names,
        )
        sources.CIFAR100.check(sources._dataset(decoded, "x"))


@pytest.mark.real_data
def test_real_statistics(real: Dataset) -> None:
    """The check values of the study: channel mean, channel std, and the mean of the images' own std (ddof 1)."""
    found = sources.info(real)
    train = found["train"]
    np.testing.assert_allclose(train.mean, (0.50707516, 0.48654887, 0.44091784), atol=5e-9)
    np.testing.assert_allclose(train.std, (0.26733429, 0.25643846, 0.27615047), atol=5e-9)
    np.testing.assert_allclose(train.image_std, (0.2009, 0.1984, 0.2023), atol=5e-5)
    assert (train.count, train.class_min, train.class_max) == (50_000, 500, 500)
    assert (found["test"].count, found["test"].class_min, found["test"].class_max) == (10_000, 100, 100)


@pytest.mark.real_data
def test_unnamed_cifar100_is_known_by_its_content(real: Dataset, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "unnamed.npz",
        train_images=real.train.images[::-1],
        train_labels=real.train.labels[::-1].astype(np.uint8),
        test_images=real.test.images,
        test_labels=real.test.labels,
    )
    assert same(load(tmp_path / "unnamed.npz"), real)
