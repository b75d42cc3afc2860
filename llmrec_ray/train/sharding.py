"""`train.sharding` -> the engine that does it. Only here is it known which engines there are."""

from __future__ import annotations

import os

from llmrec_ray.config import Recipe
from llmrec_ray.model import TrainingModule
from llmrec_ray.train.engine import Engine, Moments, TorchEngine, make_optimizer
from llmrec_ray.train.workers import Workers

__all__ = ["make_engine"]


def make_engine(module: TrainingModule, recipe: Recipe, workers: Workers, moments: Moments | None) -> Engine:
    """The engine of `train.sharding` around a module that has its weights already; `moments` to resume."""
    optimizer = make_optimizer(module, recipe)
    if recipe.train.sharding in {"zero1", "zero2"}:
        os.environ.setdefault("DS_ACCELERATOR", workers.device.type)  # DeepSpeed guesses, and warns on a CPU
        from llmrec_ray.train.zero import ZeroEngine

        return ZeroEngine(module, optimizer, recipe, workers, moments)
    return TorchEngine(module, optimizer, recipe, workers, moments)
