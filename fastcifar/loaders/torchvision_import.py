"""Importing torchvision beside any torch."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import torch

from fastcifar.errors import UsageError


def import_torchvision() -> Any:
    """Imports torchvision, beside any torch.

    Only CUDA builds of torchvision are on PyPI. Beside a CPU torch the registration of its compiled operators fails.
    Its datasets, transforms and models need none of them, so a second import leaves them out.

    Returns:
        The module.

    Raises:
        UsageError: it is missing or broken.
    """
    try:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"loader = torchvision needs a package that is not installed, {error.name}: pip install "
            "'fastcifar[torchvision]', or train with --loader resident"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise UsageError(
            f"loader = torchvision: the installed torchvision cannot be imported beside torch {torch.__version__} "
            f"({error}); install the version made for it, or train with --loader resident"
        ) from error
