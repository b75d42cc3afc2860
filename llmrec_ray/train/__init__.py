"""Training through Ray Train: torch, DDP or DeepSpeed ZeRO behind one loop and one checkpoint format."""

from llmrec_ray.train.finish import train_bundle
from llmrec_ray.train.inputs import LateFusion, TrainingInputs, build_recommender
from llmrec_ray.train.run import TrainedModel, run_training

__all__ = [
    "LateFusion",
    "TrainedModel",
    "TrainingInputs",
    "build_recommender",
    "run_training",
    "train_bundle",
]
