"""How a step runs. Every engine has the same model, loss and optimizer; eager, compiled and fused differ in the ops."""

from fastcifar.engines.build import build_engine
from fastcifar.engines.eager import Engine, Means
from fastcifar.engines.steps import LaunchedSteps, StagedSteps, Steps, build_steps

__all__ = ["Engine", "LaunchedSteps", "Means", "StagedSteps", "Steps", "build_engine", "build_steps"]
