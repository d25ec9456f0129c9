"""nvcc compiles every kernel for every architecture, and none of them spills a register; needs no GPU."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc/cuda"
CACHE = ROOT / "build/ptxas"
REGISTERS_AN_SM = 65536

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc here: the CUDA kernels are not compiled")


class Kernel(NamedTuple):
    name: str
    arch: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


def ptxas_report(source: Path, arch: str) -> str:
    """What ptxas says of a source; kept until a source or header changes."""
    key = hashlib.sha256(f"{source.name} {arch}".encode())
    for path in [source, *sorted(CUDA.glob("*.cuh")), CUDA / "launch.h", ROOT / "csrc/common.h"]:
        key.update(path.read_bytes())
    kept = CACHE / f"{source.stem}.sm_{arch}.{key.hexdigest()[:16]}"
    if not kept.exists():
        flags = ["-std=c++17", "-O3", "-Xptxas=-v", f"-I{ROOT / 'csrc'}", f"-arch=sm_{arch}", "-c"]
        done = subprocess.run(["nvcc", *flags, "-o", os.devnull, str(source)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        warnings = [line for line in done.stderr.splitlines() if "warning" in line]
        assert not warnings, warnings
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stderr)
    return kept.read_text()


def kernels(arch: str) -> list[Kernel]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda source: ptxas_report(source, arch), sorted(CUDA.glob("*.cu"))))
    found = []
    for report in reports:
        for name, text in re.findall(r"Compiling entry function '(\w+)'(.*?Used \d+ registers[^\n]*)", report, re.S):
            registers = int(re.findall(r"Used (\d+) registers", text)[0])
            shared = re.findall(r"(\d+) bytes smem", text)
            spilled = sum(map(int, re.findall(r"(\d+) bytes (?:spill|stack)", text)))
            found.append(Kernel(name, arch, registers, int(shared[0]) if shared else 0, spilled))
    assert len(found) > 50
    return found


def readable(name: str) -> str:
    tool = shutil.which("c++filt")
    if not tool:
        return name
    text = subprocess.run([tool, name], capture_output=True, text=True, check=True).stdout
    return re.sub(r"\((?!fastcifar::cuda::).*", "", text.strip()).replace("fastcifar::", "").replace("cuda::", "")


def check(arch: str) -> None:
    found = kernels(arch)
    print(f"\n{'registers':>9} {'shared':>7}  kernel (sm_{arch})")
    for kernel in sorted(found, key=lambda k: -k.registers):
        print(f"{kernel.registers:>9} {kernel.shared_bytes:>7}  {readable(kernel.name)}")
    assert [k for k in found if k.spilled_bytes] == []
    # Static shared memory is 48 KiB a block at most; 16 warps an SM are the least that hides latency here.
    assert all(k.shared_bytes <= 49152 for k in found)
    cramped = [k for k in found if k.registers * 512 > REGISTERS_AN_SM]
    allowed = "backwardIfLi2ELi1ELi4ELi4ELb1E" if arch == "90" else "dwconv3x3_backward.*ELi4ELb[01]E"
    assert all(re.search(allowed, k.name) for k in cramped), cramped


def test_no_kernel_spills_on_hopper() -> None:
    """`pytest -s` prints the registers of every kernel."""
    check("90")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["75", "80", "86", "89", "100", "120"])
def test_no_kernel_spills_on(arch: str) -> None:
    check(arch)
