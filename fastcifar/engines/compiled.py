"""The compiled engine: torch.compile of forward and backward, and explanations for errors of the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fastcifar.batch import Batch
from fastcifar.engines.eager import Forward
from fastcifar.errors import CompileError
from fastcifar.target import is_out_of_memory

_IN_A_GRAPH = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Modes that capture CUDA graphs of their own -> the mode with the same kernels, for a step that is captured whole."""


def compiled_forward(forward: Forward, batch_size: int, mode: str, *, captured: bool) -> Forward:
    """`forward` compiled for batches of one size. Batches of another size run eagerly.

    An epoch may end with a smaller batch. Compiled with a dynamic shape, it would slow down every step; compiled as a
    second static shape, it would double the compile time. Run eagerly, it costs a few milliseconds an epoch.

    Args:
        forward: the eager forward.
        batch_size: the size of the batches that are compiled.
        mode: as for `torch.compile`.
        captured: whether the whole step will be captured as a CUDA graph.

    Returns:
        A forward with the same results.
    """
    if captured:
        mode = _IN_A_GRAPH.get(mode, mode)
    compiled = torch.compile(forward, mode=mode, dynamic=False, fullgraph=True)

    def dispatch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return compiled(batch) if len(batch.labels) == batch_size else forward(batch)

    return dispatch


@contextlib.contextmanager
def compilation_explained(engine: str) -> Iterator[None]:
    """A context for an engine's first steps, in which a failure to compile raises an error that says what to do.

    Args:
        engine: the engine. The eager engine compiles too: its augmentation, on CUDA.

    Raises:
        CompileError: torch.compile, or a compiler that it calls, failed.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) and (engine == "compiled" or _is_compile_error(error)):
            raise explain(error, engine) from error
        raise


def _is_compile_error(error: Exception) -> bool:
    """Whether torch.compile raised `error`, and not the step itself."""
    from torch._dynamo.exc import TorchDynamoException  # here, because the import takes a second

    return isinstance(error, TorchDynamoException)


def explain(error: Exception, engine: str) -> CompileError:
    """Explains a failure of the first compiled step.

    Args:
        error: what torch.compile, or a compiler that it calls, raised.
        engine: the engine whose step failed, `compiled` or `eager`.

    Returns:
        The error for the user: the first line of the failure, and what to do about it.
    """
    text = str(error).strip() or type(error).__name__
    first = next((line.strip() for line in text.splitlines() if line.strip()), text)
    lowered = text.lower()
    missing = ("not found", "no working", "failed to find", "invalidcxx")  # C++ for the CPU, C for Triton's launchers
    if "compiler" in lowered and any(words in lowered for words in missing):
        advice = (
            "no working compiler was found: install one (Debian, Ubuntu: apt install g++) or point CC and CXX at it"
        )
    elif "python.h" in lowered:
        advice = "Python's headers are missing: install them (Debian, Ubuntu: apt install python3-dev)"
    elif "triton" in lowered:
        advice = "Triton, which compiles for the GPU, is missing or does not fit this torch: reinstall torch"
    else:
        advice = "see the full error with FASTCIFAR_DEBUG=1"
    if engine == "compiled":
        advice += "; or train with --engine eager"
    return CompileError(f"torch.compile failed at the first step: {first}\n{advice}")
