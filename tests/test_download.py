"""Downloads from a server on this machine that breaks off, stalls, sends wrong answers and changes its files."""

import hashlib
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import data_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.data import download, sources
from fastcifar.data.dataset import Dataset
from fastcifar.data.published import CIFAR10, CIFAR100, PUBLISHED, Mirror
from fastcifar.errors import DataError, UsageError

SPLITS = data_files.make_splits()


class Server:
    """Serves `files` by path, and `content` at every other path.

    Each request gets the next of `answers`; the last one is repeated.
    """

    def __init__(self, content: bytes, files: dict[str, bytes] | None = None) -> None:
        self.content, self.files = content, files or {}
        self.answers: list[dict[str, Any]] = [{}]
        self.requests: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append({"path": self.path} | dict(self.headers.items()))
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                server.answer(self, **answer)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(
        self,
        to: BaseHTTPRequestHandler,
        status: int = 200,
        content: bytes | None = None,
        tag: str = '"1"',
        ranges: bool = True,
        cut: int | None = None,
        stall: float = 0,
        length: bool = True,
        headers: dict[str, str] | None = None,
        shift: int = 0,
        pause: float = 0,
    ) -> None:
        body = self.files.get(to.path, self.content) if content is None else content
        start, total = 0, len(body)
        asked = re.fullmatch(r"bytes=(\d+)-", to.headers.get("Range", ""))
        if status == 200 and asked and ranges and to.headers.get("If-Range") == tag:
            start = int(asked[1])
            status = 206 if start < total else 416
        to.send_response(status)
        if status == 206:
            start += shift
            to.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if status == 416:
            to.send_header("Content-Range", f"bytes */{total}")
            body = b""
        if status in (200, 206):
            to.send_header("ETag", tag)
        if length:
            to.send_header("Content-Length", str(len(body) - start if status != 416 else 0))
        for name, value in (headers or {}).items():
            to.send_header(name, value)
        to.end_headers()
        sent = body[start : len(body) if cut is None else start + cut]
        try:
            for at in range(0, len(sent), 2000 if pause else len(sent) or 1):
                to.wfile.write(sent[at : at + 2000] if pause else sent)
                to.wfile.flush()
                time.sleep(pause)
        except OSError:  # the other side has hung up
            return
        time.sleep(stall)


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server(data_files.write_archive_bytes("gz", data_files.python_files(SPLITS)))
    yield started
    started.http.shutdown()
    started.http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = data_files.write_npz(tmp_path_factory.mktemp("reference") / "c.npz", SPLITS)
    return sources.load(str(path), cache=path.parent)


def load(server: Server, cache: Path, mirror: str = "", progress: bool = False) -> Dataset:
    published = data_files.published(SPLITS, f"{server.url}/official/cifar-100-python.tar.gz")
    return sources.load_published(published, mirror=mirror, cache=cache, progress=progress)


def ranges(server: Server) -> list[str]:
    return [request.get("Range", "") for request in server.requests]


def nothing_kept(cache: Path) -> bool:
    return not list(cache.glob("*.safetensors")) and not list((cache / "downloads").glob("*"))


def test_downloaded_once(server: Server, reference: Dataset, tmp_path: Path) -> None:
    for _ in range(2):
        dataset = load(server, tmp_path)
        assert dataset.digest == reference.digest and dataset.name == "tiny"
    assert [request["path"] for request in server.requests] == ["/official/cifar-100-python.tar.gz"]
    assert [p.name for p in (tmp_path / "downloads").iterdir()] == ["tiny.download"]


def test_damaged_cache_is_rebuilt_without_the_network(server: Server, reference: Dataset, tmp_path: Path) -> None:
    load(server, tmp_path)
    entry = tmp_path / "tiny.safetensors"
    entry.write_bytes(entry.read_bytes()[:-1])
    assert load(server, tmp_path).digest == reference.digest
    assert len(server.requests) == 1


def test_damaged_download_is_fetched_again(
    server: Server, reference: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "tiny.download").write_bytes(server.content[:-100])
    assert load(server, tmp_path).digest == reference.digest
    assert "the copy downloaded before is of no use" in capsys.readouterr().err


