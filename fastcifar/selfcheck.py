"""Whether the compiled CUDA ops compute on this very GPU what their references compute.

`auto` takes the fused engine on CUDA only after this check. It runs in a process of its own, because a broken kernel
may end the process, and the answer is remembered for this GPU, driver, torch and build.

`python -m fastcifar.selfcheck cuda:0` prints the failures of one device, as a list in JSON.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastcifar
from fastcifar import files, machine, ops
from fastcifar.data.cache import default_folder
from fastcifar.errors import DataError
from fastcifar.ops._library import references
from fastcifar.ops.cases import (
    Arguments,
    Shape,
    WrongResult,
    calls,
    check,
    check_into,
    end_calls,
    results,
    sgd_arguments,
    statistics_arguments,
    step_calls,
    stepped,
    updated,
)
from fastcifar.run import environment
from fastcifar.ui.notes import note

SHAPES: tuple[Shape, ...] = ((16, 128, 16, 16), (70, 64, 8, 8), (70, 64, 4, 4), (70, 64, 2, 2))
"""Of a large map, and of three that clusters of blocks keep, as at batch 128; the last blocks have no image."""

_SECONDS = 300
"""A check that takes longer hangs: it takes about a second, and a few more to start."""


@functools.cache  # a process settles several configs: the cells of an ablation, the trials of a study
def why_not(device: torch.device) -> str:
    """Why the CUDA ops must not be used on a GPU. Looks up what an earlier check found, or runs the check.

    Args:
        device: the GPU.

    Returns:
        A sentence; empty if the ops passed the check.
    """
    path = _path(device)
    if path is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _summary(json.loads(files.read(path))["failures"])
    note(f"the CUDA ops are checked on {device}, once for this GPU, driver, torch and build", "fastcifar: ")
    return run(device)


def run(device: torch.device) -> str:
    """Runs the check, and remembers what it finds.

    Args:
        device: the GPU.

    Returns:
        As for `why_not`.
    """
    command = [sys.executable, "-W", "ignore", "-m", "fastcifar.selfcheck", str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"their check did not end within {_SECONDS} seconds"
    if done.returncode:  # not remembered: another program may have used all memory, for example
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"their check ended with exit code {done.returncode}: {last}"
    failures = json.loads(done.stdout.splitlines()[-1])
    path = _path(device)
    if path is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written: the next run checks again
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, json.dumps({**_facts(device), "failures": failures}, indent=1).encode())
    return _summary(failures)


def _summary(failures: Sequence[str]) -> str:
    if not failures:
        return ""
    more = f"; and {len(failures) - 1} more" * (len(failures) > 1)
    return f"they failed their check: {failures[0]}{more}"


def _path(device: torch.device) -> Path | None:
    """Where the answer for a device is remembered; None where there is no folder for it."""
    key = hashlib.sha256(json.dumps(_facts(device), sort_keys=True).encode()).hexdigest()[:16]
    try:
        return default_folder() / f"cuda-check-{key}.json"
    except DataError:
        return None


def _facts(device: torch.device) -> dict[str, Any]:
    """All that the answer depends on."""
    gpu = machine.this().gpus[device.index or 0]
    try:
        driver: str | None = environment.driver()
    except Exception:  # NVML may be closed to a container while CUDA works
        driver = None
    return {
        "gpu": gpu.name,
        "capability": gpu.capability,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "fastcifar": fastcifar.__version__,
        "build": ops.fingerprint("cuda"),
    }


def failures_of(device: torch.device, shapes: Sequence[Shape] = SHAPES) -> list[str]:
    """Runs every op on a device, forward and backward, and compares it with its reference.

    Args:
        device: the device. On the CPU, where tests run, the CPU's ops are checked.
        shapes: of the activations.

    Returns:
        What is wrong, a line for each result; empty if nothing is.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    found = []
    for dtype in (torch.float32, torch.bfloat16) + (torch.float16,) * (device.type == "cuda"):
        torch.manual_seed(0)
        for name, arguments in _calls(dtype, device, shapes):
            try:
                first = check(name, arguments)
                if name in ("depthwise_block", "_depthwise_block_backward"):
                    check_into(name, arguments)
            except WrongResult as error:
                found.append(f"{error} in {str(dtype).removeprefix('torch.')}")
                continue
            if not all(map(torch.equal, first, results(name, arguments))):
                found.append(f"{name}: other bits in its second run, in {str(dtype).removeprefix('torch.')}")
        copied = None if dtype == torch.float32 else dtype
        step = sgd_arguments([(32, 3, 3, 3), (1024,), (64, 1024)], copied, 0.9, True, str(device))
        update = statistics_arguments([32, 1024], 0.1, str(device))
        for name, written, arguments in (("sgd", stepped, step), ("update_statistics", updated, update)):
            if wrong := _wrong_in_place(name, written, arguments):
                found.append(f"{name}: {wrong}, in {str(dtype).removeprefix('torch.')}")
    return found


def _wrong_in_place(name: str, written: Callable[..., list[list[Tensor]]], arguments: Arguments) -> str:
    """What is wrong with the tensors that an op writes in place, which `written` returns; empty if nothing is."""
    op = getattr(ops, name)
    first, again, expected = (sum(written(arguments, each), []) for each in (op, op, references[name]))
    for i, (got, wanted) in enumerate(zip(first, expected, strict=True)):
        try:
            torch.testing.assert_close(got, wanted)
        except AssertionError as error:
            return f"tensor {i}: {' '.join(str(error).split())}"
    return "" if all(map(torch.equal, first, again)) else "other bits in its second run"


def _calls(dtype: torch.dtype, device: torch.device, shapes: Sequence[Shape]) -> Iterator[tuple[str, Arguments]]:
    for shape, stride in itertools.product(shapes, (1, 2)):
        yield from calls(shape, dtype, stride, str(device))
    for shape in shapes:
        yield from end_calls(shape, dtype, str(device))
    yield from step_calls(dtype, device=str(device))


if __name__ == "__main__":
    print(json.dumps(failures_of(torch.device(sys.argv[1]))))
