"""How a step runs: the same model, loss and optimizer, op by op, compiled or fused, launched or replayed."""

from fastcifar.engines.build import build_engine
from fastcifar.engines.eager import Engine, Means
from fastcifar.engines.steps import Steps, build_steps

__all__ = ["Engine", "Means", "Steps", "build_engine", "build_steps"]
