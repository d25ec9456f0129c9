"""Downloading one file over http(s), with progress, resume and retries; and advice where that is not possible."""

import http.client
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

from fastcifar import __version__
from fastcifar.data.accepted import ACCEPTED, ARCHIVE_SUFFIXES
from fastcifar.data.cache import cannot_write, sync_folder
from fastcifar.data.notes import note
from fastcifar.errors import DataError, UsageError

TIMEOUT_SECONDS = 30.0  # how long no byte may arrive
RETRY_SECONDS = (1.0, 2.0, 4.0)  # the waits between attempts; they start anew whenever bytes have arrived
_CHUNK = 1 << 16

T = TypeVar("T")


def obtain(url: str, mirror: str, folder: Path, use: Callable[[Path], T], *, title: str, progress: bool = True) -> T:
    """Calls `use` with a file, which is downloaded first if it is not on this machine yet.

    Args:
        url: the official address of the file.
        mirror: another address: the http, https or file URL of the file (in any layout that `use` accepts), or of the
            folder that holds the file under its published name. If empty, `url` is used.
        folder: where the downloaded file is kept.
        use: is called with the path of the file. It raises DataError if it does not accept the content; that file is
            then not kept.
        title: what messages call the file; also the stem of the name under which it is kept.
        progress: whether the progress of the download is shown.

    Returns:
        What `use` returns.

    Raises:
        DataError: the file cannot be downloaded or written, or `use` does not accept it.
        UsageError: `mirror` is not a URL.
    """
    address = mirror_address(url, mirror)
    kept = kept_file(folder, title)
    if kept.exists():
        try:
            return use(kept)
        except DataError as error:
            note(f"the copy downloaded before is of no use ({error}): downloading it again")
    if address.startswith("file:"):
        try:
            return use(Path(url2pathname(urlsplit(address).path)))
        except DataError as error:
            raise DataError(f"{address} is not {title}: {error}") from error
    part = kept.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch(address, part, title=title, progress=progress)
    except _Unreachable as error:
        raise DataError(
            f"{title} is not in the cache, and {address} cannot be downloaded: {error}\n"
            f"Ways to supply the data:\n"
            f"  --data PATH        a copy on this machine: {ACCEPTED}\n"
            f"  --mirror URL       another address of the archive, or of the folder that holds it\n"
            f"  --data procedural  images drawn on the spot, for a trial run (not CIFAR: accuracies do not compare)"
        ) from error
    except OSError as error:
        raise cannot_write(part, error) from error
    try:
        result = use(part)
    except DataError as error:
        part.unlink(missing_ok=True)
        _validator_file(part).unlink(missing_ok=True)
        raise DataError(f"what {address} sent is not {title}, and was not kept: {error}") from error
    part.replace(kept)
    _validator_file(part).unlink(missing_ok=True)
    sync_folder(folder)
    return result


def kept_file(folder: Path, title: str) -> Path:
    """The path under which `obtain` keeps a downloaded file.

    Args:
        folder: as for `obtain`.
        title: as for `obtain`.
    """
    return folder / f"{title}.download"


def mirror_address(url: str, mirror: str) -> str:
    """The address to download from.

    Args:
        url: the official address of the file.
        mirror: as for `obtain`.

    Returns:
        `url` if `mirror` is empty; `mirror` if it is the address of a file; otherwise the address of the file with the
        name of `url` in the folder `mirror`.

    Raises:
        UsageError: `mirror` is not an http, https or file URL.
    """
    if not mirror:
        return url
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https", "file") or (parts.scheme != "file" and not parts.netloc):
        raise UsageError(
            f"mirror = {mirror!r}: allowed: a URL that starts with http://, https:// or file:// "
            "(a file or folder of this machine goes to --data PATH)"
        )
    if parts.path.endswith((".npz", *ARCHIVE_SUFFIXES)) or parts.query:
        return mirror
    if parts.scheme == "file":
        return mirror
    return f"{mirror.rstrip('/')}/{url.rsplit('/', 1)[-1]}"


class _Unreachable(Exception):
    """The server did not answer, or did not send the whole file.

    Args:
        reason: what happened, in words.
        retry: whether a later attempt may succeed.
    """

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


