"""Text encoder, towers, heads, training windows and the training step: plain torch, without Ray."""

from llmrec_ray.model.encoder import TextEncoder
from llmrec_ray.model.fusion import FusionRecommender
from llmrec_ray.model.scoring import catalogue_vectors, ncf, user_matrix
from llmrec_ray.model.shared import Peers, SharedText
from llmrec_ray.model.source import resolve_model
from llmrec_ray.model.step import FrozenText, TrainingModule
from llmrec_ray.model.tuned import TextStates, TunedText
from llmrec_ray.model.windows import WindowBatch, Windows, make_windows

__all__ = [
    "FrozenText",
    "FusionRecommender",
    "Peers",
    "SharedText",
    "TextEncoder",
    "TextStates",
    "TrainingModule",
    "TunedText",
    "WindowBatch",
    "Windows",
    "catalogue_vectors",
    "make_windows",
    "ncf",
    "resolve_model",
    "user_matrix",
]
