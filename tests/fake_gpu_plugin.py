"""For programs and tests on a fake GPU, where no kernel computes anything: what the GPU answers counts as fine.

It is a plugin of pytest. As a program, `fake_gpu_plugin.py ARGUMENT...` is `fastcifar ARGUMENT...`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch


def pretend() -> None:
    """Two tensors are equal, a truth is true, and numbers are finite; each question still waits for the device."""
    to_list = torch.Tensor.tolist

    def true(*tensors: torch.Tensor) -> bool:
        for tensor in tensors:
            tensor.cpu()
        return True

    def zeros(tensor: torch.Tensor) -> Any:
        return to_list(torch.zeros_like(tensor.cpu()) if tensor.is_cuda else tensor)

    torch.equal = true
    torch.testing.assert_close = lambda *_, **__: None
    torch.Tensor.__bool__ = true
    torch.Tensor.tolist = zeros
    torch.Tensor.isfinite = lambda tensor: torch.ones(tensor.shape, dtype=torch.bool)


pretend()

if __name__ == "__main__":
    from fastcifar.cli.main import main

    sys.exit(main(sys.argv[1:]))
