"""nvcc compiles every kernel for every architecture, none of them spills a register, and memory is read in vectors.

No GPU is needed.
"""

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
BUILT = ROOT / "build/_C_cuda.ptxas"  # what ptxas said when the extension was built
REGISTERS_AN_SM = 65536

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc here: the CUDA kernels are not compiled")


class Kernel(NamedTuple):
    name: str
    arch: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


def nvcc(source: Path, name: str, *flags: str) -> tuple[Path, str]:
    """The output file and the messages of nvcc for a source; kept as `name` until a source or header changes."""
    key = hashlib.sha256(" ".join(flags).encode())
    for path in [source, *sorted(CUDA.glob("*.cuh")), CUDA / "launch.h", ROOT / "csrc/common.h"]:
        key.update(path.read_bytes())
    kept = CACHE / f"{name}.{key.hexdigest()[:16]}"
    said = CACHE / f"{kept.name}.txt"
    if not said.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", *flags, "-o", str(kept), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        warnings = [line for line in done.stderr.splitlines() if "warning" in line]
        assert not warnings, warnings
        said.write_text(done.stderr)
    return kept, said.read_text()


def ptx(source: Path, arch: str) -> Path:
    return nvcc(source, f"{source.stem}.ptx_{arch}", f"-arch=sm_{arch}", "-ptx")[0]


def ptxas_report(source: Path, arch: str) -> str:
    code = CACHE / f"{ptx(source, arch).name}.ptx"  # nvcc knows a file by its ending
    code.write_bytes(ptx(source, arch).read_bytes())
    return nvcc(code, f"{source.stem}.sm_{arch}", "-Xptxas=-v", f"-arch=sm_{arch}", "-cubin")[1]


def entries(source: Path, arch: str = "90") -> list[tuple[str, str]]:
    """Name and PTX of each kernel of a source."""
    text = ptx(source, arch).read_text()
    return re.findall(r"\.entry (\w+)\((.*?)\n\}", text, re.DOTALL)


def built_report(arch: str) -> str:
    """What ptxas said of this architecture when the extension was built from these sources; otherwise an empty text."""
    sources = [*CUDA.iterdir(), *(ROOT / "csrc").glob("*.h")]
    if not BUILT.exists() or BUILT.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        return ""
    text = BUILT.read_text()
    return text if f"for 'sm_{arch}'" in text else ""


def kernels(arch: str) -> list[Kernel]:
    if report := built_report(arch):
        reports = [report]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reports = list(pool.map(lambda source: ptxas_report(source, arch), sorted(CUDA.glob("*.cu"))))
    found = []
    compiled = rf"Compiling entry function '(\w+)' for 'sm_{arch}a?'(.*?Used \d+ registers[^\n]*)"
    for report in reports:
        for name, text in re.findall(compiled, report, re.S):
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
    # Static shared memory is 48 KiB a block at most; 16 warps an SM are the least that hides latency here. Where a
    # block owns channels of a whole batch, there are fewer blocks than SMs, and a thread has whole maps on their way. A
    # product of 128 by 128 channels keeps 64 sums a thread, and 12 vectors of its next tile on their way.
    assert all(k.shared_bytes <= 49152 for k in found)
    cramped = [k for k in found if k.registers * 512 > REGISTERS_AN_SM]
    allowed = "dwconv3x3_backward.*Li2ELi1ELi4ELi4ELb0ELb1E" if arch == "90" else "dwconv3x3_backward.*ELi4ELb0ELb[01]E"
    allowed += "|depthwise_plane|pointwise_backward_kernel.*ILi128ELi128ELi64ELi256ELi1E"
    allowed += "|backwardIfLi2ELi1ELi2ELi0ELb0ELb1E" + "|backwardIfLi2ELi2ELi2ELi0ELb[01]ELb1E" * (arch == "120")
    assert all(re.search(allowed, k.name) for k in cramped), cramped


@pytest.mark.sanitized
def test_no_kernel_spills_on_hopper() -> None:
    """`pytest -s` prints the registers of every kernel."""
    check("90")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["75", "80", "86", "89", "100", "120"])
def test_no_kernel_spills_on(arch: str) -> None:
    check(arch)


