"""Loading images: a name or a path -> `Dataset`, in canonical order. Images are decoded once, and then cached."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import download, layouts, parquet, procedural
from fastcifar.data.cache import FORMAT, FORMAT_WITHOUT_PLACES, Entry, NoHomeError, cached, default_folder, holds
from fastcifar.data.canonical import in_canonical_order
from fastcifar.data.dataset import SPLITS, Dataset, Split
from fastcifar.data.decoded import Decoded
from fastcifar.data.notes import message, nearest, note
from fastcifar.data.paths import kind_of, reading, user_path
from fastcifar.data.published import PUBLISHED, Mirror, Published
from fastcifar.errors import DataError
from fastcifar.text import printable

NAMES = (*PUBLISHED, "procedural")


def load(
    data: str | os.PathLike[str], *, mirror: str = "", cache: Path | None = None, progress: bool = True
) -> Dataset:
    """Loads a data set.

    Notes on the source (ignored files, classes without images) go to stderr each time it is loaded.

    Args:
        data: cifar100, cifar10, procedural, or a path to any layout of `accepted.ACCEPTED`.
        mirror: where to download a published data set that is not in the cache: the http, https or file URL of the
            archive, or of the folder that holds it. If empty, its known mirrors, in order.
        cache: the folder of the decoded copies. None is `$FASTCIFAR_DATA`, or else the user's cache folder.
        progress: whether the progress of a download is shown.

    Returns:
        The data set, in canonical order.

    Raises:
        DataError: the images cannot be found, downloaded or read, or are not what their name says.
        UsageError: `mirror` is not a URL.
    """
    data = os.fspath(data)
    with _told(data):
        if data in PUBLISHED:
            folder = cache if cache is not None else default_folder()
            return load_published(PUBLISHED[data], mirror=mirror, cache=folder, progress=progress)
        folder_or_none = cache if cache is not None else _folder_if_any()
        if data == "procedural":
            if folder_or_none is None:
                return _procedural()
            return _from_entry(cached(folder_or_none, data, procedural.DIGEST, lambda: _to_entry(_procedural())))
        source = layouts.locate(_existing_path(data))
        if folder_or_none is None:
            return _from_entry(_decode(source))
        name, fingerprint = _entry_name(source.path), source.fingerprint()
        return _from_entry(cached(folder_or_none, name, fingerprint, lambda: _decode(source)))


def absolute(data: str | os.PathLike[str]) -> str:
    """Makes `data` independent of the working folder.

    Args:
        data: as for `load`.

    Returns:
        A name unchanged; a path made absolute, with `~` expanded and links kept.

    Raises:
        DataError: `data` is not a path (see `paths.user_path`), or the working folder does not exist any more.
    """
    text = os.fspath(data)
    if text in NAMES:
        return text
    path = user_path(text)
    with reading(path):
        return str(path.absolute())


def download_size(data: str, *, mirror: str = "", cache: Path | None = None) -> int:
    """How much `load` would download.

    Args:
        data: as for `load`.
        mirror: as for `load`. Nothing is downloaded from a file URL.
        cache: as for `load`.

    Returns:
        The size of what the first mirror has, in bytes, or 0.

    Raises:
        DataError: the cache cannot be read.
        UsageError: `mirror` is not a URL.
    """
    if data not in PUBLISHED or mirror.lower().startswith("file:"):
        return 0
    published = PUBLISHED[data]
    size = _mirrors(published, mirror)[0][0].size
    folder = cache if cache is not None else _folder_if_any(tell=False)
    if folder is None:
        return size
    with reading(folder):
        kept = download.kept_path(folder / "downloads", published.name).exists()
        held = holds(folder, published.name, str(published.digests), (FORMAT, FORMAT_WITHOUT_PLACES))
        return 0 if kept or held else size


def announce_download(data: str, mirror: str = "") -> None:
    """Says on stderr how much `load` will download, from where and where to. If it will download nothing, it is silent.

    Args:
        data: as for `load`.
        mirror: as for `load`.

    Raises:
        DataError: the cache cannot be read.
        UsageError: `mirror` is not a URL.
    """
    size = download_size(data, mirror=mirror)
    if not size:
        return
    try:
        where = f" to {default_folder()}"
    except DataError:  # there is no folder for it; loading the images will say so
        where = ""
    host = _mirrors(PUBLISHED[data], mirror)[0][0].host
    note(
        f"{data} is not here yet: {size / 2**20:,.0f} MiB will be downloaded from {host}{where} "
        "(--data PATH takes a copy that is here, FASTCIFAR_DATA=DIR names another folder)"
    )


def _mirrors(published: Published, mirror: str) -> tuple[tuple[Mirror, ...], str]:
    """The mirrors that this machine can read, and what the user could do to read the others; empty if it reads all.

    Raises:
        UsageError: `mirror` is not a URL.
        DataError: it can read none.
    """
    mirrors = download.mirrors_at(mirror, published.mirrors)
    if parquet.is_available():
        return mirrors, ""
    readable = tuple(place for place in mirrors if not place.is_parquet)
    others = [place for place in mirrors if place.is_parquet]
    if not others:
        return readable, ""
    hint = f"{others[0].host} has Parquet files, which need pyarrow ({parquet.INSTALL})"
    if not readable:
        raise DataError(f"{published.name} cannot be read from {others[0]}: {hint}")
    return readable, hint


def load_published(published: Published, *, mirror: str, cache: Path, progress: bool) -> Dataset:
    """Loads a published data set from the cache, or from the archive in the cache, or downloads it.

    A downloaded archive is kept only if `Published.check` accepts its images.

    Args:
        published: the data set.
        mirror: as for `load`.
        cache: the folder of the decoded copies and of the archive.
        progress: as for `load`.

    Returns:
        The data set.

    Raises:
        DataError: the archive cannot be downloaded, or holds other images.
        UsageError: `mirror` is not a URL.
    """

    def build() -> Entry:
        def decode(path: Path) -> Entry:
            decoded = layouts.locate(path).read()
            dataset = in_canonical_order(decoded, published.name)
            published.check(dataset)
            notes = list(decoded.notes)
            if published.archive_md5s and _md5(path) not in published.archive_md5s:
                notes.append(
                    f"classes, counts and shapes are those of {published.name}, but this is not byte for byte an "
                    "archive as published: packed anew, or altered"
                )
            return _to_entry(dataset, notes)

        mirrors, hint = _mirrors(published, mirror)
        return download.obtain(mirrors, cache / "downloads", decode, title=published.name, hint=hint, progress=progress)

    # If making a new entry needs the network, an old entry without `places` is used instead.
    archive_is_here = download.kept_path(cache / "downloads", published.name).exists()
    formats = (FORMAT,) if archive_is_here else (FORMAT, FORMAT_WITHOUT_PLACES)
    return _from_entry(cached(cache, published.name, str(published.digests), build, formats))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else ""


@contextmanager
def _told(data: str) -> Iterator[None]:
    """A context in which errors of the system and lack of memory raise DataError, with a short, printable message."""
    try:
        with reading(Path(data.replace("\0", " "))):
            yield
    except DataError as error:
        if (text := message(str(error))) != str(error):
            raise type(error)(text) from error
        raise
    except MemoryError as error:
        raise DataError(f"{message(data)} does not fit in this machine's memory") from error


def _folder_if_any(tell: bool = True) -> Path | None:
    try:
        return default_folder()
    except NoHomeError as error:
        if tell:
            note(f"{error} Decoding without a cache.")
        return None


def _existing_path(data: str) -> Path:
    path = user_path(data)
    if len(path.parts) < 2 and kind_of(path) == "nothing" and not path.is_symlink():
        names = [*NAMES, *os.listdir()]
        raise DataError(
            f"data = {data!r} is neither a data set ({', '.join(NAMES)}) nor a file or folder here."
            f"{nearest(data, names)}"
        )
    return path


# ---------------------------------------------------------------------------------------------------- cache entries


def _decode(source: layouts.Source) -> Entry:
    before = source.fingerprint()
    try:
        decoded = source.read()
        name = printable(source.path.name.split(".")[0]) or "images"
        # A published name is for images that `check` accepts below: normalisation goes by it.
        dataset = in_canonical_order(decoded, f"own {name}" if name in PUBLISHED else name)
    except DataError as error:
        where = "" if str(source.path) in str(error) else f"{source.path}: "
        raise DataError(f"{where}{error}") from error
    if source.fingerprint() != before:
        raise DataError(f"{source.path} changed while it was read: start again once nothing writes to it")
    notes = list(decoded.notes)
    for published in PUBLISHED.values():
        if dataset.class_names == published.class_names:
            try:
                published.check(dataset)
                dataset = replace(dataset, name=published.name)
            except DataError as error:
                notes.append(
                    f"{source.path} has the classes of {published.name}, but {error}: accuracies do not compare"
                )
    empty = np.flatnonzero(np.bincount(dataset.train.labels, minlength=dataset.num_classes) == 0)
    if empty.size:
        notes.append(
            f"{source.path}: labels go from 0 to {dataset.num_classes - 1}, but {len(empty):,} of these "
            f"{dataset.num_classes:,} classes have no training image, the first {dataset.class_names[empty[0]]!r}; the "
            "network has an output for each of them all the same"
        )
    return _to_entry(dataset, notes)


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
    """The name of a path's entry in the cache. It shows the path's own name, and no two paths share it."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", path.name.split(".")[0])[:40].strip("-")
    return f"{readable or 'images'}-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]}"


