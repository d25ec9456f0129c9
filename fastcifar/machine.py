"""What this machine's processor and GPUs can do. Code that depends on the machine asks `this`.

A test replaces `this` to run as if on another machine.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

CPU_LEVELS = ("generic", "avx2", "avx512", "avx512_bf16", "amx")
"""Levels of processors, by the instructions that multiply matrices. Each level includes all levels before it.

- `generic`: plain C++ as GCC compiles it, on x86-64 and on ARM.
- `avx2`: AVX2 and FMA.
- `avx512`: AVX-512 F, BW, DQ and VL (Skylake-X to Ice Lake).
- `avx512_bf16`: dot products of bfloat16 pairs (Cooper Lake, Zen 4 and later).
- `amx`: tiles of bfloat16 (Sapphire Rapids and later), in which float32 is multiplied as sums of three.
"""

_FLAGS = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}

_ONEDNN_CAPS = {
    "SSE41": "generic",
    "AVX": "generic",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx2",
    "AVX2_VNNI_2": "avx2",
    "AVX512_CORE": "avx512",
    "AVX512_CORE_VNNI": "avx512",
    "AVX512_CORE_BF16": "avx512_bf16",
    "AVX512_CORE_FP16": "avx512_bf16",
    "AVX10_1_512": "avx512_bf16",
}
"""Values of ONEDNN_MAX_CPU_ISA below AMX, each with the level that oneDNN may then use."""


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        model: the name in /proc/cpuinfo; empty if not known.
        level: one of `CPU_LEVELS`; None if the processor's flags are not known.
        product_level: the level that matrix products may use. It is lower than `level` if ONEDNN_MAX_CPU_ISA limits it.
    """

    model: str
    level: str | None
    product_level: str | None

    def has(self, level: str) -> bool | None:
        """Whether the processor has `level` or a higher level; None if its flags are not known."""
        return None if self.level is None else _index(self.level) >= _index(level)

    @property
    def has_fast_bf16(self) -> bool:
        """Whether matrix products in bfloat16 are faster than in float32: with AVX512_BF16 or AMX.

        Measured at batch 128 on two cores: 1,864 images/s in bf16 against 598 in fp32 on a Xeon with AMX, 2,235 against
        1,145 on an EPYC with AVX512_BF16. Without both extensions, oneDNN first widens each number to float32.
        """
        return self.product_level is not None and _index(self.product_level) >= _index("avx512_bf16")

    @property
    def has_slow_library_products(self) -> bool:
        """Whether PyTorch's matrix products in float32 use narrower instructions than the processor has.

        PyTorch calls MKL for them, which uses no AVX-512 on AMD's processors. Measured on two cores of an EPYC with
        AVX-512: 91 to 109 GFLOP/s, where oneDNN's 1x1 convolution reached 223 in the same process.
        """
        return self.model.startswith("AMD") and bool(self.has("avx512"))


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: the driver's name for it.
        capability: the compute capability, such as (9, 0).
    """

    name: str
    capability: tuple[int, int]

    @property
    def has_fast_bf16(self) -> bool:
        """Whether it multiplies bfloat16 as fast as float16: true from compute capability 8.0."""
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        cpu: the processor.
        gpus: the GPUs that PyTorch sees, in PyTorch's order.
    """

    cpu: Cpu
    gpus: tuple[Gpu, ...] = ()

    def has_fast_bf16(self, device: str, index: int = 0) -> bool:
        """Whether bfloat16 is faster than float32 on a device.

        Args:
            device: `cpu` or `cuda`.
            index: the number of the GPU.
        """
        return self.gpus[index].has_fast_bf16 if device == "cuda" else self.cpu.has_fast_bf16


@functools.cache
def this() -> Machine:
    """The machine that this process runs on. Imports torch; initialises CUDA if there is a GPU."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpus.append(Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)))
    return Machine(cpu(), tuple(gpus))


def cpu() -> Cpu:
    """This machine's processor, read from /proc/cpuinfo and ONEDNN_MAX_CPU_ISA. Does not import torch."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return cpu_of(text, os.environ.get("ONEDNN_MAX_CPU_ISA", ""))


def cpu_of(cpuinfo: str, onednn_max_cpu_isa: str = "") -> Cpu:
    """The processor that a /proc/cpuinfo describes.

    Args:
        cpuinfo: the text of the file.
        onednn_max_cpu_isa: the value of ONEDNN_MAX_CPU_ISA, which limits `product_level`; empty if not set.
    """
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo, re.MULTILINE)
    level = None
    if flags is not None:
        level, have = "generic", set(flags[1].split())
        for above, needed in _FLAGS.items():
            if not needed <= have:
                break
            level = above
    name = model[1].strip() if model else platform.processor() or platform.machine()
    cap = _ONEDNN_CAPS.get(onednn_max_cpu_isa.upper())
    product_level = level if level is None or cap is None else min(level, cap, key=_index)
    return Cpu(name, level, product_level)


def _index(level: str) -> int:
    return CPU_LEVELS.index(level)
