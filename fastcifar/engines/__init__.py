"""How a step runs: the same model, loss and optimizer, op by op or compiled."""

from fastcifar.engines.build import build_engine
from fastcifar.engines.eager import Engine, EpochTotals

__all__ = ["Engine", "EpochTotals", "build_engine"]
