"""From a Bundle's item vectors to the nearest items of a user vector: exact, or HNSW behind one interface."""

from llmrec_ray.index.build import build_index, measured_recall
from llmrec_ray.index.opened import Index

__all__ = ["Index", "build_index", "measured_recall"]
