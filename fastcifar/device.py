"""Which device, engine and precision a run gets when its settings say `auto`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from fastcifar import ops
from fastcifar.config import Config
from fastcifar.errors import DeviceMemoryError, UsageError


def find_device(name: str) -> torch.device:
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`; UsageError names the devices that exist."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(gpus))])
        why = f"PyTorch {torch.__version__} sees {gpus} GPU{'s' * (gpus != 1)}"
        raise UsageError(f"device = {name!r}: {why}; allowed here: {have} (`fastcifar doctor` says what is missing)")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def exists(name: str) -> bool:
    """Whether this machine has the device of a settled config."""
    device = torch.device(name)
    return device.type == "cpu" or (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 pays: on the CPU that takes AMX tiles, on NVIDIA compute capability 8.0."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported())


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether `precision` computes there, but slower than fp32."""
    return (precision == "bf16" and not has_fast_bf16(device)) or (precision == "fp16" and device.type == "cpu")


def settle(config: Config, device: torch.device) -> Config:
    """The config with every `auto` replaced by what this device does best, so that a run folder says what ran."""
    precision, engine = config.precision, config.engine
    if precision == "auto":
        if has_fast_bf16(device):
            precision = "bf16"
        else:
            precision = "fp16" if device.type == "cuda" else "fp32"
    if engine == "auto":
        if device.type == "cuda":
            engine = "compiled"
        else:
            # On two CPU cores compiling costs 45 s and gains nothing over the tuned eager step.
            fits = precision in ("fp32", "bf16") and config.memory_format == "channels_last"
            engine = "fused" if ops.available("cpu") and fits else "eager"
    if engine == "fused" and device.type == "cpu" and precision == "fp16":
        raise UsageError("engine = 'fused', precision = 'fp16': on the CPU the fused ops know fp32 and bf16 only")
    if config.fuse_pointwise and (engine != "fused" or device.type == "cpu"):
        raise UsageError(
            f"fuse_pointwise = true: only engine = 'fused' on CUDA has kernels for it; this is engine = {engine!r} on "
            f"{device}"
        )
    return config.model_copy(update={"precision": precision, "engine": engine, "device": str(device)})


def prepare(device: torch.device, *, deterministic: bool) -> None:
    """Makes `device` this process's own, and with `deterministic` its kernels bitwise the same run to run."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if deterministic:
        if device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)


@contextlib.contextmanager
def out_of_memory_explained(config: Config, device: torch.device) -> Iterator[None]:
    """Turns running out of memory into a `DeviceMemoryError` that says what to lower."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"out of memory on {device} with batch_size = {config.batch_size}, eval_batch_size = "
            f"{config.eval_batch_size}: lower them, or close what else runs there ({error})"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, however PyTorch says so: only the CUDA allocator has an exception of its own."""
    texts = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in texts)
