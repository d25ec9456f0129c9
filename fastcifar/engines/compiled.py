"""The compiled engine: torch.compile of the forward and its backward, with the errors of a first step explained."""

from __future__ import annotations

import torch

from fastcifar.batch import Batch
from fastcifar.engines.eager import Forward
from fastcifar.errors import CompileError


def compiled_forward(forward: Forward, batch_size: int, mode: str) -> Forward:
    """`forward` compiled for batches of exactly `batch_size`; other sizes run eager.

    An epoch ends with a smaller batch. As a dynamic shape it would slow every step, as a second static one it would
    double the compile time; op by op it costs a few milliseconds an epoch and never a recompilation.
    """
    compiled = torch.compile(forward, mode=mode, dynamic=False, fullgraph=True)

    def dispatch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return compiled(batch) if len(batch.labels) == batch_size else forward(batch)

    return dispatch


def is_compile_error(error: Exception) -> bool:
    """Whether torch.compile raised it, and not the step itself."""
    from torch._dynamo.exc import TorchDynamoException  # not at the top: it takes a second, and only to read an error

    return isinstance(error, TorchDynamoException)


def explain(error: Exception, engine: str) -> CompileError:
    """What a failure of the first compiled step of `engine` means and what to do about it."""
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
