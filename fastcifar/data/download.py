"""Downloading over http(s) from the first mirror that does not crawl, with progress, resume and retries."""

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from fastcifar.data.published import Mirror
from fastcifar.errors import DataError, UsageError

TIMEOUT_SECONDS = 30.0  # how long no byte may arrive
RETRY_SECONDS = (1.0, 2.0, 4.0)  # the waits between attempts; they start anew whenever bytes have arrived
WATCH_SECONDS = 10.0  # how long a mirror's speed is watched before it is judged, again and again
PATIENCE_SECONDS = 180.0  # a mirror crawls if the rest of a file would take longer
_UNKNOWN_SIZE = 120_000_000  # bytes, for a server that does not say
_CHUNK = 1 << 16

T = TypeVar("T")


def obtain(
    mirrors: Sequence[Mirror],
    folder: Path,
    use: Callable[[Path], T],
    *,
    title: str,
    hint: str = "",
    progress: bool = True,
) -> T:
    """Calls `use` with a file or folder, which is downloaded first if it is not on this machine yet.

    The mirrors are tried in order. One that crawls is left for the next. If all of the others crawl too, or fail, the
    fastest one goes on where it was left.

    Args:
        mirrors: the places to download from, at least one. A mirror with a file URL is used where it is.
        folder: where the download is kept.
        use: is called with the path of the downloaded file or, if a mirror has several, of a folder with the files. It
            raises DataError if it does not accept the content; the download is then not kept.
        title: what messages call the download; also the stem of the name under which it is kept.
        hint: what could be done about mirrors that crawl, for the user.
        progress: whether the progress of the download is shown.

    Returns:
        What `use` returns.

    Raises:
        DataError: no mirror sent what `use` accepts, or the files cannot be written.
    """
    kept = kept_path(folder, title)
    if kept.exists():
        try:
            return use(kept)
        except DataError as error:
            note(f"the copy downloaded before is of no use ({error}): downloading it again")
    failed: dict[Mirror, _Failed] = {}
    crawling: dict[Mirror, float] = {}

    def attempt(mirror: Mirror, crawls: _Crawls) -> T:
        if mirror.urls[0].lower().startswith("file:"):
            return _used(Path(url2pathname(urlsplit(mirror.urls[0]).path)), mirror, use, title)
        return _downloaded(mirror, folder, use, title, progress, crawls)

    def gives_up(speed: float, seconds_left: float) -> None:
        raise _CrawlsError(speed, seconds_left)

    told = iter([hint])

    def goes_on(speed: float, seconds_left: float) -> None:
        if (advice := next(told, None)) is not None:
            note(f"{title}: {_pace(speed, seconds_left)}{advice and f'; {advice}'}")

    for mirror, after in zip(mirrors, [*mirrors[1:], None], strict=True):
        try:
            return attempt(mirror, gives_up if after or crawling else goes_on)
        except _CrawlsError as error:
            crawling[mirror] = error.speed
            if after:
                note(f"{title}: {mirror.host} sends {error}: trying {after.host}")
        except _Failed as error:
            failed[mirror] = error
            if after:
                note(f"{title}: {error}: trying {after.host}")
    for mirror in sorted(crawling, key=crawling.__getitem__, reverse=True):
        note(f"{title}: no mirror is faster: going on with {mirror.host}")
        try:
            return attempt(mirror, goes_on)
        except _Failed as error:
            failed[mirror] = error
    raise _none_has_it(title, failed)


def _none_has_it(title: str, failed: "Mapping[Mirror, _Failed]") -> DataError:
    """The error after every mirror failed: why each one did, and what else the user can do."""
    refused = [error for error in failed.values() if isinstance(error, _Refused)]
    if len(failed) == len(refused) == 1:
        return DataError(str(refused[0]))
    reasons = [str(error) for error in failed.values()]
    what = "and " + reasons[0] if len(reasons) == 1 else "and no mirror has it:\n  " + "\n  ".join(reasons)
    return DataError(
        f"{title} is not in the cache, {what}\n"
        f"Ways to supply the data:\n"
        f"  --data PATH        a copy on this machine:{ACCEPTED}\n"
        f"  --mirror URL       another address of the archive, or of the folder that holds it\n"
        f"  --data procedural  images drawn on the spot, for a trial run (not CIFAR: accuracies do not compare)"
    )


