"""Decoding Parquet files as Hugging Face publishes them, and Arrow files as its library `datasets` saves them.

Both hold a table of encoded images and of class numbers, whose names are metadata.
"""

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.cifar_files import superclass_of
from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import Decoded, check_labels, how_to_convert, name_of, whole_numbers
from fastcifar.data.images import OtherSizeError, decode_images, side_of
from fastcifar.data.notes import listed
from fastcifar.data.paths import fit_in_memory, is_litter
from fastcifar.errors import DataError

INSTALL = "pip install 'fastcifar[parquet]'"
KINDS = {".parquet": "Parquet", ".arrow": "Arrow"}
"""What a file is, by its ending."""
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_IMAGES, _LABELS, _SUPERCLASSES = ("img", "image"), ("fine_label", "label"), ("coarse_label",)
"""The names that a column may have."""


def is_available() -> bool:
    """Whether pyarrow, which reads Parquet and Arrow files, is installed."""
    return importlib.util.find_spec("pyarrow") is not None


def _split_of(file: Path) -> str | None:
    """The split that a file's name names, as `train-00000-of-00001.parquet` does; None if it names none, or both."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    named = [split for split in SPLITS if split in words]
    return named[0] if len(named) == 1 else None


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder: `train-*.parquet`, or `train/*.parquet`; or the same of .arrow.

    Args:
        folder: the folder.

    Returns:
        For "train" and "test" the files, sorted; empty if one of the two has no file.
    """
    for ending in KINDS:
        here = _files(folder, ending)
        files = {
            split: [file for file in here if _split_of(file) == split] or _files(folder / split, ending)
            for split in SPLITS
        }
        if all(files.values()):
            return files
    return {}


def _files(folder: Path, ending: str) -> list[Path]:
    """Those of a folder with an ending, without what `datasets` keeps beside them: cache-FINGERPRINT.arrow."""
    if not folder.is_dir():
        return []
    found = (file for file in folder.iterdir() if file.suffix == ending and not file.name.startswith("cache-"))
    return sorted(file for file in found if not is_litter(file.name) and file.is_file())


@dataclass(frozen=True)
class _Rows:
    """What one file holds, a row an image.

    Attributes:
        images: the bytes of each image's own file.
        labels: int64 [N].
        names: the name of each class, in the order of the labels; None if the file has no names.
        has_coarse: whether there is a column of superclasses.
        coarse: int64 [N], the superclass of each image; all 0 without such a column.
        coarse_names: the name of each superclass; None if the file has no names.
        splits: the split of each image, if it was asked for.
    """

    images: list[bytes]
    labels: NDArray[np.int64]
    names: tuple[str, ...] | None
    has_coarse: bool
    coarse: NDArray[np.int64]
    coarse_names: tuple[str, ...] | None
    splits: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[Any, ...]:
        """What all files of one data set have in common."""
        return self.names, self.has_coarse, self.coarse_names


def read_parquet(path: Path, size: int | None = None) -> Decoded:
    """Reads the images and labels of Parquet or Arrow files.

    Args:
        path: a folder (see `split_files`), or a file that has both splits and names them in a column `split`.
        size: the side to which images are scaled, of whatever size they are; None takes them as they are, all of the
            size of the first one.

    Returns:
        The images and labels.

    Raises:
        DataError: pyarrow is missing, a file is damaged, an image is refused, or the files contradict each other.
        OSError: a file cannot be read.
    """
    if not is_available():
        raise DataError(
            f"{path}: reading Parquet and Arrow files needs a package that is not installed, pyarrow: {INSTALL}"
        )
    notes: tuple[str, ...] = ()
    if path.is_file():
        whole = _read(path, needs_split=True)
        rows = {split: [(path, _take(whole, split))] for split in SPLITS}
    else:
        files = split_files(path)
        rows = {split: [(file, _read(file)) for file in files[split]] for split in SPLITS}
        used = {file for split in SPLITS for file in files[split]}
        ending = next(iter(used)).suffix
        if others := [file.name for file in _files(path, ending) if file not in used]:
            notes = (f"{path} also holds {listed(others)}, of which nothing is used",)
    (first_file, first), *rest = rows["train"] + rows["test"]
    for file, part in rest:
        if part.kind != first.kind:
            raise DataError(f"{file} has other columns or names of classes than {first_file}")
    labels = {split: np.concatenate([part.labels for _, part in rows[split]]) for split in SPLITS}
    coarse = {split: np.concatenate([part.coarse for _, part in rows[split]]) for split in SPLITS}
    num_classes = check_labels(labels, len(first.names) if first.names else None, path)
    images = _decoded(rows, path, size)
    if not first.has_coarse:
        return Decoded(images, labels, num_classes, first.names, notes=notes)
    above = superclass_of(labels, coarse, num_classes, first.coarse_names, path)
    return Decoded(images, labels, num_classes, first.names, above, first.coarse_names, notes=notes)


