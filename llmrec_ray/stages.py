"""The stages as functions: each takes a recipe and the noun before it, and returns the noun it made.

Every stage finds its inputs by URI or as the newest in the recipe's workspace, and leaves a pointer to what it
made there. The command line and the demo call only these.
"""

from __future__ import annotations

import logging
from pathlib import Path

from llmrec_ray.artifact import Artifact, Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.cluster import connected
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset, fetch, ingest
from llmrec_ray.embed import embed
from llmrec_ray.errors import ConfigError
from llmrec_ray.evaluate import Evaluation, evaluate
from llmrec_ray.index import build_index
from llmrec_ray.recommend import Pipeline
from llmrec_ray.release import Release, publish
from llmrec_ray.train import train_bundle
from llmrec_ray.types import FloatArray

__all__ = [
    "embed_stage",
    "evaluate_stage",
    "fetch_stage",
    "index_stage",
    "ingest_stage",
    "publish_stage",
    "train_stage",
]

logger = logging.getLogger(__name__)