def _downloaded(
    mirror: Mirror, folder: Path, use: Callable[[Path], T], title: str, progress: bool, crawls: "_Crawls"
) -> T:
    """Downloads the files of a mirror, and keeps them if `use` accepts them.

    Raises:
        _CrawlsError: `crawls` raised it.
        _Failed: the files cannot be downloaded, or `use` does not accept them.
        DataError: the files cannot be written.
    """
    here = folder / f"{title}-{hashlib.sha256(str(mirror).encode()).hexdigest()[:8]}"
    count = len(mirror.urls)
    files, written = [], here
    try:
        here.mkdir(parents=True, exist_ok=True)
        for number, url in enumerate(mirror.urls, 1):
            file = here / (urlsplit(url).path.rsplit("/", 1)[-1][-100:] or "file")
            if not file.exists():
                part = written = file.with_name(f"{file.name}.part")
                named = f"{title} from {mirror.host}" + (f", file {number} of {count}" if count > 1 else "")
                try:
                    fetch(url, part, title=named, progress=progress, crawls=crawls)
                except _UnreachableError as error:
                    raise _Failed(f"{url} cannot be downloaded: {error}") from error
                part.replace(file)
                _validator_file(part).unlink(missing_ok=True)
            files.append(file)
    except OSError as error:
        raise cannot_write(written, error) from error
    finally:
        with suppress(OSError):  # which it is unless it is empty
            here.rmdir()
    whole = files[0] if count == 1 else here
    try:
        result = _used(whole, mirror, use, title)
    except _Refused:
        shutil.rmtree(here)
        raise
    kept = kept_path(folder, title)
    if kept.is_dir():
        shutil.rmtree(kept)
    else:
        kept.unlink(missing_ok=True)
    whole.replace(kept)
    for rest in folder.glob(f"{title}-????????"):
        shutil.rmtree(rest, ignore_errors=True)
    sync_folder(folder)
    return result


def _used(path: Path, mirror: Mirror, use: Callable[[Path], T], title: str) -> T:
    try:
        return use(path)
    except DataError as error:
        if mirror.urls[0].lower().startswith("file:"):
            raise _Refused(f"{mirror} is not {title}: {error}") from error
        raise _Refused(f"what {mirror} sent is not {title}, and was not kept: {error}") from error


def kept_path(folder: Path, title: str) -> Path:
    """The path under which `obtain` keeps a download: a file, or a folder if the mirror had several files.

    Args:
        folder: as for `obtain`.
        title: as for `obtain`.
    """
    return folder / f"{title}.download"


def mirrors_at(address: str, published: Sequence[Mirror]) -> tuple[Mirror, ...]:
    """The places to download from.

    Args:
        address: the user's mirror: the http, https or file URL of a file (in any layout), or of a folder that holds the
            files of a published mirror under their names. Empty if the user names none.
        published: the mirrors of the data set.

    Returns:
        `published` if `address` is empty; one mirror if it is the address of a file; otherwise the published mirrors'
        files, in the folder `address`.

    Raises:
        UsageError: `address` is not an http, https or file URL.
    """
    if not address:
        return tuple(published)
    try:
        parts = urlsplit(address)
    except ValueError:  # such as http://[bad
        parts = urlsplit("")
    if parts.scheme not in ("http", "https", "file") or (parts.scheme != "file" and not parts.netloc):
        raise UsageError(
            f"mirror = {address!r}: allowed: a URL that starts with http://, https:// or file:// "
            "(a file or folder of this machine goes to --data PATH)"
        )
    if parts.scheme == "file" or parts.path.endswith((".npz", ".parquet", *ARCHIVE_SUFFIXES)) or parts.query:
        return (Mirror((address,)),)
    folder = address.rstrip("/")
    return tuple(
        Mirror(tuple(f"{folder}/{url.rsplit('/', 1)[-1]}" for url in mirror.urls), mirror.size) for mirror in published
    )


class _Failed(Exception):
    """A mirror did not send what was asked for; the message says which mirror, and why."""


class _Refused(_Failed):
    """A mirror sent another content."""


class _CrawlsError(Exception):
    """A mirror is so slow that the next one is tried.

    Args:
        speed: bytes a second.
        seconds_left: until the file would be whole.
    """

    def __init__(self, speed: float, seconds_left: float) -> None:
        super().__init__(_pace(speed, seconds_left))
        self.speed = speed


_Crawls = Callable[[float, float], None]
"""Is called while a file would take more than PATIENCE_SECONDS more: with bytes a second and the seconds left."""


def _pace(speed: float, seconds_left: float) -> str:
    if not speed:
        return "nothing"
    return f"{speed / 1e6:,.2f} MB/s, {max(seconds_left / 60, 0.1):,.1f} minutes for the rest of the file"


class _UnreachableError(Exception):
    """The server did not answer, or did not send the whole file.

    Args:
        reason: what happened, in words.
        retry: whether a later attempt may succeed.
    """

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


