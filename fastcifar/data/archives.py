"""A tar archive with the files of a published version: read in memory by file name alone, never extracted."""

import lzma
import tarfile
import zlib
from pathlib import Path

from fastcifar.data.cifar_files import VERSIONS, read_published
from fastcifar.data.decoded import Decoded
from fastcifar.errors import DataError

LARGEST_FILE = 512 * 2**20  # bytes; the largest published file has 155 MB


def read_archive(path: Path) -> Decoded:
    wanted = {name for version in VERSIONS for name in version.required + version.names}
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if not member.isfile() or name not in wanted:
                    continue
                if member.size > LARGEST_FILE:
                    raise DataError(f"{path}: {member.name} claims {member.size:,} bytes, more than any CIFAR file has")
                if name in files:
                    raise DataError(f"{path} holds more than one file named {name}")
                content = archive.extractfile(member)
                files[name] = content.read() if content else b""
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is not a whole archive ({error}): download or copy it again") from error
    for version in VERSIONS:
        if all(name in files for name in version.required):
            return read_published(version, files, path)
    listed = ", ".join(sorted(files)) or "none of them"
    raise DataError(
        f"{path} holds no published version of CIFAR: each has one of these sets of files, of which it has {listed}\n  "
        + "\n  ".join(f"{version.title}: {', '.join(version.required)}" for version in VERSIONS)
    )
