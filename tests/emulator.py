"""Builds csrc/cuda/ as a library of CPU ops, `torch.ops.fastcifar_emulated` (see emu/cuda_emu.h)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CSRC, EMU = ROOT / "csrc", ROOT / "tests/emu"
CACHE = ROOT / "build/emulated"
TORCH = Path(torch.__file__).parent
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# g++ cannot see that moments without a count are not read.
FLAGS += ["-Wno-error=maybe-uninitialized"]
FLAGS += ["-DFASTCIFAR_EMULATED", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{EMU}"]
PLAIN = ["-O1"]
SANITIZED = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
RACES = ["-O0", "-g1", "-fsanitize=thread"]


def build(flags: list[str], ops: tuple[str, ...] = (), edits: Mapping[str, tuple[str, str]] | None = None) -> Path:
    """Builds a library of the CUDA ops for the CPU. Each object is kept until its sources change.

    Args:
        flags: flags for the compiler, added to FLAGS.
        ops: the stems of the ops; None is all ops.
        edits: bugs to plant. In each named file of csrc/ the first text is replaced by the second.

    Returns:
        The library's path.
    """
    kernels = sorted((CSRC / "cuda").glob("*.cu"))
    ops = ops or tuple(path.stem for path in kernels if path.with_name(f"{path.stem}_op.cpp").exists())
    texts = {str(path.relative_to(CSRC)): path.read_text() for path in [*CSRC.glob("*.h"), *(CSRC / "cuda").iterdir()]}
    for name, (old, new) in (edits or {}).items():
        assert old in texts[name], f"{name} no longer has the text to break: {old}"
        texts[name] = texts[name].replace(old, new)
    # All ops are compiled as one source, because torch's headers take seconds.
    parts = ["knobs.cpp", *(f"cuda/{op}_op.cpp" for op in ops)]
    texts["glue.cpp"] = "".join(f'#include "{part}"\n' for part in parts)
    headers = [name for name in texts if name.endswith(".h")] + parts[1:]
    kernel_headers = [name for name in texts if name.endswith((".h", ".cuh"))]
    used = [f"cuda/{path.name}" for path in kernels if path.stem in ops or path.stem == "merge"]

    def compile_(source: str) -> Path:
        read = [source, *(headers if source == "glue.cpp" else kernel_headers)]
        emu = [path.read_text() for path in sorted(EMU.iterdir())]
        key = hashlib.sha256(repr((FLAGS, flags, torch.__version__, emu, [texts[name] for name in read])).encode())
        folder = CACHE / f"{Path(source).stem}-{key.hexdigest()[:16]}"
        target = folder / "object.o"
        if target.exists():
            return target
        for name in read:
            (folder / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "csrc" / name).write_text(texts[name])
        language = ["-x", "c++"] if source.endswith(".cu") else [f"-isystem{TORCH / 'include'}"]
        unfinished = folder / f"{os.getpid()}.o"
        files = ["-c", str(folder / "csrc" / source), "-o", str(unfinished)]
        done = subprocess.run(
            ["g++", *FLAGS, *flags, f"-I{folder / 'csrc'}", *language, *files], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        unfinished.rename(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(compile_, ["glue.cpp", *used])]
    library = CACHE / f"{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        link = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu"]
        subprocess.run(["g++", "-shared", *flags, *objects, "-o", str(unfinished), *link], check=True)
        unfinished.rename(library)
    return library


def sanitizer_environment() -> dict[str, str]:
    """The environment of a Python process that loads a library built with SANITIZED."""
    # Python itself leaks memory, and its allocator would hide the ends of small blocks
    options = {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "LD_PRELOAD": _runtimes("asan", "ubsan"), **options}


def race_environment() -> dict[str, str]:
    """The environment of a Python process that loads a library built with RACES; see also `RACE_COMMAND`."""
    # Of the libraries only the kernels are instrumented; what others do to the same memory is no race of the kernels.
    options = {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=66", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "LD_PRELOAD": _runtimes("tsan"), **options}


RACE_COMMAND = ["setarch", "-R", sys.executable]
"""Python with memory where ThreadSanitizer expects it, and not at random places."""


def _runtimes(*names: str) -> str:
    """The sanitizers' libraries, which must be loaded before all others."""
    ask = [["g++", f"-print-file-name=lib{name}.so"] for name in names]
    return " ".join(subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in ask)
