"""What the wheel and the sdist hold, that versions are pinned, and what `make` says when something is missing."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fastcifar

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted(path.name for path in (ROOT / "configs").glob("*.toml"))


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command without the environment variables that choose what is built."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("FASTCIFAR_")}
    return subprocess.run([*map(str, command)], cwd=cwd, env={**own, **env}, text=True, capture_output=True)


def build(hook: str, source: Path, out: Path, **env: str) -> Path:
    """Calls a hook of the project's build backend, as pip does."""
    code = f"import fastcifar_backend; print('built', fastcifar_backend.{hook}({str(out)!r}))"
    done = run(sys.executable, "-c", code, cwd=source, PYTHONPATH=str(source / "build_backend"), **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / re.findall(r"^built (\S+)$", done.stdout, re.M)[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the project whose C++ sources are replaced by ones that compile quickly."""
    root = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("fastcifar", "configs", "build_backend", "requirements"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, root)
    (root / "README.md").write_text("# fastcifar\n")
    (root / "csrc/cpu").mkdir(parents=True)
    (root / "csrc/common.h").write_text("namespace fastcifar {}\n")
    (root / "csrc/schemas.cpp").write_text('#include "common.h"\n')
    (root / "csrc/cpu/add_kernel.cpp").write_text("namespace FASTCIFAR_ISA { int f() { return 1; } }\n")
    return root


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stale = checkout / "build/lib/fastcifar/removed_long_ago.py"
    stale.parent.mkdir(parents=True, exist_ok=True)  # another test of this process may have built there
    stale.write_text("")
    return build("build_wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", checkout, tmp_path_factory.mktemp("sdist"))


def members(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def metadata(wheel: Path) -> Message:
    name = next(name for name in members(wheel) if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())


def test_the_wheel_holds_the_package_its_presets_and_its_libraries(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastcifar").rglob("*.py")}
    inside = {name for name in members(wheel) if ".dist-info/" not in name}
    extras = {"fastcifar/py.typed", "fastcifar/_build.json"} | {f"fastcifar/configs/{name}" for name in PRESETS}
    extras |= {f"fastcifar/report/templates/{name}" for name in ("page.html", "page.css")}
    libraries = {"fastcifar/_C.abi3.so"} if sys.platform == "linux" and shutil.which("g++") else set()
    assert inside == modules | extras | libraries


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    about = metadata(wheel)
    assert (about["Name"], about["Version"]) == ("fastcifar", fastcifar.__version__)
    assert about["Requires-Python"] == ">=3.10"
    assert about["License-Expression"] == "Apache-2.0"
    extras = {
        "completion",
        "dali",
        "dev",
        "docs",
        "onnx",
        "parquet",
        "ray",
        "search",
        "tensorboard",
        "test",
        "timm",
        "torchvision",
        "trackio",
    }
    assert extras == set(about.get_all("Provides-Extra"))
    scripts = configparser.ConfigParser()
    entry_points = next(name for name in members(wheel) if name.endswith("entry_points.txt"))
    scripts.read_string(zipfile.ZipFile(wheel).read(entry_points).decode())
    assert scripts["console_scripts"]["fastcifar"] == "fastcifar.cli.main:main"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="nothing is compiled here")
def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert re.search(r"-cp310-abi3-linux_\w+\.whl$", wheel.name)


def test_without_a_compiler_the_wheel_is_pure(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    wheel = build("build_wheel", checkout, tmp_path, PATH=str(tmp_path / "bin"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in members(wheel) if name.endswith(".so")]
    assert "no C++ compiler" in zipfile.ZipFile(wheel).read("fastcifar/_build.json").decode()


def test_an_installed_wheel_finds_its_presets(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "from fastcifar import presets; print(*(preset.name for preset in presets.list_presets()))"
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert {f"{name}.toml" for name in done.stdout.split()} == set(PRESETS), done.stderr


def test_the_sdist_holds_all_that_builds_and_tests(sdist: Path) -> None:
    inside = members(sdist)
    assert {"csrc/common.h", "csrc/schemas.cpp", "csrc/cpu/add_kernel.cpp"} <= inside
    assert {f"configs/{name}" for name in PRESETS} <= inside
    assert {"build_backend/fastcifar_backend.py", "requirements/constraints.txt", "Makefile", "LICENSE"} <= inside
    assert not [name for name in inside if name.endswith((".so", ".pyc", "_build.json"))]


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = build("build_wheel", unpacked, tmp_path)
    assert again.name == wheel.name
    assert members(again) == members(wheel)


def test_the_backend_asks_for_torch_only_where_there_is_none(tmp_path: Path) -> None:
    code = "import fastcifar_backend as b, sys, sysconfig; print(*b._extra())"
    empty = {"PYTHONPATH": str(ROOT / "build_backend"), "FASTCIFAR_CUDA": "auto", "CXX": "g++"}
    assert run(sys.executable, "-c", code, cwd=tmp_path, **empty).stdout.split() == []
    no_torch = f"import sysconfig; sysconfig.get_path = lambda _: {str(tmp_path)!r}; import importlib.util as u; "
    no_torch += "u.find_spec = lambda _: None; "
    done = run(sys.executable, "-c", no_torch + code, cwd=tmp_path, **empty)
    pinned = next(line for line in constraints().values() if canonicalize_name(line.name) == "torch")
    assert done.stdout.split() == [str(pinned)]
    asked = run(sys.executable, "-c", code, cwd=tmp_path, **empty | {"FASTCIFAR_CUDA": "wheel"}).stdout.split()
    assert len(asked) == 5 and all("==" in line for line in asked)


# --- Versions ---------------------------------------------------------------------------------------------------------


def constraints() -> dict[str, Requirement]:
    """The constraints that apply to this version of Python."""
    lines = (ROOT / "requirements/constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(line.name): line for line in found if not line.marker or line.marker.evaluate()}


def test_every_version_that_make_installs_is_pinned(wheel: Path) -> None:
    """All but NVIDIA's libraries: a CUDA build of torch says itself which it needs. All but torch has hashes."""
    pinned = constraints()
    assert all(re.fullmatch(r"==[\w.]+", str(line.specifier)) for line in pinned.values())
    queue = [("fastcifar", "dev")]
    seen = set(queue)
    for name, extra in queue:
        lines = metadata(wheel).get_all("Requires-Dist") if name == "fastcifar" else requires(name)
        for needed in map(Requirement, lines or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                found = canonicalize_name(needed.name)
                if name == "torch" and found.startswith(("nvidia-", "cuda-")):
                    continue
                assert found in pinned or found == "fastcifar" or "==" in str(needed.specifier), (
                    f"{name} needs {needed}"
                )
                new = {(found, part) for part in needed.extras or {""}} - seen
                seen |= new
                queue += new
    assert {("torch", ""), ("mypy", ""), ("numpy", "")} < seen
    locked = {canonicalize_name(pin.partition("==")[0]) for pin in lock()}
    assert {name for name, _ in seen if name in pinned} - {"torch", "torchvision"} <= locked, "make installs by hashes"


def lock() -> dict[str, int]:
    """The pins of the lock file, as they stand in the constraints, and how many hashes each has."""
    found: dict[str, int] = {}
    for line in (ROOT / "requirements/lock.txt").read_text().splitlines():
        if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            found[[*found][-1]] += 1
        elif not line.startswith("#"):
            pin = line.removesuffix(" \\").replace("python_full_version", "python_version")
            found[pin.replace(" ", "").replace("'", '"')] = 0
    return found


def test_every_pin_of_the_lock_file_is_one_of_the_constraints() -> None:
    pins = (ROOT / "requirements/constraints.txt").read_text().replace(" ", "").splitlines()
    assert set(lock()) <= set(pins) and min(lock().values()) >= 1


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_container_has_the_pinned_versions(name: str) -> None:
    """No container can be built here: what it copies exists, and it names no version of its own."""
    text = (ROOT / f"docker/{name}.Dockerfile").read_text()
    copied = [source for line in re.findall(r"^COPY (?!--)(.+)$", text, re.M) for source in line.split()[:-1]]
    assert copied and all((ROOT / source).exists() for source in copied)
    assert text.count("-c requirements/constraints.txt") >= 2 and not re.search(r"torch[=<>]", text)
    assert 'ENTRYPOINT ["fastcifar"]' in text


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_container_writes_where_its_user_may_and_downloads_from_both_mirrors(name: str) -> None:
    text = (ROOT / f"docker/{name}.Dockerfile").read_text()
    head = text[: text.index("FROM")]
    assert "# mkdir -p runs\n" in head and '--user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD/runs:' in head
    assert "chmod -R a+rwX /data /trainings" in text, "that user has another number than the image's"
    assert '"$(echo /wheels/*.whl)[parquet]"' in text


def test_a_container_takes_pytorch_alone_from_its_index() -> None:
    """The index may lack the pinned versions of what PyTorch needs."""
    text = (ROOT / "docker/cpu.Dockerfile").read_text()
    from_index = re.findall(r"pip install [^\n]*--index-url[^\n]*", text)
    assert len(from_index) == 2 and all("--no-deps" in line for line in from_index)


# --- The Makefile -----------------------------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make here")


@needs_make
def test_make_alone_lists_the_targets(checkout: Path) -> None:
    done = run("make", cwd=checkout)
    assert done.returncode == 0, done.stderr
    for target in ("train", "test", "test-all", "bench", "lint", "wheel", "clean"):
        assert re.search(rf"^  {target} +\S", done.stdout, re.M), target


@needs_make
@pytest.mark.parametrize("compiler", ["", "g++", "clang++", "c++"])
def test_make_sees_every_compiler(checkout: Path, tmp_path: Path, compiler: str) -> None:
    """The bug: dash looks for the first name alone, so that nothing was built anew when clang++ appeared."""
    if compiler:
        (tmp_path / compiler).symlink_to("/bin/true")
    make = [str(shutil.which("make")), "-pn", "help", "SHELL=/bin/sh"]
    done = subprocess.run(make, cwd=checkout, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert ("OPS := .venv/ops-cuda-auto\n" in done.stdout) == bool(compiler), done.stderr


@needs_make
@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("no-such-python", "there is no no-such-python: install Python 3.10 or newer"),
        ('case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac', "Python 3.10 or newer is needed, and"),
        ('case "$1" in -V) echo Python 3.11.2;; -m) exit 1;; esac', "apt install python3-venv"),
    ],
    ids=["none", "old", "no venv"],
)
def test_make_says_what_to_install(checkout: Path, tmp_path: Path, python: str, message: str) -> None:
    if " " in python:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
        (tmp_path / "python").chmod(0o755)
        python = str(tmp_path / "python")
    done = run("make", "train", f"PYTHON={python}", cwd=checkout)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (checkout / ".venv").exists()