def fetch(url: str, part: Path, *, title: str, progress: bool = True, crawls: _Crawls = lambda *_: None) -> None:
    """Downloads a file.

    It goes on after an interrupted download, if the server still has the same version of the file.

    Args:
        url: the http or https address.
        part: the file to write. It is whole when this function returns.
        title: what messages call the file.
        progress: whether the progress is shown.
        crawls: is called whenever the rest would take more than PATIENCE_SECONDS; it may raise to stop the download.

    Raises:
        _UnreachableError: the server did not send the whole file in several attempts.
        OSError: `part` cannot be written.
    """
    waits = list(RETRY_SECONDS)
    furthest = _size(part)
    with _Progress(title, progress) as shown:
        while True:
            try:
                return _attempt(url, part, shown, crawls)
            except _UnreachableError as error:
                size = _size(part)
                if size > furthest:
                    furthest, waits = size, list(RETRY_SECONDS)
                if not error.retry:
                    raise
                if not waits:
                    kept = f"; the next start goes on after {size / 1e6:,.1f} MB" if size else ""
                    raise _UnreachableError(
                        f"{error}, {len(RETRY_SECONDS) + 1} times in a row{kept}", retry=False
                    ) from error
                wait = waits.pop(0)
                note(f"{title}: {error} after {size / 1e6:,.1f} MB; trying again in {wait:g} s")
                time.sleep(wait)


def _attempt(url: str, part: Path, shown: "_Progress", crawls: _Crawls) -> None:
    """Makes one request, and returns when `part` is whole.

    Raises:
        _UnreachableError: the server did not send the whole file.
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
            raise _UnreachableError(f"the server answered {error.code} {error.reason}", retry=retry) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        # At the start of a download these errors last. In the middle of a download they may pass.
        lasting = isinstance(
            reason, (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError, ValueError)
        )
        raise _UnreachableError(_reason(reason), retry=bool(start) or not lasting) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _UnreachableError("the server sent a web page instead of a file", retry=False)
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not span or int(span[1]) != start:
                part.unlink()
                raise _UnreachableError("the server sent another range than asked for", retry=True)
            total: int | None = int(span[2])
        else:  # the whole file: nothing was there yet, the server cannot resume, or the file has changed
            start = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            _write_validator(part, url, response.headers)
        with part.open("ab" if start else "wb") as file:
            size = start
            pace = _Pace(size, total, crawls)
            shown.update(size, total)
            while chunk := _read(response, pace):
                file.write(chunk)
                size += len(chunk)
                shown.update(size, total, pace.speed(size))
                pace.check(size)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and size != total:
        raise _UnreachableError("the connection ended early", retry=True)


def _read(response: Any, pace: "_Pace") -> bytes:
    try:
        return bytes(response.read1(_CHUNK))
    except TimeoutError as error:
        pace.stalled()
        raise _UnreachableError(_reason(error), retry=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise _UnreachableError(_reason(error), retry=True) from error


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


class _Pace:
    """The speed of one request, looked at every WATCH_SECONDS.

    Args:
        size: the bytes that are there already.
        total: the bytes of the whole file; None if not known.
        crawls: as for `fetch`.
    """

    def __init__(self, size: int, total: int | None, crawls: _Crawls) -> None:
        self._start = self._window = (time.monotonic(), size)
        self._total, self._crawls = total, crawls

    def speed(self, size: int) -> float:
        """Bytes a second since the request was answered."""
        return _speed(self._start, size)

    def check(self, size: int) -> None:
        """Calls `crawls` if a window is over in which the speed was too low."""
        if time.monotonic() - self._window[0] < WATCH_SECONDS:
            return
        speed = _speed(self._window, size)
        left = ((self._total or _UNKNOWN_SIZE) - size) / max(speed, 1.0)
        self._window = (time.monotonic(), size)
        if left > PATIENCE_SECONDS:
            self._crawls(speed, left)

    def stalled(self) -> None:
        """Calls `crawls`: nothing has arrived for TIMEOUT_SECONDS."""
        self._crawls(0.0, float("inf"))


def _speed(since: tuple[float, int], size: int) -> float:
    return (size - since[1]) / max(time.monotonic() - since[0], 1e-3)


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

    def update(self, size: int, total: int | None, speed: float = 0.0) -> None:
        """Shows that `size` bytes of `total` have arrived, at `speed` bytes a second; None is an unknown total."""
        if self.bar:
            self.bar.update(self.task, completed=size, total=total)
        elif self.shown and size >= self.next_line:
            of = f" of {total / 1e6:,.1f}" if total else ""
            pace = f", {speed / 1e6:,.1f} MB/s" if speed else ""
            note(f"downloading {self.title}: {size / 1e6:,.1f}{of} MB{pace}")
            step = max(total // 10, 1) if total else 16_000_000
            self.next_line = (size // step + 1) * step
