"""Stand-ins for machines of every kind: after `be_on(monkeypatch, "avx2")` a test runs as if on such a machine."""

import pytest

from fastcifar import machine
from fastcifar.machine import CPU_LEVELS, Cpu, Gpu, Machine

FLAGS = {
    "generic": "fpu sse sse2 sse4_2 avx",
    "avx2": "fpu sse sse2 avx avx2 fma f16c",
    "avx512": "fpu sse2 avx avx2 fma avx512f avx512bw avx512dq avx512vl avx512cd",
    "avx512_bf16": "fpu sse2 avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16 avx512_vnni",
    "amx": "fpu avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16 amx_bf16 amx_tile amx_int8",
}
"""For each of `machine.CPU_LEVELS` the flags that /proc/cpuinfo lists beyond the flags of the level before."""


def cpuinfo(level: str, model: str = "Testor 9000") -> str:
    """The text of /proc/cpuinfo on a machine with two cores of `level`."""
    core = f"vendor_id\t: GenuineTest\nmodel name\t: {model}\nflags\t\t: {FLAGS[level]}\n"
    return "\n".join(f"processor\t: {i}\n{core}" for i in range(2))


def on(level: str, *capabilities: tuple[int, int]) -> Machine:
    """A machine with a processor of `level`, and with a GPU for each of `capabilities`."""
    assert level in CPU_LEVELS
    return Machine(Cpu("Testor 9000", level, level), tuple(Gpu(f"GPU {c}", c) for c in capabilities))


def be_on(monkeypatch: pytest.MonkeyPatch, level: str, *capabilities: tuple[int, int]) -> None:
    """Makes the test run as if on the machine that `on` describes."""
    there = on(level, *capabilities)
    monkeypatch.setattr(machine, "this", lambda: there)
    monkeypatch.setattr(machine, "cpu", lambda: there.cpu)
