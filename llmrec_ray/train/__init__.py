"""Training through Ray Train: torch, DDP or DeepSpeed ZeRO behind one loop and one checkpoint format."""

from llmrec_ray.train.finish import TextSpace, train_bundle
from llmrec_ray.train.inputs import LateFusion, TrainingInputs, build_recommender
from llmrec_ray.train.run import TrainedModel, run_training

__all__ = [
    "LateFusion",
    "TextSpace",
    "TrainedModel",
    "TrainingInputs",
    "build_recommender",
    "run_training",
    "train_bundle",
]
