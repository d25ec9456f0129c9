"""Which files of a folder are of an earlier page, and may be replaced by a later one.

A page leaves `.fastcifar-report.json` beside it: the name and the SHA-256 of every file that it wrote. A file that is
not listed there, or that has another content by now, is somebody's own, and is never replaced or removed. Pages of
versions that left no list are known by their index.html, which names all of its drawings and holds all of its tables.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastcifar.errors import UsageError
from fastcifar.report.as_html import MARK
from fastcifar.report.document import FIGURES, MARKDOWN, PAGE

LIST = ".fastcifar-report.json"
_LARGEST = 2**27
"""Bytes of a page or a list that are read."""

Known = Mapping[str, set[str]]
"""SHA-256 digests by file name, relative to the folder: a file with one of them is ours."""


def known_files(out: Path) -> Known:
    """What earlier pages wrote to the folder `out`; empty where there is no page of ours."""
    try:
        content = json.loads(_read(out / LIST))
        files = {str(name): set(map(str, digests)) for name, digests in content["files"].items()}
        return {name: digests for name, digests in files.items() if re.fullmatch(rf"({FIGURES}/)?\w[\w.-]*", name)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _of_a_page_without_list(out)


def list_of(files: Mapping[str, str], *others: Known) -> str:
    """The text of the list.

    Args:
        files: SHA-256 digests of the files of this page, by name.
        others: files of an earlier page that are still there while this one is being written.
    """
    names = sorted({*files, *(name for known in others for name in known)})
    digests = {
        name: sorted({*([files[name]] if name in files else []), *(d for known in others for d in known.get(name, ()))})
        for name in names
    }
    return json.dumps({"format": 1, "files": digests}, indent=1) + "\n"


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def refuse_what_is_not_ours(out: Path, names: Iterable[str], known: Known) -> None:
    """Refuses a folder where a file of the page would replace something else.

    Args:
        out: the folder; it need not exist.
        names: the files that are to be written, relative to `out`.
        known: see `known_files`.

    Raises:
        UsageError: with the names of what is in the way.
    """
    strange = [name for name in names if _is_there(out / name) and not is_ours(out, name, known)]
    if not strange:
        return
    if PAGE in strange and MARK.encode() not in _beginning(out / PAGE):
        raise UsageError(f"{out / PAGE} is not a page of fastcifar's: give another folder with --out")
    strange.sort(key=lambda name: (name != PAGE, name != MARKDOWN, name))
    told = ", ".join(f"{name} (changed since)" if name in known else name for name in strange[:5])
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    raise UsageError(
        f"{out} holds files that fastcifar did not write, and would replace: {told}{more}. Move them away, or give "
        "another folder with --out"
    )


def check_folder(out: Path) -> None:
    """Refuses a folder that `write_report` would refuse for its page, as far as that can be told without the runs.

    Raises:
        UsageError: `out` is no folder, or this user may not write there; or it holds a page or its Markdown that is not
            ours.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} cannot be written: it is a file; a folder is wanted.")
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} cannot be written: this user may not write to the folder {there}.")
    refuse_what_is_not_ours(out, (PAGE, MARKDOWN), known_files(out))


def is_ours(out: Path, name: str, known: Known) -> bool:
    """Whether the file `name` in `out` is there as an earlier page wrote it."""
    path = out / name
    try:
        return name in known and path.is_file() and not path.is_symlink() and digest(_read(path)) in known[name]
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _of_a_page_without_list(out: Path) -> Known:
    """The files of a page of a version that left no list: those that it names, if they look like ours."""
    if MARK.encode() not in _beginning(out / PAGE):
        return {}
    try:
        page = _read(out / PAGE)
        known = {PAGE: {digest(page)}}
        text = page.decode(errors="replace")
        for name, content in re.findall(r'download="([\w.-]+\.csv)" href="data:text/csv;base64,([\w+/=]*)"', text):
            known[name] = {digest(base64.b64decode(content, validate=True))}
        for name in [MARKDOWN, *(f"{FIGURES}/{panel}.svg" for panel in re.findall(r' data-name="([\w.-]+)"', text))]:
            path, begins = out / name, b'<a id="top"></a>\n' if name == MARKDOWN else b"<?xml "
            if path.is_file() and (content := _read(path)).startswith(begins):
                known[name] = {digest(content)}
        return known
    except (OSError, ValueError, binascii.Error):
        return {}


def _beginning(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with open(path, "rb") as file:
            return file.read(2000)
    except OSError:
        return b""


def _read(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no file of a page")
    return path.read_bytes()
