"""What a path holds, and its images: the published CIFAR files, an .npz or an image folder -> arrays.

Nothing here trusts its input: archives are read in memory by file name alone and never extracted, pickles go through
an unpickler that can build byte strings, lists, dicts and one plain array, and every count, shape and label is checked.
"""

import difflib
import hashlib
import io
import lzma
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.store import note
from fastcifar.errors import DataError

SPLITS = ("train", "test")
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar")
ACCEPTED = (
    "the published archive (cifar-100-python.tar.gz, cifar-100-binary.tar.gz, cifar-10-python.tar.gz, "
    "cifar-10-binary.tar.gz), the folder extracted from one, an .npz (train_images, train_labels, test_images, "
    "test_labels), or an image folder ({train,test}/<class>/*.png)"
)
_LARGEST_FILE = 512 * 2**20  # bytes; the largest published file has 155 MB


@dataclass(frozen=True)
class Decoded:
    """Images and labels of both splits as found: any order, names and superclasses only where the layout has them."""

    images: Mapping[str, NDArray[np.uint8]]  # "train", "test": [N, 32, 32, 3]
    labels: Mapping[str, NDArray[np.int64]]  # [N]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    superclass_of: tuple[int, ...] | None = None  # -1 for a class without images
    superclass_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Version:
    """The files of one published version, found by name."""

    title: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[str, ...]  # the class names' files, which may be missing; superclass names last
    superclasses: bool
    binary: bool

    @property
    def required(self) -> tuple[str, ...]:
        return self.train + self.test


_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
VERSIONS = (
    Version("CIFAR-100, python version", ("train",), ("test",), ("meta",), True, False),
    Version(
        "CIFAR-100, binary version",
        ("train.bin",),
        ("test.bin",),
        ("fine_label_names.txt", "coarse_label_names.txt"),
        True,
        True,
    ),
    Version("CIFAR-10, python version", _TEN, ("test_batch",), ("batches.meta",), False, False),
    Version(
        "CIFAR-10, binary version",
        tuple(f"{name}.bin" for name in _TEN),
        ("test_batch.bin",),
        ("batches.meta.txt",),
        False,
        True,
    ),
)
_EXTRACTED = {  # where the published archives put their files
    "cifar-100-python": "cifar-100-python",
    "cifar-100-binary": "cifar-100-binary",
    "cifar-10-python": "cifar-10-batches-py",
    "cifar-10-binary": "cifar-10-batches-bin",
}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the system says of a file that cannot be read, as a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


