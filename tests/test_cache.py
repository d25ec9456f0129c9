"""The cache: an entry is whole or absent, whatever happens to the disk, the file or another process."""

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.data import cache
from fastcifar.data.cache import Entry
from fastcifar.errors import DataError

ROOT = Path(__file__).resolve().parent.parent


def make(value: int = 1) -> Entry:
    return Entry({"a": np.full((3, 4), value, np.uint8), "b": np.arange(5)}, {"names": ["x", "ÿ"], "value": value})


def same(a: Entry, b: Entry) -> bool:
    return a.meta == b.meta and all(
        np.array_equal(a.arrays[k], b.arrays[k]) and a.arrays[k].dtype == b.arrays[k].dtype for k in ("a", "b")
    )


class Builder:
    """Counts how often it is called."""

    def __init__(self, value: int = 1) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> Entry:
        self.calls += 1
        return make(self.value)


def test_built_once_and_equal_afterwards(tmp_path: Path) -> None:
    build = Builder()
    entries = [cache.cached(tmp_path / "deep" / "cache", "n", "f", build) for _ in range(3)]
    assert build.calls == 1 and all(same(entry, make()) for entry in entries)
    assert entries[2].arrays["a"].flags.writeable  # torch.from_numpy warns of arrays that are not writable
    assert sorted(p.name for p in (tmp_path / "deep" / "cache").iterdir() if p.suffix != ".lock") == ["n.safetensors"]


def test_another_fingerprint_builds_anew(tmp_path: Path) -> None:
    cache.cached(tmp_path, "n", "f", Builder(1))
    assert same(cache.cached(tmp_path, "n", "g", Builder(2)), make(2))
    assert same(cache.cached(tmp_path, "n", "g", Builder(3)), make(2))


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_found(data: st.DataObject, tmp_path: Path) -> None:
    """safetensors itself notices none of 4,036 bits flipped in a payload."""
    path = tmp_path / "n.safetensors"
    path.unlink(missing_ok=True)
    cache.cached(tmp_path, "n", "f", make)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    path.write_bytes(content)
    assert same(cache.cached(tmp_path, "n", "f", make), make())
    build = Builder()
    assert same(cache.cached(tmp_path, "n", "f", build), make()) and build.calls == 0


def test_damage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.cached(tmp_path, "n", "f", make)
    path = tmp_path / "n.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    build = Builder()
    cache.cached(tmp_path, "n", "f", build)
    assert build.calls == 1
    told = capsys.readouterr().err
    assert (
        told
        == f"fastcifar: the cached data {path} is damaged (its content does not match its checksum): making it anew\n"
    )


def test_error_while_building_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Entry:
        raise DataError("no")

    with pytest.raises(DataError, match="^no$"):
        cache.cached(tmp_path, "n", "f", fail)
    assert not list(tmp_path.glob("*.safetensors"))
    assert same(cache.cached(tmp_path, "n", "f", make), make())  # and the lock is free again


# ---------------------------------------------------------------------------------------------------- other processes

PROCESS = """
    import errno, os, resource, sys, time
    from pathlib import Path
    import filelock, numpy, platformdirs, safetensors.numpy
    from fastcifar.data import cache
    from fastcifar.errors import DataError
    from fastcifar.data.cache import Entry
    folder = Path(sys.argv[1])
    def build():
        print("building", flush=True)
        time.sleep(float(os.environ.get("SLEEP", "0")))
        return Entry({"a": numpy.full(1 << 16, 7, numpy.uint8)}, {})
    def load():
        entry = cache.cached(folder, "n", "f", build)
        assert (entry.arrays["a"] == 7).all() and entry.arrays["a"].size == 1 << 16
        print("loaded", flush=True)
"""


def process(folder: Path, code: str, **environment: str) -> "subprocess.Popen[str]":
    script = textwrap.dedent(PROCESS) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, code: str) -> tuple[str, str, int]:
    started = process(folder, code)
    out, err = started.communicate(timeout=60)
    return out, err, started.returncode


