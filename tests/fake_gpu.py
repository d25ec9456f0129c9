"""Builds a GPU that is not there (fake/gpu.h), and the environment of a process that sees it.

It needs a CUDA build of torch, but none of NVIDIA's libraries: the fake stands in for the functions that are called,
and empty libraries for the names that the loader asks for. It also needs the CUDA ops, compiled. They are linked anew,
because the extension holds a CUDA runtime of its own, whose launches no stand-in would see.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
FAKE, TESTS, BUILD = ROOT / "tests/fake", ROOT / "tests", ROOT / "build/fake"
OBJECTS = ROOT / "build/objects"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-shared"]


def find_torch() -> Path | None:
    """The folder of this environment's torch if it is a CUDA build. It is not imported: that would need the fake."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    is_cuda = re.search(r"^cuda\b.*?'.+'", (folder / "version.py").read_text(), re.MULTILINE)
    return folder if is_cuda else None


def find_cuda_headers() -> Path | None:
    """The include folder of the CUDA toolkit, or of NVIDIA's wheels."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if on_path := shutil.which("nvcc"):
        homes.append(Path(on_path).resolve().parents[1])
    homes.append(Path("/usr/local/cuda"))
    if spec := importlib.util.find_spec("nvidia"):
        homes += [home for path in spec.submodule_search_locations or () for home in Path(path).glob("cu13")]
    return next((home / "include" for home in homes if (home / "include/cuda_runtime_api.h").exists()), None)


def why_not() -> str:
    """Why there can be no fake GPU here; empty if there can."""
    if find_torch() is None:
        return "torch is not a CUDA build: `make test-fake-gpu` installs one"
    if not shutil.which("g++"):
        return "needs g++ to build the fake GPU"
    if find_cuda_headers() is None:
        return "needs the headers of the CUDA toolkit"
    return ""


def build_library() -> Path:
    """Builds the fake and the empty libraries; returns their folder."""
    torch, headers = find_torch(), find_cuda_headers()
    assert torch is not None and headers is not None
    sources = [Path(__file__), *sorted(FAKE.iterdir())]
    key = hashlib.sha256(repr([str(torch), *(path.read_bytes() for path in sources)]).encode()).hexdigest()[:16]
    folder = BUILD / f"library-{key}"
    if folder.exists():
        return folder
    unfinished = BUILD / f"library.{os.getpid()}"
    unfinished.mkdir(parents=True)
    cpp = [str(path) for path in sources if path.suffix == ".cpp"]
    fake = unfinished / "libfake_gpu.so"
    missing = unfinished / "missing.cpp"
    missing.write_text("")
    link = ["-o", str(fake), "-ldl", "-lpthread"]
    _run("g++", *FLAGS, f"-I{headers}", *cpp, *link)
    missing.write_text(_missing_functions(torch, fake))
    _run("g++", *FLAGS, f"-I{headers}", *cpp, str(missing), *link)
    for name in ("libcuda.so", "libcuda.so.1"):  # what Triton links with, and what it loads
        (unfinished / name).symlink_to(fake.name)
    for name, versions in _nvidia_libraries(torch).items():
        # Each version that torch asks for is declared, or the loader says at every start that it is missing.
        script = unfinished / "versions.map"
        script.write_text("".join(f"{version} {{}};\n" for version in versions))
        script_flag = [f"-Wl,--version-script={script}"] if versions else []
        _run("g++", "-shared", "-nostdlib", "-x", "c", "/dev/null", f"-Wl,-soname,{name}", *script_flag, "-o",
             str(unfinished / name))  # fmt: skip
    unfinished.rename(folder)
    return folder


def _missing_functions(torch: Path, fake: Path) -> str:
    """C++ of every other function of NVIDIA's that torch names: whoever calls one is told which.

    The loader looks for those whose address is taken, called or not.
    """
    named = {line.split()[-1].split("@")[0] for line in _symbols("--undefined-only", *(torch / "lib").glob("*.so"))}
    there = {line.split()[-1] for line in _symbols("--defined-only", fake)}
    wanted = sorted(name for name in named - there if re.match(r"(__)?(cu|nccl|nvrtc|nvshmem|nvJitLink)\w", name))
    define = '#define MISSING(name) extern "C" __attribute__((visibility("default"))) void name()'
    define += ' { std::fprintf(stderr, "fake GPU: there is no " #name "\\n"), std::abort(); }'
    lines = ["#include <cstdio>", "#include <cstdlib>", define, *(f"MISSING({name})" for name in wanted)]
    return "\n".join(lines) + "\n"


def _symbols(kind: str, *libraries: Path) -> list[str]:
    text = _run("nm", "--dynamic", kind, *map(str, libraries))
    return [line for line in text.splitlines() if line.strip() and not line.endswith(":")]


def _nvidia_libraries(torch: Path) -> dict[str, list[str]]:
    """Name of each library of NVIDIA's that torch is linked with -> the symbol versions that torch asks it for."""
    found: dict[str, list[str]] = {}
    for library in sorted((torch / "lib").glob("*.so")):
        text = _run("objdump", "-p", str(library))
        for name in re.findall(r"NEEDED\s+(lib(?:cu|nv|nccl)\S+)", text):
            found.setdefault(name, [])
        found.pop("libcuda.so.1", None)  # the fake itself
        for name, versions in re.findall(r"required from (\S+):\n((?:    0x.*\n)+)", text):
            if name in found:
                found[name] = sorted({*found[name], *re.findall(r"\d+ (\S+)$", versions, re.MULTILINE)})
    return found


