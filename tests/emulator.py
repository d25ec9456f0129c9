"""Builds csrc/cuda/ as a library of CPU ops, `torch.ops.fastcifar_emulated`: see emu/cuda_emu.h."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CSRC, EMU = ROOT / "csrc", ROOT / "tests/emu"
CACHE = ROOT / "build/emulated"
TORCH = Path(torch.__file__).parent
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
FLAGS += ["-DFASTCIFAR_EMULATED", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{EMU}"]
PLAIN = ["-O1"]
SANITIZED = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(flags: list[str], ops: tuple[str, ...] = (), edits: Mapping[str, tuple[str, str]] | None = None) -> Path:
    """The library of the given ops (default: all), compiled with `flags`; kept until a source, torch or a flag changes.

    `edits` plants bugs: in the file of csrc/ of that name the first text is replaced by the second.
    """
    edits = edits or {}
    kernels = sorted((CSRC / "cuda").glob("*.cu"))
    ops = ops or tuple(path.stem for path in kernels if path.with_name(f"{path.stem}_op.cpp").exists())
    sources = [*sorted(CSRC.glob("*.h")), *sorted((CSRC / "cuda").iterdir()), *sorted(EMU.iterdir())]
    key = hashlib.sha256(repr((FLAGS, flags, ops, edits, torch.__version__)).encode())
    for source in sources:
        key.update(source.read_bytes())
    folder = CACHE / key.hexdigest()[:16]
    library = folder / "emulated.so"
    if library.exists():
        return library
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CSRC, folder / "csrc", ignore=shutil.ignore_patterns("cpu"))
    for name, (old, new) in edits.items():
        path = folder / "csrc" / name
        text = path.read_text()
        assert old in text, f"{name} no longer has the text to break: {old}"
        path.write_text(text.replace(old, new))
    glue = folder / "glue.cpp"  # one source, because torch's headers take seconds
    parts = ["library.cpp", *(f"cuda/{op}_op.cpp" for op in ops)]
    glue.write_text("".join(f'#include "{part}"\n' for part in parts))

    def compile_(source: Path) -> str:
        language = ["-x", "c++"] if source.suffix == ".cu" else [f"-isystem{TORCH / 'include'}"]
        target = folder / f"{source.stem}.o"
        command = ["g++", *FLAGS, *flags, f"-I{folder / 'csrc'}", *language, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return str(target)

    used = [folder / "csrc/cuda" / path.name for path in kernels if path.stem in ops or path.stem == "merge"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_, [glue, *used]))
    unfinished = folder / "unfinished.so"
    link = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu"]
    subprocess.run(["g++", "-shared", *flags, *objects, "-o", str(unfinished), *link], check=True)
    unfinished.rename(library)
    return library


def sanitizer_environment() -> dict[str, str]:
    """For a Python process that loads a library built with SANITIZED."""
    runtimes = [
        subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True).stdout
        for name in ("asan", "ubsan")
    ]
    # Python itself leaks; and its allocator would hide small blocks' ends
    options = {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "LD_PRELOAD": " ".join(path.strip() for path in runtimes), **options}
