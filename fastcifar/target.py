"""A settled config (one without `auto`) with the device, dtype and memory format that follow from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fastcifar import machine, ops, selfcheck
from fastcifar.config import Config
from fastcifar.errors import DeviceMemoryError, UsageError
from fastcifar.ranks import ALONE, Ranks

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

_COMPILER_SWITCHES = {
    "TORCHDYNAMO_DISABLE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "TORCHDYNAMO_SUPPRESS_ERRORS": "",
    "TORCH_COMPILE_OVERRIDE_BACKENDS": "",
}
"""Environment variables that make torch.compile skip compilation silently, each with the value that does it.

An empty value here stands for any value: TORCHDYNAMO_SUPPRESS_ERRORS hides a failure to compile, and
TORCH_COMPILE_OVERRIDE_BACKENDS may name a backend that compiles nothing.
"""


@dataclass(frozen=True)
class Target:
    """A settled config, and what follows from it.

    Attributes:
        config: the settings. None of them is `auto`, so that the run folder records what ran.
        why: why `engine = auto` became the engine of the config, where that depends on more than the kind of device;
            otherwise empty.
        ranks: this process among the processes that train the run.
    """

    config: Config
    why: str = ""
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, config: Config, ranks: Ranks = ALONE) -> Target:
        """Replaces every `auto` of `config` by the best choice for this machine.

        Args:
            config: the settings, with or without `auto`.
            ranks: this process among the processes of the run. Each process of a machine gets a GPU of its own.

        Returns:
            The target.

        Raises:
            UsageError: the device does not exist, or has no kernels for the engine or the precision; or the settings do
                not fit the number of processes.
        """
        device = find_device(config.device) if ranks.size == 1 else _own_device(config, ranks)
        settled, why = _settle(config, device)
        return cls(settled, why, ranks)

    @property
    def device(self) -> torch.device:
        """The device of the config."""
        return torch.device(self.config.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations, convolutions and matrix products; weights and statistics stay float32."""
        return _DTYPES[self.config.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and activations."""
        return _MEMORY_FORMATS[self.config.memory_format]

    @property
    def fuses_pointwise(self) -> bool:
        """Whether the fused engine's blocks include their pointwise product, where it suits (`ops.separable_block`).

        On CUDA the setting `fuse_pointwise` says so, where there are kernels for it: in 16 bits, from capability 8.0
        on; not with several processes, which were not measured with it. On the CPU they do wherever the ops are built:
        with each instruction set the extension's own products were measured to be faster than the library's.
        """
        if self.config.engine != "fused":
            return False
        if self.device.type == "cuda":
            has_kernels = self.dtype != torch.float32 and _has_fast_bf16(self.device)
            return self.config.fuse_pointwise and has_kernels and self.ranks.size == 1
        return ops.available("cpu")

    @property
    def makes_batches(self) -> bool:
        """Whether a GPU makes the training batches from images in its memory, so that it can run whole steps alone."""
        config, alone = self.config, self.ranks.size == 1
        return alone and self.device.type == "cuda" and config.loader == "resident" and config.images_on == "device"

    @property
    def is_emulated(self) -> bool:
        """Whether the device can compute in the config's precision, but is slower there than in fp32."""
        precision, device = self.config.precision, self.device
        return (precision == "bf16" and not _has_fast_bf16(device)) or (precision == "fp16" and device.type == "cpu")

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the engine and the precision, a line each."""
        config = self.config
        emulated = f"{config.precision} is emulated on {self.device}: expect it to be slower than fp32"
        return [self.why] * bool(self.why) + [emulated] * self.is_emulated

    def claim(self) -> None:
        """Makes the device this process's current device."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @contextlib.contextmanager
    def reproducible(self) -> Iterator[None]:
        """A context in which PyTorch has reproducible kernels alone, if `deterministic` asks for them.

        The switches are the whole process's: the end of the context leaves them as its start found them.
        """
        if not self.config.deterministic:
            yield
            return
        filling: Any = torch.utils.deterministic
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        benchmark, fill = torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory
        if self.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        # Otherwise each torch.empty is filled with NaN: 420 kernels a step instead of 148.
        filling.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory = benchmark, fill

    @contextlib.contextmanager
    def memory_explained(self) -> Iterator[None]:
        """A context in which running out of memory raises an error that says what to lower.

        Raises:
            DeviceMemoryError: memory ran out, on the device or on the host.
        """
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"out of memory on {self.device} with batch_size = {self.config.batch_size}, eval_batch_size = "
                f"{self.config.eval_batch_size}: lower them, or close what else runs there"
                + (f" ({error})" if str(error) else "")
            ) from error


def find_device(name: str) -> torch.device:
    """The device that a name stands for.

    Args:
        name: `auto` (the first GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Returns:
        The device; a GPU with its index.

    Raises:
        UsageError: the device does not exist. The message names the devices that do.
    """
    if name == "cpu":
        return torch.device("cpu")
    gpus = len(machine.this().gpus)
    if name == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    device = torch.device(name)
    index = device.index or 0
    if index >= gpus:
        have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(gpus))])
        why = f"PyTorch {torch.__version__} sees {gpus} GPU{'s' * (gpus != 1)}"
        raise UsageError(f"device = {name!r}: {why}; allowed here: {have} (`fastcifar doctor` says what is missing)")
    return torch.device("cuda", index)