def test_a_set_without_digests_tells_of_an_archive_packed_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CIFAR-10: its digests are not known, so that only the MD5 of the archive and the counts are checked."""
    splits = data_files.make_splits(3, 10, 4)
    server.content = data_files.write_archive_bytes("gz", data_files.python10_files(splits))
    counts = {"train": 40, "test": 10}
    for md5, told in (("0" * 32, True), (hashlib.md5(server.content).hexdigest(), False)):
        tiny = replace(CIFAR10, mirrors=(Mirror((f"{server.url}/x.tar.gz",)),), counts=counts, archive_md5s=(md5,))
        dataset = sources.load_published(tiny, mirror="", cache=tmp_path / md5, progress=False)
        assert dataset.name == "cifar10" and dataset.num_classes == 10
        assert ("packed anew, or altered" in capsys.readouterr().err) == told


# ---------------------------------------------------------------------------------------------------- mirrors


@pytest.mark.parametrize(
    ("mirror", "asked"),
    [
        ("{}/some/where", "/some/where/cifar-100-python.tar.gz"),
        ("{}/some/where/", "/some/where/cifar-100-python.tar.gz"),
        ("{}/renamed.tgz", "/renamed.tgz"),
        ("{}/file?id=3", "/file?id=3"),
    ],
)
def test_mirror_is_a_folder_or_a_file(
    mirror: str, asked: str, server: Server, reference: Dataset, tmp_path: Path
) -> None:
    assert load(server, tmp_path, mirror.format(server.url)).digest == reference.digest
    assert [request["path"] for request in server.requests] == [asked]


@pytest.mark.parametrize("layout", ["binary archive", "npz"])
def test_mirror_of_another_layout(layout: str, server: Server, reference: Dataset, tmp_path: Path) -> None:
    """The content is checked, so that an archive packed anew, or another layout, is accepted too."""
    if layout == "npz":
        server.content = data_files.write_npz(tmp_path / "x.npz", SPLITS).read_bytes()
    else:
        server.content = data_files.write_archive_bytes("xz", data_files.binary_files(SPLITS))
    assert load(server, tmp_path / "cache", f"{server.url}/data.npz").digest == reference.digest


@pytest.mark.parametrize("what", ["archive", "folder of the archive", "extracted"])
def test_mirror_on_this_machine(what: str, server: Server, reference: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "my data" / "cifar-100-python.tar.gz"
    data_files.write_archive(path, data_files.python_files(SPLITS))
    if what == "folder of the archive":
        path = path.parent
    elif what == "extracted":
        path = data_files.write_files(tmp_path / "py", data_files.python_files(SPLITS))
    assert load(server, tmp_path / "cache", path.as_uri()).digest == reference.digest
    assert server.requests == []


def test_mirror_on_this_machine_with_other_images(server: Server, tmp_path: Path) -> None:
    path = data_files.write_npz(tmp_path / "c.npz", data_files.make_splits(9))
    with pytest.raises(DataError, match=r"file:.*c\.npz is not tiny: its images are not those of tiny"):
        load(server, tmp_path / "cache", path.as_uri())
    assert path.exists() and nothing_kept(tmp_path / "cache")


@pytest.mark.parametrize("mirror", ["/home/me/cifar", "ftp://host/x", "host/x", "http:/x", "http://[bad"])
def test_mirror_that_is_no_url(mirror: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"mirror = .* allowed: a URL that starts with http://, .* goes to --data PATH"
    ):
        load(server, tmp_path, mirror)


# ---------------------------------------------------------------------------------------------------- several mirrors


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server, Server]]:
    """The first has the published archive, the others have the Parquet files."""
    parquet = data_files.parquet_files(SPLITS)
    started = (
        Server(data_files.write_archive_bytes("gz", data_files.python_files(SPLITS))),
        Server(b"", {f"/{name}": content for name, content in parquet.items()}),
        Server(b"", {f"/{name}": content for name, content in parquet.items()}),
    )
    yield started
    for server in started:
        server.http.shutdown()
        server.http.server_close()


def load_from(servers: tuple[Server, ...], cache: Path) -> Dataset:
    first, *others = servers
    files = tuple(data_files.parquet_files(data_files.make_splits(per_class=1)))
    urls = (f"{first.url}/cifar-100-python.tar.gz", *(tuple(f"{s.url}/{name}" for name in files) for s in others))
    return sources.load_published(data_files.published(SPLITS, *urls), mirror="", cache=cache, progress=False)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 1.5)


SLOW = {"pause": 0.02}  # 2,000 bytes in 20 ms: six seconds for the whole archive


def test_a_slow_mirror_is_left_for_the_next(
    servers: tuple[Server, ...], hasty: None, reference: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers[0].answers = [SLOW]
    start = time.monotonic()
    dataset = load_from(servers, tmp_path)
    assert dataset.digest == reference.digest and data_files.same(dataset, reference)
    assert time.monotonic() - start < 4 and servers[2].requests == []
    said = capsys.readouterr().err
    assert re.search(r"tiny: 127.0.0.1 sends 0\.\d\d MB/s, 0\.\d minutes for the rest of the file: trying 127", said)
    (kept,) = (tmp_path / "downloads").iterdir()
    assert kept.name == "tiny.download" and len(list(kept.iterdir())) == 2, "what the slow mirror sent is left behind"
    (tmp_path / "tiny.safetensors").unlink()
    assert load_from(servers, tmp_path).digest == reference.digest
    assert len(servers[0].requests) == 1 and len(servers[1].requests) == 2, "the kept files are not used"


@pytest.mark.parametrize("kept", ["file", "folder"])
@pytest.mark.parametrize("sent", ["file", "folder"])
def test_a_kept_copy_of_another_kind_is_replaced(
    kept: str, sent: str, servers: tuple[Server, ...], reference: Dataset, tmp_path: Path
) -> None:
    """A folder is not renamed onto a file: each start failed, with the damaged archive still there."""
    content = {"file": {"": b"damaged"}, "folder": {"train.parquet": b"damaged"}}[kept]
    for name, damaged in content.items():
        file = tmp_path / "downloads" / "tiny.download" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(damaged)
    servers[0].answers = [{"status": 404 if sent == "folder" else 200}]
    assert load_from(servers, tmp_path).digest == reference.digest
    (now,) = (tmp_path / "downloads").iterdir()
    assert now.name == "tiny.download" and now.is_dir() == (sent == "folder")


def test_where_all_crawl_the_fastest_goes_on(
    servers: tuple[Server, ...], hasty: None, reference: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers[0].answers = [SLOW, {}]
    servers[1].answers = [{"cut": 4000, "stall": 3}]
    servers[2].answers = [{"status": 404}]
    download_timeout = pytest.MonkeyPatch()
    download_timeout.setattr(download, "TIMEOUT_SECONDS", 0.3)
    try:
        assert load_from(servers, tmp_path).digest == reference.digest
    finally:
        download_timeout.undo()
    assert ranges(servers[0])[0] == "" and re.fullmatch(r"bytes=\d+-", ranges(servers[0])[1]), "it began anew"
    said = capsys.readouterr().err
    assert "127.0.0.1 sends nothing: trying" in said and "no mirror is faster: going on with 127.0.0.1" in said


def test_a_mirror_that_cuts_is_left_for_the_next(
    servers: tuple[Server, ...], reference: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers[0].answers = [{"cut": 1000}, {"cut": 0}]
    assert load_from(servers, tmp_path).digest == reference.digest
    assert "cannot be downloaded: the connection ended early, 4 times in a row" in capsys.readouterr().err
    assert servers[2].requests == []


def test_a_mirror_that_lies_is_left_for_the_next(
    servers: tuple[Server, ...], reference: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers[0].content = data_files.write_archive_bytes("gz", data_files.python_files(data_files.make_splits(5)))
    lie = data_files.parquet_files(data_files.make_splits(6))
    servers[1].files["/test-00000-of-00001.parquet"] = lie["test-00000-of-00001.parquet"]
    assert load_from(servers, tmp_path).digest == reference.digest
    said = capsys.readouterr().err
    assert said.count("and was not kept: its images are not those of tiny: the content digest differs: trying") == 2
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["tiny.download"]


def test_no_mirror_has_it(servers: tuple[Server, ...], tmp_path: Path) -> None:
    servers[0].answers = [{"content": b"<html>log in</html>"}]
    servers[1].answers = [{"status": 404}]
    servers[2].answers = [{"status": 403}]
    with pytest.raises(DataError, match="tiny is not in the cache, and no mirror has it:") as error:
        load_from(servers, tmp_path)
    assert ways(error) and nothing_kept(tmp_path)
    assert all(word in str(error.value) for word in ("is not tiny, and was not kept", "404 Not Found", "403 Forbidden"))


def test_the_second_file_goes_on_where_it_was_cut(
    servers: tuple[Server, ...], reference: Dataset, tmp_path: Path
) -> None:
    one = (servers[0], servers[1])
    servers[0].answers = [{"status": 404}]
    servers[1].answers = [{}, {"cut": 1000}, {"status": 404}]
    with pytest.raises(DataError):
        load_from(one, tmp_path)
    servers[1].answers = [{}]
    assert load_from(one, tmp_path).digest == reference.digest
    assert ranges(servers[1]) == ["", "", "bytes=1000-", "bytes=1000-"], "the whole first file is asked for again"


def test_without_pyarrow_parquet_is_no_mirror_but_a_hint(
    servers: tuple[Server, ...],
    hasty: None,
    reference: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fastcifar.data.parquet.is_available", lambda: False)
    servers[0].answers = [{"pause": 0.002}]
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 0.1)
    assert load_from(servers, tmp_path).digest == reference.digest
    said = capsys.readouterr().err
    assert said.count("has Parquet files, which need pyarrow (pip install 'fastcifar[parquet]')") == 1
    assert servers[1].requests == []
    with pytest.raises(DataError, match=r"tiny cannot be read from http.*which need pyarrow"):
        published = data_files.published(SPLITS, f"{servers[1].url}/x")
        sources.load_published(published, mirror="http://x/a.parquet", cache=tmp_path / "b", progress=False)


def test_mirror_folder_with_parquet_files(servers: tuple[Server, ...], reference: Dataset, tmp_path: Path) -> None:
    parquet = tuple(f"https://x/{name}" for name in data_files.parquet_files(data_files.make_splits(per_class=1)))
    tiny = data_files.published(SPLITS, "https://x/cifar-100-python.tar.gz", parquet)
    servers[1].answers = [{"status": 404}, {}]
    dataset = sources.load_published(tiny, mirror=f"{servers[1].url}/", cache=tmp_path, progress=False)
    assert dataset.digest == reference.digest
    assert [r["path"] for r in servers[1].requests] == [
        "/cifar-100-python.tar.gz",
        "/train-00000-of-00001.parquet",
        "/test-00000-of-00001.parquet",
    ]


def test_shipped_mirrors() -> None:
    """Each set has the university's archive and Hugging Face's files; the first is one whose content can be checked."""
    for published in PUBLISHED.values():
        assert {mirror.host for mirror in published.mirrors} == {"www.cs.toronto.edu", "huggingface.co"}
        assert all(url.startswith("https://") for mirror in published.mirrors for url in mirror.urls)
    assert CIFAR100.mirrors[0].is_parquet and CIFAR100.digest
    assert not CIFAR10.mirrors[0].is_parquet and CIFAR10.archive_md5s


# ---------------------------------------------------------------------------------------------------- resuming


def test_resumes_within_a_call(server: Server, reference: Dataset, tmp_path: Path) -> None:
    server.answers = [{"cut": 1000}, {"cut": 5000}, {}]
    assert load(server, tmp_path).digest == reference.digest
    assert ranges(server) == ["", "bytes=1000-", "bytes=6000-"]
    assert server.requests[1]["If-Range"] == '"1"'


def test_resumes_in_a_later_call(server: Server, reference: Dataset, tmp_path: Path) -> None:
    server.answers = [{"cut": 1000}, {"status": 503}]
    with pytest.raises(DataError, match="answered 503 .* 4 times in a row; the next start goes on after"):
        load(server, tmp_path)
    assert not (tmp_path / "tiny.safetensors").exists()
    server.answers = [{}]
    assert load(server, tmp_path).digest == reference.digest
    assert ranges(server)[-1] == "bytes=1000-"


def test_cut_download_that_is_whole(server: Server, reference: Dataset, tmp_path: Path) -> None:
    """The download was stopped after its last byte, before the file was used: the server answers 416."""
    url = f"{server.url}/official/cifar-100-python.tar.gz"
    folder = tmp_path / "downloads" / f"tiny-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True)
    (folder / "cifar-100-python.tar.gz.part").write_bytes(server.content)
    (folder / "cifar-100-python.tar.gz.part.json").write_text(json.dumps({"url": url, "validator": '"1"'}))
    assert load(server, tmp_path).digest == reference.digest
    assert ranges(server) == [f"bytes={len(server.content)}-"]


def test_file_that_changed_meanwhile_is_never_joined(server: Server, reference: Dataset, tmp_path: Path) -> None:
    old = bytes(len(server.content))
    server.answers = [{"cut": 1000, "content": old, "tag": '"0"'}, {}]
    assert load(server, tmp_path).digest == reference.digest


def test_server_without_ranges(server: Server, reference: Dataset, tmp_path: Path) -> None:
    server.answers = [{"cut": 1000, "ranges": False}, {"ranges": False}]
    assert load(server, tmp_path).digest == reference.digest


def test_server_without_ranges_that_always_cuts_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [{"cut": 1000, "ranges": False}]
    with pytest.raises(DataError, match="the connection ended early, 4 times in a row"):
        load(server, tmp_path)
    assert len(server.requests) == 4


def test_server_that_sends_another_range(server: Server, reference: Dataset, tmp_path: Path) -> None:
    server.answers = [{"cut": 1000}, {"shift": -10}, {}]
    assert load(server, tmp_path).digest == reference.digest
    assert ranges(server) == ["", "bytes=1000-", ""]


@pytest.mark.parametrize("tag", ['W/"1"', ""])
def test_without_a_firm_version_nothing_is_joined(tag: str, server: Server, reference: Dataset, tmp_path: Path) -> None:
    server.answers = [{"cut": 1000, "tag": tag}, {"tag": tag}]
    assert load(server, tmp_path).digest == reference.digest
    assert ranges(server) == ["", ""]


def test_last_modified_serves_too(server: Server, reference: Dataset, tmp_path: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.answers = [{"cut": 1000, "tag": "", "headers": {"Last-Modified": date}}, {"tag": date}]
    assert load(server, tmp_path).digest == reference.digest
    assert server.requests[1]["If-Range"] == date


def test_another_mirror_does_not_continue_the_first(server: Server, reference: Dataset, tmp_path: Path) -> None:
    server.answers = [{"cut": 1000}, {"status": 404}]
    with pytest.raises(DataError):
        load(server, tmp_path)
    server.answers = [{}]
    assert load(server, tmp_path, f"{server.url}/mirror").digest == reference.digest
    assert ranges(server)[-1] == ""


@given(cuts=st.lists(st.integers(1, 60_000), max_size=3))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut_anywhere_gives_the_same_bytes(cuts: list[int], server: Server, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.unlink(missing_ok=True)
    server.answers = [*({"cut": cut} for cut in cuts), {}]
    download.fetch(f"{server.url}/x", part, title="x", progress=False)
    assert part.read_bytes() == server.content


# ---------------------------------------------------------------------------------------------------- refusals


def ways(error: pytest.ExceptionInfo[DataError]) -> bool:
    text = str(error.value)
    return all(way in text for way in ("--data PATH", "image folder", "--mirror URL", "--data procedural"))


@pytest.mark.parametrize("status", [404, 403, 410])
def test_refused(status: int, server: Server, tmp_path: Path) -> None:
    server.answers = [{"status": status}]
    with pytest.raises(
        DataError, match=rf"tiny is not in the cache, and http.* cannot be .*: .*answered {status} "
    ) as error:
        load(server, tmp_path)
    assert ways(error) and error.value.exit_code == 3
    assert len(server.requests) == 1 and nothing_kept(tmp_path)


def test_busy_server_is_asked_again(server: Server, reference: Dataset, tmp_path: Path) -> None:
    server.answers = [{"status": 503}, {"status": 429}, {"status": 500}, {}]
    assert load(server, tmp_path).digest == reference.digest


def test_web_page_in_place_of_the_file(server: Server, tmp_path: Path) -> None:
    server.answers = [{"content": b"<html>log in</html>", "headers": {"Content-Type": "text/html; charset=utf-8"}}]
    with pytest.raises(DataError, match="the server sent a web page instead of a file"):
        load(server, tmp_path)
    assert nothing_kept(tmp_path)


def test_web_page_that_does_not_say_so(server: Server, tmp_path: Path) -> None:
    server.answers = [{"content": b"<html>log in</html>"}]
    with pytest.raises(
        DataError, match=r"what http.* sent is not tiny, and was not kept: .*neither an \.npz nor a tar"
    ):
        load(server, tmp_path)
    assert nothing_kept(tmp_path)


def test_cut_without_a_stated_length_is_found_by_the_content(server: Server, tmp_path: Path) -> None:
    server.answers = [{"cut": 300_000, "length": False}]
    with pytest.raises(DataError, match="sent is not tiny, and was not kept: .* is not a whole archive"):
        load(server, tmp_path)
    assert nothing_kept(tmp_path)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.9])
def test_one_flipped_bit(where: float, server: Server, tmp_path: Path) -> None:
    content = bytearray(server.content)
    content[int(len(content) * where)] ^= 4
    server.content = bytes(content)
    with pytest.raises(DataError, match="sent is not tiny, and was not kept"):
        load(server, tmp_path)
    assert nothing_kept(tmp_path)


def test_other_images(server: Server, tmp_path: Path) -> None:
    server.content = data_files.write_archive_bytes("gz", data_files.python_files(data_files.make_splits(5)))
    with pytest.raises(DataError, match="its images are not those of tiny: the content digest differs"):
        load(server, tmp_path)
    assert nothing_kept(tmp_path)


def test_fewer_images(server: Server, tmp_path: Path) -> None:
    server.content = data_files.write_archive_bytes(
        "gz", data_files.python_files(data_files.make_splits(0, per_class=1))
    )
    with pytest.raises(DataError, match="its train split has 100 images, 1 to 1 a class; tiny has 200, 2 a class"):
        load(server, tmp_path)


def test_stalled_connection(
    server: Server,
    reference: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.3)
    server.answers = [{"cut": 1000, "stall": 1.0}, {}]
    assert load(server, tmp_path).digest == reference.digest
    assert "tiny from 127.0.0.1: no answer within 0.3 s after 0.0 MB; trying again" in capsys.readouterr().err
    assert ranges(server) == ["", "bytes=1000-"]


def test_no_network(server: Server, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(DataError, match=r"cannot be downloaded: Connection refused") as error:
        load(server, tmp_path, f"http://127.0.0.1:{port}")
    assert ways(error) and time.monotonic() - start < 1


def test_no_name_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without a network: there is an error at once, and never other data instead."""

    def unresolved(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for data, published in PUBLISHED.items():
        with pytest.raises(DataError, match=rf"{data} is not in the cache, and no mirror has it") as error:
            sources.load(data, cache=tmp_path)
        assert ways(error)
        for mirror in published.mirrors:
            assert f"{mirror.urls[0]} cannot be downloaded: Temporary failure in name resolution" in str(error.value)
    assert nothing_kept(tmp_path)


def test_disk_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    real_open = Path.open

    def opened(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        return Full(path, "w") if path.suffix == ".part" and "b" in mode else real_open(path, mode, *more, **named)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(
        DataError, match=r"cannot write .*tiny-.*\.part: No space left on device, .* MiB free\. FASTCIFAR_DATA="
    ):
        load(server, tmp_path)


# ---------------------------------------------------------------------------------------------------- progress


def test_plain_lines_where_there_is_no_terminal(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(server, tmp_path, progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "downloading" in line]
    assert 2 <= len(lines) <= 12
    total = f"{len(server.content) / 1e6:,.1f}"
    assert lines[0] == f"fastcifar: downloading tiny from 127.0.0.1: 0.0 of {total} MB"
    assert re.fullmatch(rf"fastcifar: downloading tiny from 127.0.0.1: {total} of {total} MB, [\d.,]+ MB/s", lines[-1])


def test_bar_on_a_terminal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    load(server, tmp_path, progress=True)
    err = capsys.readouterr().err
    assert "downloading tiny" in err and "B/s" in err and "\x1b[" in err


def test_silent(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(server, tmp_path, progress=False)
    assert capsys.readouterr().err == ""