# What a streaming kernel reads of each element type, and from how many tensors.
STREAMING = {"moments_kernel": 1, "norm_relu_kernel": 1, "norm_relu_sums_kernel": 2, "norm_backward_kernel": 2}
ROWS_AT_ONCE = 4  # kUnroll


@pytest.mark.sanitized
def test_streaming_kernels_read_vectors_several_at_a_time() -> None:
    """Each load has 16 bytes, and four rows are loaded before the first result is written; and in the loop the next.

    The bug: nvcc split a load of 16 bytes into eight loads of two bytes, and each row waited for the row before.
    """
    seen = dict.fromkeys(STREAMING, 0)
    for stem in ("batch_norm_relu", "depthwise_block"):
        for name, body in entries(CUDA / f"{stem}.cu"):
            kernel = next((k for k in STREAMING if re.search(rf"\d{k}I", name)), "")
            width = re.search(r"Li(\d+)E", name)
            if not kernel or not width or width[1] == "1":  # rows that are no whole vectors
                continue
            seen[kernel] += 1
            accesses = re.findall(r"\b((?:ld|st)\.global\S*|(?:ld|st)\.local\S*)", body)
            wide = [access for access in accesses if ".v4." in access]
            loads = [access for access in wide if access.startswith("ld")]
            at_once = ROWS_AT_ONCE * STREAMING[kernel]
            assert len(loads) == 2 * at_once, (name, accesses)
            some = wide[:at_once] + wide[-at_once:]
            assert some == loads, f"{name}: a row is written before the next one is read"
            assert not [a for a in accesses if ".local" in a or "16" in a], f"{name}: memory read or written in pieces"
    assert all(seen.values()), seen


def pieces(name: str, body: str) -> list[str]:
    """What is wrong with how a kernel's PTX reads and writes memory.

    A kernel of a 16-bit type that has several channels a thread must not access them one by one. Its first number says
    how many; where a cluster keeps small maps, they are two.
    """
    wrong = re.findall(r"\b(?:ld|st)\.local\S*|\.local \.align", body)
    channels = re.search(r"I(?:NS_\d(?:bf16|fp16))ELi(\d+)E", name)
    if "_plane_" in name or (channels and int(channels[1]) > 1):
        wrong += [
            a for a in re.findall(r"\b(?:ld|st)\.global\S*", body) if re.search(r"\.[bus]16$", a) and ".v" not in a
        ]
    return wrong


@pytest.mark.sanitized
def test_no_kernel_uses_local_memory_or_16_bits_at_a_time() -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [entry for kernels in pool.map(entries, sorted(CUDA.glob("*.cu"))) for entry in kernels]
    assert len(found) > 50
    assert {name: pieces(name, body) for name, body in found if pieces(name, body)} == {}


@pytest.mark.parametrize(
    "line", ["ld.global.u16 %rs1, [%rd1];", "st.global.b16 [%rd1], %rs1;", "ld.local.f32 %f1, [%rd1];"]
)
def test_the_lint_of_ptx_sees_a_piece(line: str) -> None:
    name = "_ZN9fastcifar4cuda17dwconv3x3_forwardINS_4bf16ELi2ELi1ELi4ELi0EEEv"
    assert pieces(name, f"ld.global.v2.u16 {{%rs1, %rs2}}, [%rd1]; {line}") == [line.split()[0]]
    assert pieces(name, "ld.global.v2.u16 {%rs1, %rs2}, [%rd1]; ld.global.f32 %f1, [%rd2];") == []


@pytest.mark.sanitized
def test_every_kernel_waits_for_the_kernel_before_it() -> None:
    """On Hopper a kernel starts while the one before it runs: it waits before it reads or writes device memory."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [entry for kernels in pool.map(entries, sorted(CUDA.glob("*.cu"))) for entry in kernels]
    for name, body in found:
        waits = [match.start() for match in re.finditer(r"griddepcontrol\.wait;", body)]
        assert len(waits) == 1 and body.count("griddepcontrol.launch_dependents;") == 1, name
        access = re.search(r"\b(ld|st|atom|red)\.(global|volatile|[usbfv])", body)
        assert access is None or waits[0] < access.start(), f"{name}: {access[0]} before it waits"
