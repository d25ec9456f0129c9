"""What is known of PyTorch's libraries as peers: their versions, and where they have no fast kernel."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def versions() -> str:
    """The versions of torch and of everything that the peers run on, as one line."""
    config = torch.__config__.show()
    found = {"torch": torch.__version__}
    for name, pattern in (("oneDNN", r"MKL-DNN v([\d.]+)"), ("MKL", r"Math Kernel Library Version ([\d.]+)")):
        if match := re.search(pattern, config):
            found[name] = match[1]
    if torch.version.cuda is not None:
        found |= {"CUDA": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version())}
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    found |= {
        name: version for name, version in installed.items() if name in ("torchvision", "triton") or "dali" in name
    }
    return ", ".join(f"{name} {version}" for name, version in found.items())


def is_generic(call: Callable[[], Any]) -> bool:
    """Whether `call` convolves on the CPU without a fast kernel of oneDNN.

    That is so where oneDNN takes its reference implementation, where it takes one of matrix products for a depthwise
    convolution, and where PyTorch does not call oneDNN at all, because oneDNN lacks the dtype on this processor. Such a
    kernel is up to 700 times as slow as others, and says nothing about ours.
    """
    with _Convolutions() as convolutions:
        lines = _onednn_lines(call)
    chosen = [line.partition(",convolution,")[2] for line in lines if ",exec,cpu,convolution," in line]
    return convolutions.count > 0 and (not chosen or any(map(_GENERIC.match, chosen)))


_GENERIC = re.compile(r"ref|[^,]*gemm[^,]*,.*,g\d+mb")
"""The implementation and the rest of a line. `g` and a number begin the sizes of a convolution in groups."""


class _Convolutions(TorchDispatchMode):
    """Counts PyTorch's convolutions, in either direction."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "convolution" in str(func)
        return func(*args, **(kwargs or {}))


def _onednn_lines(call: Callable[[], Any]) -> list[str]:
    """What oneDNN writes to stdout while `call` runs: a line for each primitive, with its implementation."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    stdout = os.dup(1)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                call()
        finally:
            libc.fflush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
        file.seek(0)
        return file.read().splitlines()
