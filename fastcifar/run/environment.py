"""What a result depends on beside its settings: versions, commit, device, processor, threads, variables."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fastcifar
from fastcifar import machine
from fastcifar.ranks import Ranks

VARIABLES = re.compile(
    "(FASTCIFAR|OMP|GOMP|KMP|MKL|OPENBLAS|DNNL|ONEDNN|ATEN|(PY)?TORCH[A-Z]*|AOT|INDUCTOR|FUNCTORCH|TRITON|CUTLASS|CUDA"
    "|CUBLAS|CUBLASLT|CUDNN|NCCL|NVIDIA|DALI|MALLOC|MIMALLOC|JEMALLOC|TCMALLOC)_.*"
    "|LRU_CACHE_CAPACITY|MALLOC_CONF|LD_PRELOAD|LD_LIBRARY_PATH|GLIBC_TUNABLES|CC|CXX|CFLAGS|CXXFLAGS|TF32_OVERRIDE"
    "|PYTHON(OPTIMIZE|HASHSEED|MALLOC|PATH)"
)
"""The environment variables that change what runs, its speed or its bits; no other is recorded."""

_SECRET = re.compile(".*(KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH).*")
"""Variables that are never recorded, such as NVIDIA_API_KEY: run folders are published."""

DECISIVE = ("torch", "device", "gpu.name", "gpu.driver", "gpu.cudnn", "cpu.model", "threads.torch", "processes")
"""If one of these differs, the same seed may give other bits."""


def collect(device: str) -> dict[str, Any]:
    """The facts of this process, as JSON holds them. Imports torch, and initialises CUDA only for a run on it.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        date, versions, commit, platform, device, gpu (None for the CPU), cpu, memory_gib, processes (that train
        together), threads and variables.
    """
    import numpy
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "fastcifar": fastcifar.__version__,
        "source": commit(Path(fastcifar.__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": device,
        "gpu": _gpu(torch.device(device)) if device.startswith("cuda") else None,
        "cpu": cpu(),
        "memory_gib": memory_gib(),
        "processes": Ranks.started().size,
        "threads": {"torch": torch.get_num_threads(), "torch_interop": torch.get_num_interop_threads()},
        "variables": variables(os.environ),
    }


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of the environment's variables that change what runs, its speed or its bits, in alphabetical order."""
    found = {name: value for name, value in sorted(environ.items()) if VARIABLES.fullmatch(name)}
    return {name: value for name, value in found.items() if not _SECRET.fullmatch(name)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The `DECISIVE` facts in which two environments differ, each as `name: before -> now`."""
    before = {"processes": 1, **before}  # before there could be several, it was not written down
    found = []
    for key in DECISIVE:
        old, new = _look_up(before, key), _look_up(now, key)
        if old != new:
            found.append(f"{key}: {old} -> {new}")
    return found


@functools.cache  # the code that this process runs does not change
def commit(folder: Path) -> dict[str, Any] | None:
    """The commit of a checkout, and whether tracked files differ from it.

    Args:
        folder: the checkout's root.

    Returns:
        None if `folder` is no such root; a reason in place of the commit if git does not tell it.
    """
    if not (folder / ".git").exists():  # an installed package is not asked for the commit of a repository around it
        return None
    try:
        return {
            "commit": _git(folder, "rev-parse", "HEAD"),
            "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError) as problem:
        reason = problem.stderr if isinstance(problem, subprocess.CalledProcessError) else str(problem)
        return {"commit": None, "dirty": None, "reason": reason.strip()}


def cpu() -> dict[str, Any]:
    """Model, cores and the instruction sets that decide which kernels run; unknown facts are null."""
    found = machine.cpu()
    return {
        "model": found.model,
        "logical_cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        **{level: found.has(level) for level in ("avx2", "avx512", "avx512_bf16", "amx")},
    }


def allowed_cores() -> set[int]:
    """The numbers of the cores that this process may run on; empty where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def usable_cores() -> float | None:
    """How many cores this process may use: those of its affinity, or a container's quota, which may be a fraction."""
    allowed = len(allowed_cores()) or os.cpu_count()
    v1 = "/sys/fs/cgroup/cpu/cpu.cfs_"  # cgroups of version 1 have two files in place of one
    limit = _read("/sys/fs/cgroup/cpu.max") or _read(f"{v1}quota_us") + _read(f"{v1}period_us")
    quota = re.fullmatch(r"(\d+)\s(\d+)\n", limit)  # microseconds of work in a period; `max` or -1: no limit
    if quota and allowed:
        return min(allowed, int(quota[1]) / int(quota[2]))
    return allowed


def memory_gib() -> float | None:
    """Main memory in GiB, or a container's limit if that is less; None where the system does not tell."""
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max") or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")  # version 1
    return round(min(size, int(limit) if limit.strip().isdigit() else size) / 2**30, 2)


def driver() -> str:
    """The NVIDIA driver's version.

    Raises:
        Exception: whatever NVML and its Python package raise where there is no driver.
    """
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _gpu(device: Any) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    try:
        version: str | None = driver()
    except Exception:  # NVML may be closed to a container while CUDA works
        version = None
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 2),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": version,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _look_up(facts: Mapping[str, Any], key: str) -> Any:
    value: Any = facts
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