def test_two_processes_build_once(tmp_path: Path) -> None:
    first = process(tmp_path, "load()", SLEEP="2")
    assert first.stdout and first.stdout.readline() == "building\n"  # it holds the lock now
    second = process(tmp_path, "load()")
    (out, err), (second_out, second_err) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (out, err, first.returncode) == ("loaded\n", "", 0)
    assert (second_out, second.returncode) == ("loaded\n", 0)
    assert second_err in ("", f"fastcifar: waiting for another process that is preparing n in {tmp_path}\n")


def test_many_processes_at_once(tmp_path: Path) -> None:
    started = [process(tmp_path, "load()", SLEEP="0.2") for _ in range(4)]
    outs = [one.communicate(timeout=60)[0] for one in started]
    assert [one.returncode for one in started] == [0] * 4
    assert "".join(outs).count("building") == 1


@pytest.mark.parametrize("moment", ["os.fsync", "Path.replace"])
def test_killed_while_writing(moment: str, tmp_path: Path) -> None:
    """SIGKILL before the bytes are safe, or before the rename: no entry, and the next process makes it."""
    module, name = moment.split(".")
    _, _, code = run(tmp_path, f"{module}.{name} = lambda *_: os.kill(os.getpid(), 9)\nload()")
    assert code == -9 and not (tmp_path / "n.safetensors").exists()
    assert run(tmp_path, "load()") == ("building\nloaded\n", "", 0)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["n.safetensors"]


def test_disk_full(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: a real write fails in its middle."""
    out, err, code = run(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            load()
        except DataError as error:
            print(error)
        """,
    )
    assert (err, code) == ("", 0)
    path = tmp_path / "n.safetensors"
    assert out.startswith(f"building\ncannot write {path}: File too large, ")
    assert "MiB free. FASTCIFAR_DATA=FOLDER keeps the data in another folder." in out
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A folder for other users: root must become one to be refused, and they cannot enter pytest's folders."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        yield path
        path.chmod(0o755)


def test_read_only_cache(readable_by_all: Path) -> None:
    folder = readable_by_all
    folder.chmod(0o555)
    as_other = "if os.geteuid() == 0: os.seteuid(65534)\nload()"
    out, err, code = run(folder, as_other)
    assert (out, code) == ("building\nloaded\n", 0)
    note = f"fastcifar: the data cache {folder} cannot be written (Permission denied): decoding without it. "
    assert err == note + "FASTCIFAR_DATA=FOLDER names another.\n"
    folder.chmod(0o755)
    run(folder, "os.umask(0o022)\nload()")  # the other user may read the entry
    folder.chmod(0o555)
    assert run(folder, as_other) == ("loaded\n", "", 0)  # what is there is used


# ---------------------------------------------------------------------------------------------------- where


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTCIFAR_DATA", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "x"
    monkeypatch.delenv("FASTCIFAR_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_folder() == tmp_path / "xdg" / "fastcifar"


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"cannot write .*file: .*FASTCIFAR_DATA=FOLDER keeps the data in another folder"
    ):
        cache.cached(tmp_path / "file", "n", "f", make)


# ---------------------------------------------------------------------------------------------------- odd systems


def test_entry_of_another_user_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.cached(tmp_path, "n", "f", Builder(1))
    refused = PermissionError(13, "Permission denied")

    def closed(*_: object, **__: object) -> None:
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", closed)
        build = Builder(2)
        assert same(cache.cached(tmp_path, "n", "f", build), make(2)) and build.calls == 1
    assert same(cache.cached(tmp_path, "n", "f", Builder(3)), make(2))


def test_disk_that_cannot_be_read_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("safetensors.safe_open", broken)
    with pytest.raises(
        DataError, match=r"cannot read the cached data .*n\.safetensors: Input/output error\. FASTCIFAR_DATA="
    ):
        cache.cached(tmp_path, "n", "f", make)


def test_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("filelock.FileLock.acquire", unknown)
    build = Builder()
    for _ in range(2):
        assert same(cache.cached(tmp_path, "n", "f", build), make())
    assert build.calls == 1 and [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]
    assert "knows no locks: two processes that start at once may both prepare n" in capsys.readouterr().err


def test_holds(tmp_path: Path) -> None:
    assert not cache.holds(tmp_path, "n", "f")
    cache.cached(tmp_path, "n", "f", make)
    assert cache.holds(tmp_path, "n", "f")
    assert not cache.holds(tmp_path, "n", "g") and not cache.holds(tmp_path, "n", "f", ("0",))
