"""Recognising what a path holds, in one of the layouts of `accepted.ACCEPTED`. No input is trusted."""

import difflib
import hashlib
import os
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastcifar.data.accepted import ACCEPTED, ARCHIVE_SUFFIXES
from fastcifar.data.archives import LARGEST_FILE, read_archive
from fastcifar.data.cifar_files import EXTRACTED, VERSIONS, Version, read_published
from fastcifar.data.dataset import SPLITS
from fastcifar.data.decoded import Decoded
from fastcifar.data.foreign import foreign_kind, foreign_zip
from fastcifar.data.image_folder import entries, read_image_folder
from fastcifar.data.notes import listed, nearest
from fastcifar.data.npz import KEYS, named_like, read_npy_folder, read_npz
from fastcifar.data.parquet import KINDS, read_parquet, split_files
from fastcifar.data.paths import is_litter, kind_of, read_bytes, reading
from fastcifar.errors import DataError

_NOTHING = os.stat_result((0,) * 10)


@dataclass(frozen=True)
class Source:
    """A set of images on this machine whose layout is known; the images are not read yet.

    Attributes:
        path: the file or folder.
        layout: "archive", "npz", "npy folder", "image folder", "Parquet" or the title of a published version.
        version: the published version whose files are in the folder; None for other layouts.
    """

    path: Path
    layout: str
    version: Version | None = None

    def fingerprint(self) -> str:
        """A digest that changes when a file of the source changes. Then the files must be read again.

        It is computed from the name, size, times and inode of each file. A program can set a file's time of writing
        (tar, mv and touch do), but neither the number of its inode nor the time of the inode's last change.

        Returns:
            A SHA-256 in hexadecimal digits.

        Raises:
            DataError: a file or folder cannot be read.
        """
        digest = hashlib.sha256(os.fsencode(self.path.resolve()) + f"\0{self.layout}".encode())
        with reading(self.path):
            for name, about in sorted(self._files()):
                digest.update(b"\0" + name)
                for number in (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino):
                    digest.update(f"\0{number}".encode())
        return digest.hexdigest()

    def _files(self) -> list[tuple[bytes, os.stat_result]]:
        """The entries that `read` looks at: their names below the path, and what the system says of each."""
        if self.path.is_file():
            return [(b"", self.path.stat())]
        if self.version:
            present = (self.path / name for name in self.version.required + self.version.names)
            return [(os.fsencode(file.name), file.stat()) for file in present if file.is_file()]
        if self.layout == "npy folder":
            return [(os.fsencode(file.name), file.stat()) for file in self.path.glob("*.npy")]
        if self.layout in KINDS.values():
            return [
                (os.fsencode(file.relative_to(self.path)), file.stat())
                for split_of_files in split_files(self.path).values()
                for file in split_of_files
            ]
        # A third split is not read, but a note names it, so that it is part of the fingerprint.
        found = [
            (os.fsencode(e.name), _NOTHING) for e in entries(self.path) if e.name.lower().startswith(("val", "dev"))
        ]
        for split in SPLITS:
            for folder in entries(self.path / split):
                inside = os.fsencode(f"{split}/{folder.name}")
                found.append((inside, _NOTHING))
                if is_litter(folder.name) or not _is_folder(folder):
                    continue
                for entry in entries(folder):
                    if not entry.name.startswith("."):
                        found.append((inside + b"/" + os.fsencode(entry.name), _about(entry)))
        return found

    def read(self, size: int | None = None) -> Decoded:
        """Reads and checks all images and labels.

        Args:
            size: the side to which images are scaled, of whatever size they are; None takes them as they are. A
                published version is always as it is.

        Returns:
            The images and labels.

        Raises:
            DataError: the source cannot be read, is damaged, or contradicts itself.
        """
        with reading(self.path):
            if self.layout == "npz":
                return read_npz(self.path, size)
            if self.layout == "npy folder":
                return read_npy_folder(self.path, size)
            if self.layout == "archive":
                return read_archive(self.path)
            if self.layout in KINDS.values():
                return read_parquet(self.path, size)
            if self.version is None:
                return read_image_folder(self.path, size)
            paths = (self.path / name for name in self.version.required + self.version.names)
            files = {path.name: read_bytes(path, LARGEST_FILE) for path in paths if path.is_file()}
            return read_published(self.version, files, self.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _about(entry: os.DirEntry[str]) -> os.stat_result:
    """What the system says of an entry. Links are followed, except a link that leads nowhere."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


# ---------------------------------------------------------------------------------------------------- recognising


def locate(path: Path) -> Source:
    """Recognises what a path holds.

    Args:
        path: a file or folder in a known layout, or a folder that holds one of these.

    Returns:
        The source.

    Raises:
        DataError: the path does not exist, cannot be read, is in no known layout, or holds several sources.
    """
    with reading(path):
        kind = kind_of(path)
        if kind == "folder":
            return _locate_in_folder(path)
        if kind == "nothing":
            raise DataError(_not_there(path))
        if kind != "file":
            raise DataError(f"{path} is {kind}, and images are read from files and folders alone")
        if source := _locate_file(path):
            return source
        hint = _part_of(path)
        if not hint and (foreign := _foreign(path)):
            hint = f" It is {foreign[0]}: {foreign[1]}."
        raise DataError(f"{path} is neither an .npz nor a tar archive.{hint} Accepted:{ACCEPTED}")


def _not_there(path: Path) -> str:
    if path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, which is not there"
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        siblings = []
    return f"no such file or folder: {path}.{nearest(path.name, siblings)}"


def _locate_in_folder(path: Path) -> Source:
    found = _locate_folder(path)
    unreadable = []
    if not found:
        for child in sorted(path.iterdir()):
            if is_litter(child.name):
                continue
            try:
                if child.is_dir():
                    found += _locate_folder(child)
                elif child.name.endswith((".npz", *KINDS, *ARCHIVE_SUFFIXES)) and (source := _locate_file(child)):
                    found.append(source)
            except OSError as error:  # an unreadable entry must not hide the others
                unreadable.append(f"{child.name} ({error.strerror})")
    folders = {source.path.name for source in found}
    found = [s for s in found if EXTRACTED.get(s.path.name.split(".")[0]) not in folders - {s.path.name}]
    if len(found) == 1:
        return found[0]
    if found:
        shown = "".join(f"\n  {source.path}  ({source.layout})" for source in found[:20])
        more = f"\n  and {len(found) - 20:,} more" if len(found) > 20 else ""
        raise DataError(f"{path} holds more than one set of images; name one of them:{shown}{more}")
    raise _nothing_found(path, unreadable)


def _part_of(path: Path) -> str:
    """A hint, if `path` is one part of a source in its folder; otherwise an empty text."""
    try:
        sources = _locate_folder(path.parent)
    except OSError:
        return ""
    for source in sources:
        if path.name in (source.version.required + source.version.names if source.version else SPLITS):
            return f" It is one part of {path.parent} ({source.layout}): name that folder."
    return ""


def _locate_file(path: Path) -> Source | None:
    if kind_of(path) != "file":  # opening a pipe would wait forever
        return None
    names = _zip_names(path)
    if names is not None:
        if _has_key(names) or path.name.endswith(".npz") or foreign_zip(names) is None:
            return Source(path, "npz")
        return None
    if _starts_with(path, b"PAR1") or path.suffix == ".arrow":
        kind = KINDS.get(path.suffix, "Parquet")
        for folder in (path.parent, path.parent.parent):  # one split stands for both
            with suppress(OSError):  # a folder that cannot be listed
                if any(path in files for files in split_files(folder).values()):
                    return Source(folder, kind)
        return Source(path, kind)
    if _is_tar(path):
        return Source(path, "archive")
    if path.name.endswith(ARCHIVE_SUFFIXES):  # read_archive explains what is wrong with it
        foreign = _foreign(path)
        return None if foreign and not foreign[0].endswith("no tar archive") else Source(path, "archive")
    return None


def _zip_names(path: Path) -> list[str] | None:
    """The names of a zip's members, empty if the zip is damaged; None if the file is not a zip."""
    if not zipfile.is_zipfile(path):
        return [] if path.name.endswith(".npz") and path.stat().st_size and _starts_with(path, b"PK\x03\x04") else None
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # zipfile raises many kinds of errors on damaged files; read_npz explains them
        return [f"{KEYS[0]}.npy"]


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _has_key(names: list[str]) -> bool:
    arrays = [name.removesuffix(".npy") for name in names]
    return named_like(arrays) or any(name in KEYS for name in arrays)


def _foreign(path: Path) -> tuple[str, str] | None:
    names = _zip_names(path)
    if names is not None:
        return foreign_zip(names)
    with path.open("rb") as file:
        return foreign_kind(file.read(512))


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except Exception:  # the decompressors raise many kinds of errors on damaged files
        return False


def _locate_folder(folder: Path) -> list[Source]:
    found = []
    for version in VERSIONS:
        if all((folder / name).is_file() for name in version.required):
            found.append(Source(folder, version.title, version))
    if files := split_files(folder):
        found.append(Source(folder, KINDS[files[SPLITS[0]][0].suffix]))
    elif all((folder / split).is_dir() for split in SPLITS):
        found.append(Source(folder, "image folder"))
    if named_like([file.stem for file in folder.glob("*.npy")]):
        found.append(Source(folder, "npy folder"))
    return found


def _nothing_found(path: Path, unreadable: list[str]) -> DataError:
    names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
    hints = (hint for name in names if (hint := _hint(path, name)))
    hint = _part_of(path).lstrip() or next(hints, "")
    closed = f"\n  cannot be looked into: {listed(unreadable)}" if unreadable else ""
    return DataError(
        f"{path} holds no images that fastcifar knows.\n"
        f"  looked for:{ACCEPTED}\n"
        f"  found: {listed(names)}{closed}" + (f"\n  {hint}" if hint else "")
    )


def _hint(path: Path, name: str) -> str:
    """A hint at what the entry `name` of a folder without images may be meant to be; empty if there is none."""
    plain = name.rstrip("/")
    if name != plain and plain in SPLITS:
        return f"{name} is there, but {SPLITS[1 - SPLITS.index(plain)]}/ is missing"
    versions = {required: version for version in VERSIONS for required in version.required}
    if name == plain and plain in versions:
        missing = [other for other in versions[plain].required if not (path / other).is_file()]
        if plain in missing:
            kind = kind_of(path / plain)
            return f"{plain} is {'a link to nothing' if kind == 'nothing' else kind}, not a file"
        return f"{plain} belongs to {versions[plain].title}, but {', '.join(missing)} is missing"
    wanted = [*SPLITS, *EXTRACTED.values()] if name != plain else list(versions)
    near = difflib.get_close_matches(plain.lower(), wanted, 1, 0.75)
    near += [split for split in SPLITS if name != plain and plain.lower().startswith(split)]
    return f"is {name} meant to be {near[0]}{name[len(plain) :]}?" if near else ""