def _to_entry(dataset: Dataset, notes: list[str] | None = None) -> Entry:
    arrays: dict[str, NDArray[Any]] = {}
    for name in SPLITS:
        split: Split = getattr(dataset, name)
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
        if split.places is not None:
            arrays[f"{name}_places"] = split.places
        if split.files is not None:
            arrays[f"{name}_files"] = np.frombuffer("\n".join(split.files).encode(), np.uint8)
    meta = {
        "name": dataset.name,
        "class_names": dataset.class_names,
        "superclass_names": dataset.superclass_names,
        "superclass_of": dataset.superclass_of,
        "digest": dataset.digest,
        "notes": notes or [],
    }
    return Entry(arrays, meta)


def _from_entry(entry: Entry) -> Dataset:
    meta = entry.meta
    for text in meta.get("notes", ()):
        note(text)
    return Dataset(
        meta["name"],
        _split_of(entry, "train"),
        _split_of(entry, "test"),
        tuple(meta["class_names"]),
        tuple(meta["superclass_names"]),
        tuple(meta["superclass_of"]),
        meta["digest"],
    )


def _split_of(entry: Entry, name: str) -> Split:
    arrays = entry.arrays
    files = arrays.get(f"{name}_files")
    return Split(
        arrays[f"{name}_images"],
        arrays[f"{name}_labels"],
        arrays.get(f"{name}_places"),
        None if files is None else tuple(files.tobytes().decode().split("\n")),  # a printable name has no line break
    )
