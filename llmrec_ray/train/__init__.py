"""Training through Ray Train: torch, DDP or DeepSpeed ZeRO behind one loop and one checkpoint format."""

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
