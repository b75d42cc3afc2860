"""Training through Ray Train: torch, DDP or DeepSpeed ZeRO behind one loop and one checkpoint format."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrec_ray.train.finish import TextSpace, train_bundle
    from llmrec_ray.train.fusing import fit_modes
    from llmrec_ray.train.inputs import LateFusion, TrainingInputs, build_recommender
    from llmrec_ray.train.memory import smaller
    from llmrec_ray.train.run import TrainedModel, run_training
    from llmrec_ray.train.warm import center_of, open_start, with_encoder_of
    from llmrec_ray.train.workers import share_cores

__all__ = [
    "LateFusion",
    "TextSpace",
    "TrainedModel",
    "TrainingInputs",
    "build_recommender",
    "center_of",
    "fit_modes",
    "open_start",
    "run_training",
    "share_cores",
    "smaller",
    "train_bundle",
    "with_encoder_of",
]

MODULES = {
    "TextSpace": "finish", "train_bundle": "finish", "fit_modes": "fusing", "LateFusion": "inputs",
    "TrainingInputs": "inputs", "build_recommender": "inputs", "smaller": "memory", "TrainedModel": "run",
    "run_training": "run", "center_of": "warm", "open_start": "warm", "with_encoder_of": "warm",
    "share_cores": "workers",
}


def __getattr__(name: str) -> Any:
    """The public names when they are asked for: every process of a training imports this package, and few need all."""
    if name not in MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"llmrec_ray.train.{MODULES[name]}"), name)
