"""Where images come from: a name or a path -> Dataset, in one canonical order, decoded once and cached."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastcifar.data import download, layouts, procedural
from fastcifar.data.cache import Entry, cached, default_folder
from fastcifar.data.canonical import in_canonical_order
from fastcifar.data.dataset import SPLITS, Dataset, Split
from fastcifar.data.decoded import Decoded
from fastcifar.data.notes import nearest, note
from fastcifar.data.published import PUBLISHED, Published
from fastcifar.errors import DataError

NAMES = (*PUBLISHED, "procedural")


def load(data: str, *, mirror: str = "", cache: Path | None = None, progress: bool = True) -> Dataset:
    """The images that ``data`` names: cifar100, cifar10, procedural, or a path to any layout of ``layouts.ACCEPTED``.

    A published set is downloaded if the cache lacks it, from its official address or from ``mirror``: the http, https
    or file URL of the archive or of the folder that holds it. ``cache`` is the folder of the decoded copies (default:
    ``$FASTCIFAR_DATA``, else the user's cache folder). Raises DataError.
    """
    folder = cache if cache is not None else default_folder()
    if data == "procedural":
        return _from_entry(cached(folder, data, procedural.DIGEST, lambda: _to_entry(_procedural())))
    if data in PUBLISHED:
        return load_published(PUBLISHED[data], mirror=mirror, cache=folder, progress=progress)
    path = Path(data).expanduser()
    if not path.exists() and len(path.parts) < 2:
        names = [*NAMES, *(p.name for p in Path().iterdir())]
        raise DataError(
            f"data = {data!r} is neither a data set ({', '.join(NAMES)}) nor a file or folder here."
            f"{nearest(data, names)}"
        )
    source = layouts.locate(path)
    return _from_entry(cached(folder, _entry_name(source.path), source.fingerprint(), lambda: _decode(source)))


def load_published(published: Published, *, mirror: str, cache: Path, progress: bool) -> Dataset:
    """``published`` from the cache, else from the archive in it, else downloaded; kept if ``check`` accepts it."""

    def build() -> Entry:
        def decode(path: Path) -> Entry:
            dataset = in_canonical_order(layouts.locate(path).read(), published.name)
            published.check(dataset)
            if published.archive_md5s and _md5(path) not in published.archive_md5s:
                note(
                    f"classes, counts and shapes are those of {published.name}, but this is not byte for byte an "
                    "archive as published: packed anew, or altered"
                )
            return _to_entry(dataset)

        return download.obtain(
            published.url, mirror, cache / "downloads", decode, title=published.name, progress=progress
        )

    return _from_entry(cached(cache, published.name, str(published.digests), build))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else ""


def _decode(source: layouts.Source) -> Entry:
    try:
        dataset = in_canonical_order(source.read(), source.path.name.split(".")[0] or "images")
    except DataError as error:
        where = "" if str(source.path) in str(error) else f"{source.path}: "
        raise DataError(f"{where}{error}") from error
    for published in PUBLISHED.values():
        if dataset.class_names == published.class_names:
            try:
                published.check(dataset)
                dataset = replace(dataset, name=published.name)
            except DataError as error:
                note(f"{source.path} has the classes of {published.name}, but {error}: accuracies do not compare")
    return _to_entry(dataset)


def _procedural() -> Dataset:
    drawn = procedural.generate()
    images = {split: drawn[split][0] for split in SPLITS}
    labels = {split: drawn[split][1] for split in SPLITS}
    names, above, superclass_names = procedural.CLASS_NAMES, procedural.SUPERCLASS_OF, procedural.SUPERCLASS_NAMES
    dataset = in_canonical_order(Decoded(images, labels, len(names), names, above, superclass_names), "procedural")
    if dataset.digest != procedural.DIGEST:
        note("this machine draws other procedural images than the developers' did: accuracies do not compare")
    return dataset


def _entry_name(path: Path) -> str:
    """A file name for the cache that tells its source: two paths never share one."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", path.name.split(".")[0])[:40].strip("-")
    return f"{readable or 'images'}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"


def _to_entry(dataset: Dataset) -> Entry:
    arrays: dict[str, NDArray[Any]] = {}
    for name in SPLITS:
        split = getattr(dataset, name)
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    meta = {
        "name": dataset.name,
        "class_names": dataset.class_names,
        "superclass_names": dataset.superclass_names,
        "superclass_of": dataset.superclass_of,
        "digest": dataset.digest,
    }
    return Entry(arrays, meta)


def _from_entry(entry: Entry) -> Dataset:
    arrays, meta = entry.arrays, entry.meta
    return Dataset(
        meta["name"],
        Split(arrays["train_images"], arrays["train_labels"]),
        Split(arrays["test_images"], arrays["test_labels"]),
        tuple(meta["class_names"]),
        tuple(meta["superclass_names"]),
        tuple(meta["superclass_of"]),
        meta["digest"],
    )