@dataclass(frozen=True)
class Source:
    """One set of images on this machine, recognised but not yet read."""

    path: Path
    layout: str  # "archive", "npz", "image folder" or the title of a published version
    version: Version | None = None

    def fingerprint(self) -> str:
        """A digest of the names, sizes and times of its files: another one means that they must be read anew."""
        with _reading(self.path):
            if self.path.is_file():
                files = [("", self.path.stat())]
            elif self.version:
                present = (self.path / name for name in self.version.required + self.version.names)
                files = [(file.name, file.stat()) for file in present if file.is_file()]
            else:  # os.scandir: 60,000 images in 0.2 s, where Path.glob takes 0.6 s
                folders = [(s, folder) for s in SPLITS for folder in _entries(self.path / s) if folder.is_dir()]
                files = [(f"{s}/{f.name}/{file.name}", file.stat()) for s, f in folders for file in _entries(f)]
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for name, stat in sorted(files, key=lambda file: file[0]):
            digest.update(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
        return digest.hexdigest()

    def read(self) -> Decoded:
        """All images and labels, checked. Raises DataError."""
        with _reading(self.path):
            if self.layout == "npz":
                return _read_npz(self.path)
            if self.layout == "archive":
                return _read_archive(self.path)
            if self.version is None:
                return _read_image_folder(self.path)
            paths = (self.path / name for name in self.version.required + self.version.names)
            return _read_published(self.version, {p.name: p.read_bytes() for p in paths if p.is_file()}, self.path)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`` Did you mean X?`` where something known is near, else nothing."""
    match = difflib.get_close_matches(wrong, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


# ---------------------------------------------------------------------------------------------------- recognising


def locate(path: Path) -> Source:
    """Recognise what ``path`` holds: a file, a folder, or a folder that holds one such. Raises DataError."""
    with _reading(path):
        if not path.exists():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f"no such file or folder: {path}.{nearest(path.name, siblings)}")
        if not path.is_file():
            return _locate_in_folder(path)
        if source := _locate_file(path):
            return source
        raise DataError(f"{path} is neither an .npz nor a tar archive.{_part_of(path)} Accepted: {ACCEPTED}.")


def _locate_in_folder(path: Path) -> Source:
    found = _locate_folder(path)
    if not found:
        for child in sorted(path.iterdir()):
            if child.is_dir():
                found += _locate_folder(child)
            elif child.name.endswith((".npz", *ARCHIVE_SUFFIXES)) and (source := _locate_file(child)):
                found.append(source)
    folders = {source.path.name for source in found}
    found = [s for s in found if _EXTRACTED.get(s.path.name.split(".")[0]) not in folders - {s.path.name}]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "".join(f"\n  {source.path}  ({source.layout})" for source in found)
        raise DataError(f"{path} holds more than one set of images; name one of them:{listed}")
    raise _nothing_found(path)


def _part_of(path: Path) -> str:
    """`` Name its folder...`` where ``path`` is one piece of a whole beside it, else nothing."""
    for source in _locate_folder(path.parent):
        if path.name in (source.version.required + source.version.names if source.version else SPLITS):
            return f" It is one part of {path.parent} ({source.layout}): name that folder."
    return ""


def _locate_file(path: Path) -> Source | None:
    if zipfile.is_zipfile(path):
        return Source(path, "npz")
    if path.name.endswith(ARCHIVE_SUFFIXES) or _is_tar(path):
        return Source(path, "archive")
    return None


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError):
        return False


def _locate_folder(folder: Path) -> list[Source]:
    found = []
    for version in VERSIONS:
        if all((folder / name).is_file() for name in version.required):
            found.append(Source(folder, version.title, version))
    if all((folder / split).is_dir() for split in SPLITS):
        found.append(Source(folder, "image folder"))
    return found


def _nothing_found(path: Path) -> DataError:
    names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    hints = (hint for name in names if (hint := _hint(path, name)))
    hint = _part_of(path).lstrip() or next(hints, "")
    return DataError(
        f"{path} holds no images that fastcifar knows.\n"
        f"  looked for: {ACCEPTED}\n"
        f"  found: {shown or 'nothing'}" + (f"\n  {hint}" if hint else "")
    )


def _hint(path: Path, name: str) -> str:
    """What the entry ``name`` of a folder without images may be a part of."""
    plain = name.rstrip("/")
    if name != plain and plain in SPLITS:
        return f"{name} is there, but {SPLITS[1 - SPLITS.index(plain)]}/ is missing"
    versions = {required: version for version in VERSIONS for required in version.required}
    if name == plain and plain in versions:
        missing = [other for other in versions[plain].required if not (path / other).is_file()]
        return f"{plain} belongs to {versions[plain].title}, but {', '.join(missing)} is missing"
    wanted = [*SPLITS, *_EXTRACTED.values()] if name != plain else list(versions)
    near = difflib.get_close_matches(plain.lower(), wanted, 1, 0.75)
    near += [split for split in SPLITS if name != plain and plain.lower().startswith(split)]
    return f"is {name} meant to be {near[0]}{name[len(plain) :]}?" if near else ""


# ---------------------------------------------------------------------------------------------------- published files


def _read_archive(path: Path) -> Decoded:
    wanted = {name for version in VERSIONS for name in version.required + version.names}
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if not member.isfile() or name not in wanted:
                    continue
                if member.size > _LARGEST_FILE:
                    raise DataError(f"{path}: {member.name} claims {member.size:,} bytes, more than any CIFAR file has")
                if name in files:
                    raise DataError(f"{path} holds more than one file named {name}")
                content = archive.extractfile(member)
                files[name] = content.read() if content else b""
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is not a whole archive ({error}): download or copy it again") from error
    for version in VERSIONS:
        if all(name in files for name in version.required):
            return _read_published(version, files, path)
    listed = ", ".join(sorted(files)) or "none of them"
    raise DataError(
        f"{path} holds no published version of CIFAR: each has one of these sets of files, of which it has {listed}\n  "
        + "\n  ".join(f"{version.title}: {', '.join(version.required)}" for version in VERSIONS)
    )


def _read_published(version: Version, files: Mapping[str, bytes], where: Path) -> Decoded:
    images, labels, coarse = {}, {}, {}
    for split, names in zip(SPLITS, (version.train, version.test), strict=True):
        read = _read_binary if version.binary else _read_pickle
        parts = [read(files[name], version.superclasses, f"{where}: {name}") for name in names]
        images[split] = np.concatenate([part[0] for part in parts])
        labels[split] = np.concatenate([part[1] for part in parts])
        coarse[split] = np.concatenate([part[2] for part in parts])
    class_names, superclass_names = _published_names(version, files, where)
    num_classes = len(class_names or ()) or (100 if version.superclasses else 10)
    _check_labels(labels, num_classes, where)
    if not version.superclasses:
        return Decoded(images, labels, num_classes, class_names)
    superclass_of = _superclass_of(labels, coarse, num_classes, where)
    if superclass_names and max(superclass_of, default=0) >= len(superclass_names):
        raise DataError(
            f"{where}: superclass label {max(superclass_of)}, but only {len(superclass_names)} superclass names"
        )
    return Decoded(images, labels, num_classes, class_names, superclass_of, superclass_names)


def _read_binary(
    content: bytes, superclasses: bool, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Records of (superclass byte,) class byte, 1024 red, 1024 green, 1024 blue."""
    width = 3072 + 1 + superclasses
    if not content or len(content) % width:
        raise DataError(f"{where} has {len(content):,} bytes, not a multiple of the {width} of one image: cut short?")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
    return _from_planes(records[:, -3072:]), records[:, -3073].astype(np.int64), records[:, 0].astype(np.int64)


def _from_planes(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read_pickle(
    content: bytes, superclasses: bool, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    table = _unpickle(content, where)
    rows = table.get("data")
    if not isinstance(rows, _Array):
        raise DataError(f"{where}: no array under the key 'data'; found {', '.join(map(repr, table)) or 'nothing'}")
    images = _from_planes(rows.to_numpy(where))
    keys = ("fine_labels", "coarse_labels") if superclasses else ("labels", "labels")
    fine, coarse = (_label_list(table, key, len(images), where) for key in keys)
    return images, fine, coarse


def _label_list(table: Mapping[str, Any], key: str, count: int, where: str) -> NDArray[np.int64]:
    values = table.get(key)
    if not isinstance(values, list) or len(values) != count or not all(type(value) is int for value in values):
        raise DataError(f"{where}: {key!r} is not a list of {count:,} whole numbers, one an image")
    if values and not 0 <= min(values) <= max(values) < 2**31:
        raise DataError(f"{where}: {key!r} holds a label out of range")
    return np.array(values, dtype=np.int64)


def _published_names(
    version: Version, files: Mapping[str, bytes], where: Path
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    found: list[tuple[str, ...] | None]
    if version.binary:
        found = [
            tuple(_text(line, f"{where}: {name}") for line in files[name].splitlines() if line.strip())
            if name in files
            else None
            for name in version.names
        ]
    else:
        name = version.names[0]
        keys = ("fine_label_names", "coarse_label_names") if version.superclasses else ("label_names",)
        if name not in files:
            return None, None
        table = _unpickle(files[name], f"{where}: {name}")
        found = []
        for key in keys:
            values = table.get(key)
            if not isinstance(values, list) or not values:
                raise DataError(f"{where}: {name} has no list of names under {key!r}")
            found.append(tuple(_text(value, f"{where}: {name}") for value in values))
    return found[0], found[1] if len(found) > 1 else None


def _text(value: object, where: str) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        text = None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: {value!r} is not a name")
    return text.strip()


def _superclass_of(
    labels: Mapping[str, NDArray[np.int64]], coarse: Mapping[str, NDArray[np.int64]], num_classes: int, where: Path
) -> tuple[int, ...]:
    """One superclass a class, the same for all of its images. Raises DataError where they disagree."""
    fine = np.concatenate([labels[split] for split in SPLITS])
    above = np.concatenate([coarse[split] for split in SPLITS])
    table = np.full(num_classes, -1, dtype=np.int64)
    table[fine] = above
    if (wrong := np.flatnonzero(table[fine] != above)).size:
        label = int(fine[wrong[0]])
        seen = sorted(set(above[fine == label].tolist()))
        raise DataError(f"{where}: images of class {label} lie in several superclasses: {seen}")
    return tuple(table.tolist())


# ---------------------------------------------------------------------------------------------------- pickles


class _Array:
    """Stands in for numpy.ndarray, and for the call that makes one: it takes the state down and runs nothing."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self, where: str) -> NDArray[np.uint8]:
        """The rows, uint8 [N, 3072]."""
        match self.state:
            case (_, (int() as rows, 3072), _DType(code="u1"), False | 0, bytes() as raw) if len(raw) == rows * 3072:
                return np.frombuffer(raw, dtype=np.uint8).reshape(rows, 3072)
            case (_, shape, _DType(code=code), *_):
                raise DataError(f"{where}: 'data' is an array of {shape} {code}, not N x 3072 bytes (u1) in rows")
        raise DataError(f"{where}: 'data' is not a plain array")


class _DType:
    """Stands in for numpy.dtype."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: nothing that one-byte numbers need."""


class _Bytes:
    """Stands in for _codecs.encode, by which Python 3 writes byte strings for Python 2."""

    def __new__(cls, text: object = "", encoding: object = "latin1") -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"byte string encoded as {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        """There, like the others', so that no pickle can set attributes of the class."""


class _Unpickler(pickle._Unpickler):
    """Builds byte strings, numbers, lists, dicts and stand-ins of an array; refuses every other global.

    Python's own implementation, not the one in C, which takes gigabytes for one flipped bit in a memo index and, on the
    published training file, is no faster (0.2 s).
    """

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _Bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"it asks for {module}.{name}, which no CIFAR file needs. It was not run; get the data from elsewhere"
            ) from None


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        table = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where} is not a CIFAR pickle: {error}") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise DataError(f"{where} is not a CIFAR pickle, or damaged ({type(error).__name__}: {error})") from error
    if not isinstance(table, dict):
        raise DataError(f"{where} is not a CIFAR pickle: it holds a {type(table).__name__}, not a dict")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in table.items()}


# ---------------------------------------------------------------------------------------------------- npz


def _read_npz(path: Path) -> Decoded:
    images, labels = {}, {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in (f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")):
                if key not in archive:
                    raise DataError(
                        f"{path} has no array {key!r}; it holds {', '.join(archive.files) or 'nothing'}."
                        f"{nearest(key, archive.files)}"
                    )
            for split in SPLITS:
                images[split] = _check_images(archive[f"{split}_images"], f"{path}: {split}_images")
                labels[split] = _check_label_array(archive[f"{split}_labels"], f"{path}: {split}_labels")
                if len(images[split]) != len(labels[split]):
                    raise DataError(
                        f"{path}: {len(images[split]):,} {split}_images, but {len(labels[split]):,} {split}_labels"
                    )
            names = archive["label_names"] if "label_names" in archive else None
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged or no .npz of plain arrays ({error})") from error
    class_names = None
    if names is not None:
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise DataError(f"{path}: label_names is {_describe(names)}, not a list of strings")
        class_names = tuple(_text(name, f"{path}: label_names") for name in names.tolist())
    num_classes = _check_labels(labels, len(class_names) if class_names else None, path)
    return Decoded(images, labels, num_classes, class_names)


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _check_images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    hint = ""
    if images.ndim == 4 and images.shape[1:] == (3, 32, 32):
        hint = "; transpose(0, 2, 3, 1) makes it so"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"{where} is {_describe(images)}, not uint8 [N, 32, 32, 3]{hint}")
    return np.ascontiguousarray(images)


def _check_label_array(labels: NDArray[Any], where: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{where} is {_describe(labels)}, not whole numbers [N]")
    return labels.astype(np.int64)


def _check_labels(labels: Mapping[str, NDArray[np.int64]], num_classes: int | None, where: Path) -> int:
    """How many classes there are: ``num_classes``, else as many as the labels, which must start at 0, tell."""
    for split in SPLITS:
        if not len(labels[split]):
            raise DataError(f"{where}: the {split} split holds no image")
        low, high = int(labels[split].min()), int(labels[split].max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            wrong = low if low < 0 else high
            allowed = f"0 to {num_classes - 1}" if num_classes is not None else "0 and above"
            raise DataError(f"{where}: label {wrong} in the {split} split; allowed: {allowed}")
    if num_classes is not None:
        return num_classes
    if first := min(int(labels[split].min()) for split in SPLITS):
        raise DataError(f"{where}: labels start at {first}, not at 0")
    return 1 + max(int(labels[split].max()) for split in SPLITS)


# ---------------------------------------------------------------------------------------------------- image folder


def _read_image_folder(folder: Path) -> Decoded:
    class_names = {split: sorted(p.name for p in (folder / split).iterdir() if p.is_dir()) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        if missing := [name for name in class_names[split] if name not in class_names[other]]:
            raise DataError(
                f"{folder}: class {missing[0]!r} is in {split}/ but not in {other}/ ({len(missing)} such)."
                f"{nearest(missing[0], class_names[other])}"
            )
    if not class_names["train"]:
        raise DataError(f"{folder}: train/ and test/ hold no class folders")
    images, labels, ignored = {}, {}, []
    for split in SPLITS:
        files, targets = [], []
        for label, name in enumerate(class_names[split]):
            inside = sorted(p for p in (folder / split / name).iterdir() if not p.name.startswith("."))
            usable = [p for p in inside if p.suffix.lower() in _image_suffixes() and p.is_file()]
            ignored += sorted(set(inside) - set(usable))
            if not usable:
                raise DataError(f"{folder / split / name} holds no image")
            files += usable
            targets += [label] * len(usable)
        images[split] = _open_images(files)
        labels[split] = np.array(targets, dtype=np.int64)
    if ignored:
        note(f"ignored {len(ignored)} of {folder} that are no image files, the first {ignored[0]}")
    return Decoded(images, labels, len(class_names["train"]), tuple(class_names["train"]))


def _image_suffixes() -> set[str]:
    from PIL import Image

    return set(Image.registered_extensions())


def _open_images(files: Sequence[Path]) -> NDArray[np.uint8]:
    images = np.empty((len(files), 32, 32, 3), dtype=np.uint8)

    def open_chunk(start: int) -> None:
        for i in range(start, min(start + 256, len(files))):
            images[i] = _open_image(files[i])

    with ThreadPoolExecutor() as pool:
        list(pool.map(open_chunk, range(0, len(files), 256)))  # the first problem in order of the files is raised
    return images


def _open_image(file: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.size != (32, 32):
                raise DataError(f"{file} has {image.width}x{image.height} pixels; only 32x32 is taken")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{file} holds {frames} pictures: which one is meant?")
            if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() != (255, 255):
                raise DataError(f"{file} is partly transparent: lay it on a colour first")
            if image.mode not in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"):
                raise DataError(f"{file} is of mode {image.mode}, which has no exact 8-bit RGB")
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise DataError(f"{file} is damaged or no image ({error})") from error
