"""Reading the files of a published version from a tar archive, by file name alone; nothing is extracted to the disk."""

import tarfile
from pathlib import Path

from fastcifar.data.cifar_files import VERSIONS, read_published
from fastcifar.data.decoded import Decoded
from fastcifar.data.notes import listed
from fastcifar.data.paths import is_litter
from fastcifar.errors import DataError

LARGEST_FILE = 512 * 2**20  # bytes; the largest published file has 155 MB
_CHUNK = 1 << 20


def read_archive(path: Path) -> Decoded:
    """Images and labels of a published version inside a tar archive.

    Args:
        path: the archive, compressed by gzip, bzip2, xz or not at all.

    Returns:
        The images and labels. The files may be in any folder of the archive; hidden files and folders are skipped.

    Raises:
        DataError: the archive is damaged, cut short, or holds no published version.
        OSError: the archive cannot be read.
    """
    wanted = {name for version in VERSIONS for name in version.required + version.names}
    files: dict[str, bytes] = {}
    others: list[str] = []
    with path.open("rb") as stream:
        try:
            with tarfile.open(fileobj=stream) as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    if not member.isfile() or any(map(is_litter, member.name.split("/"))):
                        continue
                    if name not in wanted:
                        others.append(member.name)
                        continue
                    if member.size > LARGEST_FILE:
                        raise DataError(
                            f"{path}: {member.name} claims {member.size:,} bytes, more than any CIFAR file has"
                        )
                    if name in files:
                        raise DataError(f"{path} holds more than one file named {name}")
                    content = archive.extractfile(member)
                    files[name] = content.read() if content else b""
                # A gzip's checksum comes after the end of the tar. Unread, one in three flipped bits passes.
                while archive.fileobj is not None and archive.fileobj.read(_CHUNK):
                    pass
        except (DataError, MemoryError):
            raise
        except Exception as error:  # tarfile and the decompressors raise many kinds of errors on damaged files
            reason = " ".join(str(error).split())
            raise DataError(f"{path} is not a whole archive ({reason}): download or copy it again") from error
    for version in VERSIONS:
        if all(name in files for name in version.required):
            return read_published(version, files, path)
    found = f"it has {listed(sorted(files), nothing='none of them')}"
    if not files and others:
        found += f" (it holds {listed(others, 3)}: if these are images, unpack it and name the folder)"
    raise DataError(
        f"{path} holds no published version of CIFAR: each has one of these sets of files, of which {found}\n  "
        + "\n  ".join(f"{version.title}: {', '.join(version.required)}" for version in VERSIONS)
    )
