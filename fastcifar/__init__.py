"""fastcifar: MobileNetV1 on 32x32 CIFAR-100, as fast as one device allows.

    import fastcifar as fc

    run = fc.train(fc.preset("quick", lr=0.1, seed=3))
    run.summary["test_accuracy"], run.records[-1], run.model()

Each name in `__all__` is imported when it is first used, so that `import fastcifar` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Evaluation",
    "Run",
    "Study",
    "datasets",
    "errors",
    "evaluate",
    "load",
    "preset",
    "study",
    "train",
    "train_together",
]

if TYPE_CHECKING:
    from fastcifar import datasets, errors
    from fastcifar.api import Evaluation, Run, Study, evaluate, load, preset, study, train, train_together
    from fastcifar.config import Config


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    if name in ("datasets", "errors"):
        return importlib.import_module(f"fastcifar.{name}")
    return getattr(importlib.import_module("fastcifar.config" if name == "Config" else "fastcifar.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