def link_cuda_ops() -> Path:
    """The extension's CUDA ops, linked with the fake in place of their CUDA runtime; returns the library."""
    torch = find_torch()
    assert torch is not None
    sources = [path for path in sorted((ROOT / "csrc/cuda").iterdir()) if path.suffix in (".cu", ".cpp")]
    objects = []
    for source in sources:
        found = sorted(OBJECTS.glob(f"cuda-*/{source.name}.o"), key=lambda path: path.stat().st_mtime)
        assert found and _is_fresh(found[-1]), (
            f"{source.name} is not compiled as it is now: FASTCIFAR_CUDA=1 FASTCIFAR_CUDA_ARCHS=90 make setup"
        )
        objects.append(found[-1])
    key = hashlib.sha256(repr([(str(path), path.stat().st_mtime_ns) for path in objects]).encode()).hexdigest()[:16]
    library = BUILD / f"_C_cuda-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        libraries = ["-Wl,--no-as-needed", f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu"]
        _run("g++", "-shared", *map(str, objects), "-o", str(unfinished), *libraries)
        unfinished.rename(library)
    return library


def _is_fresh(compiled: Path) -> bool:
    """Whether nothing that an object was made of, which the compiler wrote down beside it, is newer."""
    _, _, inputs = compiled.with_suffix(".d").read_text().partition(": ")
    read = [ROOT / name for name in inputs.replace("\\\n", " ").split()]
    return all(path.exists() and path.stat().st_mtime < compiled.stat().st_mtime for path in read)


def package(*, cuda_ops: bool) -> Path:
    """A folder with the package as it is here, and with the CUDA ops linked anew, or without them."""
    links = {
        path.name: path for path in (ROOT / "fastcifar").iterdir() if not path.name.startswith(("_C_cuda", "__py"))
    }
    if cuda_ops:
        links["_C_cuda.abi3.so"] = link_cuda_ops()
    folder = BUILD / f"package-{hashlib.sha256(repr(sorted(links.items())).encode()).hexdigest()[:16]}"
    if not folder.exists():
        unfinished = BUILD / f"package.{os.getpid()}"
        (unfinished / "fastcifar").mkdir(parents=True)
        (unfinished / "configs").symlink_to(ROOT / "configs")
        for name, path in links.items():
            (unfinished / "fastcifar" / name).symlink_to(path)
        unfinished.rename(folder)
    return folder


def environment(*, cuda_ops: bool = True, devices: int = 1, capability: str = "9.0") -> dict[str, str]:
    """The environment of a process that sees fake GPUs.

    Args:
        cuda_ops: whether the extension has its CUDA ops there.
        devices: the number of GPUs.
        capability: their compute capability.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / "lock"):  # several processes run tests
        library, packaged = build_library(), package(cuda_ops=cuda_ops)
    before = os.environ.get("LD_LIBRARY_PATH", "")
    return {
        **os.environ,
        "LD_PRELOAD": str(library / "libfake_gpu.so"),
        "LD_LIBRARY_PATH": f"{library}:{before}" if before else str(library),
        "TRITON_LIBCUDA_PATH": str(library),
        "FAKE_GPU_DEVICES": str(devices),
        "FAKE_GPU_CAPABILITY": capability.replace(".", ""),
        "PYTHONPATH": f"{packaged}:{TESTS}",
    }


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    return done.stdout


if __name__ == "__main__":  # fake_gpu.py COMMAND...: runs a command that sees one fake GPU
    command = sys.argv[1:]
    os.execvpe(command[0], command, environment())