def _decoded(
    rows: Mapping[str, Sequence[tuple[Path, _Rows]]], path: Path, size: int | None
) -> dict[str, NDArray[np.uint8]]:
    """The images of each split, which has at least one. Arguments and errors are those of `read_parquet`."""
    first_file, first = next((file, part) for file, part in rows["train"] if part.images)
    side = size or side_of(first.images[0], f"{first_file}, image 0", path)

    def decoded(file: Path, part: _Rows) -> NDArray[np.uint8]:
        return decode_images(part.images, lambda i: f"{file}, image {i}", side, scale=size is not None)

    try:
        return {split: np.concatenate([decoded(file, part) for file, part in rows[split]]) for split in SPLITS}
    except OtherSizeError as error:
        raise DataError(f"{error}; {how_to_convert(path)}") from error


def _take(rows: _Rows, split: str) -> _Rows:
    """The rows of one split."""
    index = [i for i, named in enumerate(rows.splits) if named == split]
    images = [rows.images[i] for i in index]
    return replace(rows, images=images, labels=rows.labels[index], coarse=rows.coarse[index], splits=())


def _read(file: Path, needs_split: bool = False) -> _Rows:
    import pyarrow

    try:
        with _opened(file) as opened:
            names = opened.schema.names
            picture = _column(names, _IMAGES, file, "an image")
            label = _column(names, _LABELS, file, "a label")
            coarse = next((name for name in _SUPERCLASSES if name in names), None)
            if needs_split and "split" not in names:
                raise DataError(
                    f"{file} does not say which images are for training and which for the test: it has no column "
                    "'split'. Name a folder that holds train-*.parquet and test-*.parquet"
                )
            if not fit_in_memory(opened.num_bytes + opened.num_rows * 32 * 32 * 3):
                raise DataError(f"{file} claims {opened.num_rows:,} images, which do not fit in this machine's memory")
            table = opened.read([picture, label, *filter(None, [coarse]), *["split"] * needs_split])
            features = _features(opened.schema.metadata)
        labels = _numbers(table, label, file)
        return _Rows(
            _pictures(table[picture].combine_chunks(), pyarrow.types, f"{file}: the column {picture!r}"),
            labels,
            _names(features, label, file),
            coarse is not None,
            _numbers(table, coarse, file) if coarse else np.zeros_like(labels),
            _names(features, coarse, file) if coarse else None,
            tuple(table["split"].to_pylist()) if needs_split else (),
        )
    except (DataError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(file, error) from error
    except Exception as error:  # pyarrow raises many kinds of errors on damaged files
        raise _damaged(file, error) from error


@dataclass(frozen=True)
class _Opened:
    """A file whose columns can be read.

    Attributes:
        schema: its columns and metadata, as pyarrow has them.
        num_rows: the number of its rows.
        num_bytes: the size of its columns in memory.
        read: names of columns -> the table.
    """

    schema: Any
    num_rows: int
    num_bytes: int
    read: Callable[[list[str]], Any]


@contextmanager
def _opened(file: Path) -> Iterator[_Opened]:
    import pyarrow.ipc
    import pyarrow.parquet

    if file.suffix != ".arrow":
        with pyarrow.parquet.ParquetFile(file) as opened:
            about = opened.metadata
            size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            yield _Opened(opened.schema_arrow, about.num_rows, size, lambda columns: opened.read(columns=columns))
        return
    if not fit_in_memory(file.stat().st_size):
        raise DataError(f"{file} does not fit in this machine's memory")
    with open(file, "rb") as stream:
        is_stream = stream.read(6) != b"ARROW1"
        stream.seek(-min(len(_END_OF_STREAM), file.stat().st_size), os.SEEK_END)
        if is_stream and stream.read() != _END_OF_STREAM:  # pyarrow takes a stream cut between two batches for whole
            raise EOFError("its end is missing")
        stream.seek(0)
        reader = pyarrow.ipc.open_stream(stream) if is_stream else pyarrow.ipc.open_file(stream)
        table = reader.read_all()
        yield _Opened(table.schema, table.num_rows, table.nbytes, table.select)


def _pictures(column: Any, types: Any, where: str) -> list[bytes]:
    """The images of a column, which is of bytes or of structs with a field `bytes`."""
    kind = column.type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if column.null_count:
        raise DataError(f"{where} lacks {column.null_count:,} images, or has only their paths")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise DataError(f"{where} holds no images, but {kind}")
    found: list[bytes] = column.to_pylist()
    return found


def _damaged(file: Path, error: Exception) -> DataError:
    kind, why = KINDS.get(file.suffix, "Parquet"), " ".join(str(error).split())
    return DataError(f"{file} is not a whole {kind} file ({why}): download or copy it again")


def _column(found: Sequence[str], wanted: Sequence[str], file: Path, what: str) -> str:
    for name in wanted:
        if name in found:
            return name
    raise DataError(f"{file} has no column for {what}, {' or '.join(wanted)}; it has {listed(list(found))}")


def _numbers(table: Any, column: str, file: Path) -> NDArray[np.int64]:
    values = table[column]
    if values.null_count:
        raise DataError(f"{file}: {values.null_count:,} rows have no {column}")
    return whole_numbers(np.asarray(values.to_numpy()), f"{file}: {column}")


def _features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """What the library `datasets` writes about each column into the metadata of a file; empty if there is nothing."""
    try:
        found = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(features: Mapping[str, Any], column: str, file: Path) -> tuple[str, ...] | None:
    about = features.get(column)
    names = about.get("names") if isinstance(about, dict) else None
    return tuple(name_of(name, f"{file}: {column}") for name in names) if isinstance(names, list) and names else None
