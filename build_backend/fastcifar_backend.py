"""setuptools' build backend, with build requirements that depend on the machine.

torch is required only where there is a compiler and the environment that fastcifar is installed into has no torch. A
fixed requirement would make pip put a second torch, with GBs of CUDA libraries, into its isolated build environment.
nvcc is required where FASTCIFAR_CUDA=wheel asks for it: NVIDIA's own wheels, 104 MB.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that are not overridden below)

TORCH = "torch==2.13.0"
# All five are pinned: nvidia-cuda-nvcc asks for any nvvm and crt, and pip would mix releases.
NVCC = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
]


def _extra() -> list[str]:
    if sys.platform != "linux" or not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "c++")))):
        return []  # nothing will be compiled
    there = importlib.util.find_spec("torch") or Path(sysconfig.get_path("purelib"), "torch").is_dir()
    return ([] if there else [TORCH]) + (NVCC if os.environ.get("FASTCIFAR_CUDA") == "wheel" else [])


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _extra()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _extra()
