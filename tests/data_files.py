"""Small data sets written in every layout that fastcifar reads, and one of them as a published set."""

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastcifar.data import sources
from fastcifar.data.dataset import SPLITS as SPLIT_NAMES
from fastcifar.data.dataset import Dataset, Split, split_digest
from fastcifar.data.published import CIFAR10, CIFAR100, CIFAR100_SUPERCLASSES, Mirror, Published

Splits = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
FINE = CIFAR100.class_names
COARSE = tuple(sorted(CIFAR100_SUPERCLASSES))
COARSE_OF = tuple(
    next(i for i, name in enumerate(COARSE) if fine in CIFAR100_SUPERCLASSES[name].split()) for fine in FINE
)


def make_splits(seed: int = 0, num_classes: int = 100, per_class: int = 2) -> Splits:
    """Images of noise, in no order: `per_class` training images and one test image for each class."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in zip(SPLIT_NAMES, (per_class, 1), strict=True):
        labels = rng.permutation(np.repeat(np.arange(num_classes), count))
        splits[split] = (rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8), labels)
    return splits


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes byte strings as Python 2 did."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value: object) -> bytes:
    """A pickle as in the published files: with byte strings, and with NumPy's module path of that time."""
    out = io.BytesIO()
    _Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def planes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def python_files(splits: Splits, dump: Callable[[Any], bytes] = python2_pickle) -> dict[str, bytes]:
    """`{train, test, meta}` as in cifar-100-python."""
    files = {}
    for split, (images, labels) in splits.items():
        fine = labels.tolist()
        table = {
            b"filenames": [b"%d.png" % i for i in range(len(fine))],
            b"batch_label": b"batch 1 of 1",
            b"fine_labels": fine,
            b"coarse_labels": [COARSE_OF[label] for label in fine],
            b"data": planes(images),
        }
        files[split] = dump(table)
    names = {
        b"fine_label_names": [name.encode() for name in FINE],
        b"coarse_label_names": [name.encode() for name in COARSE],
    }
    return files | {"meta": dump(names)}


def binary_files(splits: Splits) -> dict[str, bytes]:
    """`{train.bin, test.bin, ...names.txt}` as in cifar-100-binary."""
    files = {}
    for split, (images, labels) in splits.items():
        coarse = np.array(COARSE_OF)[labels]
        files[f"{split}.bin"] = np.column_stack([coarse, labels, planes(images)]).astype(np.uint8).tobytes()
    files["fine_label_names.txt"] = "".join(f"{name}\n" for name in FINE).encode()
    files["coarse_label_names.txt"] = "".join(f"{name}\n" for name in COARSE).encode()
    return files


def python10_files(splits: Splits) -> dict[str, bytes]:
    """`{data_batch_1..5, test_batch, batches.meta}` as in cifar-10-batches-py."""
    parts = zip(*(np.array_split(array, 5) for array in splits["train"]), strict=True)
    tables = {f"data_batch_{i}": part for i, part in enumerate(parts, 1)} | {"test_batch": splits["test"]}
    files = {
        name: python2_pickle({b"labels": labels.tolist(), b"data": planes(images)})
        for name, (images, labels) in tables.items()
    }
    names = [name.encode() for name in CIFAR10.class_names]
    return files | {"batches.meta": python2_pickle({b"label_names": names, b"num_vis": 3072})}


