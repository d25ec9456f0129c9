"""Imports torchvision beside any torch, CPU builds included, for the tests and benches that compare with it."""

import importlib
import sys
import types
from typing import Any


def import_torchvision() -> Any:
    """The torchvision module.

    Only CUDA builds of torchvision exist on PyPI. Beside a CPU torch the registration of its compiled operators fails;
    its datasets, transforms and models need none of them, so a second import goes without.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    return importlib.import_module("torchvision")