def _own_device(config: Config, ranks: Ranks) -> torch.device:
    """The device of one of several processes: the CPU, or the GPU of this process's number on its machine."""
    if config.batch_size % ranks.size:
        raise UsageError(
            f"batch_size = {config.batch_size}: it is the batch of all {ranks.size} processes together, and each takes "
            f"an equal part; allowed: multiples of {ranks.size}"
        )
    if find_device(config.device).type == "cpu":
        return torch.device("cpu")
    if config.device not in ("auto", "cuda", "cuda:0"):
        raise UsageError(
            f"device = {config.device!r}: each of the {ranks.size} processes has a GPU of its own; allowed: auto, cpu, "
            "cuda (CUDA_VISIBLE_DEVICES chooses the GPUs)"
        )
    return find_device(f"cuda:{ranks.local}")


def exists(name: str) -> bool:
    """Whether this machine has the device `name`: `cpu`, `cuda` or `cuda:N`."""
    device = torch.device(name)
    return device.type == "cpu" or (device.index or 0) < len(machine.this().gpus)


def fast_precisions(device: torch.device) -> list[str]:
    """The precisions worth using on a device: `fp32`, then the half precision that is faster, if there is one."""
    if _has_fast_bf16(device):
        return ["fp32", "bf16"]
    return ["fp32", "fp16"] if device.type == "cuda" else ["fp32"]


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` means that memory ran out.

    Only PyTorch's CUDA allocator has an exception of its own for it, which becomes another one where an op of ours
    asked for the memory; before torch 2.13 that one says only which call failed.
    """
    texts = (
        *("DefaultCPUAllocator", "CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
        'a libtorch call failed (its message is on stderr) [torch_call_dispatcher( "aten::empty"',
    )
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in texts)


def _has_fast_bf16(device: torch.device) -> bool:
    return machine.this().has_fast_bf16(device.type, device.index or 0)


def _settle(config: Config, device: torch.device) -> tuple[Config, str]:
    """The config without `auto`, and why its engine is what it is."""
    precision = fast_precisions(device)[-1] if config.precision == "auto" else config.precision
    engine, why = config.engine, ""
    if engine == "auto":
        if device.type == "cuda":
            engine, why = _cuda_engine(config, device)
        else:
            # On two CPU cores compiling costs 45 s and gains nothing over the tuned eager step.
            fits = precision in ("fp32", "bf16") and config.memory_format == "channels_last"
            fits = fits and not config.sync_batch_norm
            engine = "fused" if ops.available("cpu") and fits else "eager"
    if engine == "fused" and device.type == "cpu" and precision == "fp16":
        raise UsageError("engine = 'fused', precision = 'fp16': on the CPU the fused ops know fp32 and bf16 only")
    if engine == "compiled":
        _check_compiler(precision, device)
    return config.model_copy(update={"precision": precision, "engine": engine, "device": str(device)}), why


def _cuda_engine(config: Config, device: torch.device) -> tuple[Literal["eager", "compiled", "fused"], str]:
    """The engine that `auto` takes on a GPU, and why. No result of a kernel that was not checked is a default."""
    gpu = machine.this().gpus[device.index or 0].name
    if config.sync_batch_norm:
        return "eager", "engine = auto takes eager: only eager has sync_batch_norm = true"
    if not ops.available("cuda"):
        why_not = ops.why_unavailable("cuda")
        return "compiled", f"engine = auto takes compiled: there are no CUDA ops, because {why_not}"
    if config.memory_format != "channels_last":
        return "compiled", "engine = auto takes compiled: fused has no memory_format = contiguous"
    if why_not := selfcheck.why_not(device):
        return "compiled", f"engine = auto takes compiled: on {gpu} the CUDA ops cannot be trusted, because {why_not}"
    return "fused", f"engine = auto takes fused: the CUDA ops passed their check on {gpu}"


def _check_compiler(precision: str, device: torch.device) -> None:
    """Refuses settings that torch.compile would refuse only at the first step, or silently not compile."""
    for name, switch in _COMPILER_SWITCHES.items():
        value = os.environ.get(name, "")
        if value and value == (switch or value):
            does = "compiles nothing" if switch else "may compile nothing, without a word"
            raise UsageError(
                f"engine = 'compiled': the environment has {name}={value}, with which torch.compile {does}; unset it, "
                "or train with --engine eager"
            )
    if device.type == "cuda" and precision == "bf16" and not _has_fast_bf16(device):
        major, minor = machine.this().gpus[device.index or 0].capability
        raise UsageError(
            f"engine = 'compiled', precision = 'bf16': torch.compile has no bf16 for a GPU of compute capability "
            f"{major}.{minor}, only from 8.0; allowed here: fp32, fp16, or --engine eager"
        )