def binary10_files(splits: Splits) -> dict[str, bytes]:
    """`{data_batch_1.bin..5, test_batch.bin, batches.meta.txt}` as in cifar-10-batches-bin."""
    parts = zip(*(np.array_split(array, 5) for array in splits["train"]), strict=True)
    tables = {f"data_batch_{i}.bin": part for i, part in enumerate(parts, 1)} | {"test_batch.bin": splits["test"]}
    files = {
        name: np.column_stack([labels, planes(images)]).astype(np.uint8).tobytes()
        for name, (images, labels) in tables.items()
    }
    return files | {"batches.meta.txt": ("\n".join(CIFAR10.class_names) + "\n\n").encode()}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive_bytes(kind: str, files: dict[str, bytes], inside: str = "cifar") -> bytes:
    """A tar with the files `inside/NAME`. `kind` is its compression: gz, bz2, xz or, without any, tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w" if kind == "tar" else f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def write_archive(path: Path, files: dict[str, bytes], inside: str = "cifar") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_archive_bytes(path.name.rsplit(".", 1)[-1], files, inside))
    return path


def write_npz(path: Path, splits: Splits, **more: Any) -> Path:
    arrays = {f"{split}_images": pair[0] for split, pair in splits.items()}
    arrays |= {f"{split}_labels": pair[1] for split, pair in splits.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **(arrays | {"label_names": np.array(FINE)} | more))
    return path


def write_folder(folder: Path, splits: Splits, names: tuple[str, ...] = FINE) -> Path:
    for split, (images, labels) in splits.items():
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            inside = folder / split / names[label]
            inside.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(inside / f"{i}.png")
    return folder


def _table(
    images: NDArray[np.uint8], labels: NDArray[np.integer[Any]], *, names: tuple[str, ...] | None = FINE, **more: Any
) -> Any:
    """The table of Hugging Face's files of `uoft-cs/cifar100`, or of `uoft-cs/cifar10` where there are ten names.

    Args:
        images: uint8 [N, 32, 32, 3], written as PNGs.
        labels: int [N].
        names: the names of the classes in the metadata; None for a table without metadata.
        more: further columns, and columns to replace; None leaves a column out.
    """
    import pyarrow

    pictures = []
    for i, image in enumerate(images):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        pictures.append({"bytes": out.getvalue(), "path": f"{i}.png"})
    label = "label" if names is not None and len(names) == 10 else "fine_label"
    columns: dict[str, Any] = {"img": pictures, label: labels.tolist()}
    features: dict[str, Any] = {"img": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    if label == "fine_label":
        columns["coarse_label"] = [COARSE_OF[int(i) % 100] for i in labels]
        features["coarse_label"] = {"names": COARSE, "_type": "ClassLabel"}
    columns = {name: column for name, column in (columns | more).items() if column is not None}
    table = pyarrow.table(columns)
    if names is not None:
        return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return table


def parquet_bytes(
    images: NDArray[np.uint8], labels: NDArray[np.integer[Any]], *, names: tuple[str, ...] | None = FINE, **more: Any
) -> bytes:
    """A Parquet file; see `_table`."""
    import pyarrow.parquet

    table = _table(images, labels, names=names, **more)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def arrow_bytes(
    images: NDArray[np.uint8], labels: NDArray[np.integer[Any]], *, as_file: bool = False, **more: Any
) -> bytes:
    """An Arrow file, by default a stream, as `datasets` saves it; see `_table`."""
    import pyarrow

    sink, table = io.BytesIO(), _table(images, labels, **more)
    with (pyarrow.ipc.new_file if as_file else pyarrow.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def parquet_files(splits: Splits, **more: Any) -> dict[str, bytes]:
    """`{train,test}-00000-of-00001.parquet`; `more` is as for `parquet_bytes`."""
    return {f"{split}-00000-of-00001.parquet": parquet_bytes(*pair, **more) for split, pair in splits.items()}


def published(splits: Splits, *urls: str | tuple[str, ...]) -> Published:
    """`splits` as a published data set, whose content is known and whose mirrors have their files at `urls`."""
    digests = {split: split_digest(Split(*pair)) for split, pair in splits.items()}
    counts = {split: len(pair[1]) for split, pair in splits.items()}
    mirrors = tuple(Mirror((url,) if isinstance(url, str) else url) for url in urls)
    return Published("tiny", mirrors, FINE, counts, digests)


SPLITS = make_splits()
SPLITS10 = make_splits(1, num_classes=10, per_class=5)


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


def first_image(folder: Path) -> Path:
    return sorted((folder / "train" / "cat").iterdir())[0]