def fetch(url: str, part: Path, *, title: str, progress: bool = True) -> None:
    """Downloads a file.

    It goes on after an interrupted download, if the server still has the same version of the file.

    Args:
        url: the http or https address.
        part: the file to write. It is whole when this function returns.
        title: what messages call the file.
        progress: whether the progress is shown.

    Raises:
        _Unreachable: the server did not send the whole file in several attempts.
        OSError: `part` cannot be written.
    """
    waits = list(RETRY_SECONDS)
    furthest = _size(part)
    with _Progress(title, progress) as shown:
        while True:
            try:
                return _attempt(url, part, shown)
            except _Unreachable as error:
                size = _size(part)
                if size > furthest:
                    furthest, waits = size, list(RETRY_SECONDS)
                if not error.retry:
                    raise
                if not waits:
                    kept = f"; the next start goes on after {size / 1e6:,.1f} MB" if size else ""
                    raise _Unreachable(
                        f"{error}, {len(RETRY_SECONDS) + 1} times in a row{kept}", retry=False
                    ) from error
                wait = waits.pop(0)
                note(f"{title}: {error} after {size / 1e6:,.1f} MB; trying again in {wait:g} s")
                time.sleep(wait)


def _attempt(url: str, part: Path, shown: "_Progress") -> None:
    """Makes one request, and returns when `part` is whole.

    Raises:
        _Unreachable: the server did not send the whole file.
    """
    headers = {"User-Agent": f"fastcifar/{__version__}", "Accept-Encoding": "identity"}
    start = _size(part)
    if start and (validator := _read_validator(part, url)):
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
                return  # nothing is left to send
            if error.code == 416:
                part.unlink(missing_ok=True)
            retry = error.code >= 500 or error.code in (408, 416, 429)
            raise _Unreachable(f"the server answered {error.code} {error.reason}", retry=retry) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        # At the start of a download these errors last. In the middle of a download they may pass.
        lasting = isinstance(
            reason, (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError, ValueError)
        )
        raise _Unreachable(_reason(reason), retry=bool(start) or not lasting) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _Unreachable("the server sent a web page instead of a file", retry=False)
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != start:
                part.unlink()
                raise _Unreachable("the server sent another range than asked for", retry=True)
            total: int | None = int(span[2])
        else:  # the whole file: nothing was there yet, the server cannot resume, or the file has changed
            start = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            _write_validator(part, url, response.headers)
        with part.open("ab" if start else "wb") as file:
            size = start
            shown.update(size, total)
            while chunk := _read(response):
                file.write(chunk)
                size += len(chunk)
                shown.update(size, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and size != total:
        raise _Unreachable("the connection ended early", retry=True)


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _Unreachable(_reason(error), retry=True) from error


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_validator(part: Path, url: str, headers: Any) -> None:
    """Records the server's name for this version of the file, so that parts of two versions are never joined."""
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    _validator_file(part).write_text(json.dumps({"url": url, "validator": validator}))


def _read_validator(part: Path, url: str) -> str:
    try:
        noted = json.loads(_validator_file(part).read_text())
        return str(noted["validator"]) if noted["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class _Progress:
    """The progress of a download, on stderr: a bar on a terminal, elsewhere a line for each tenth of the file."""

    def __init__(self, title: str, shown: bool) -> None:
        self.title, self.shown = title, shown
        self.bar: Any = None
        self.task: Any = None
        self.next_line = 0

    def __enter__(self) -> "_Progress":
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as SpeedColumn

            console = Console(stderr=True)
            if console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
                self.bar = Progress(*columns, SpeedColumn(), TimeRemainingColumn(), console=console)
                self.task = self.bar.add_task(f"downloading {self.title}", total=None)
                self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, size: int, total: int | None) -> None:
        """Shows that `size` bytes of `total` have arrived; None is an unknown total."""
        if self.bar:
            self.bar.update(self.task, completed=size, total=total)
        elif self.shown and size >= self.next_line:
            of = f" of {total / 1e6:,.1f}" if total else ""
            note(f"downloading {self.title}: {size / 1e6:,.1f}{of} MB")
            step = max(total // 10, 1) if total else 16_000_000
            self.next_line = (size // step + 1) * step
