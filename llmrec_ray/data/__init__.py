"""From raw logs and item texts to a Dataset."""

from llmrec_ray.data.dataset import Dataset
from llmrec_ray.data.fetch import fetch
from llmrec_ray.data.ingest import ingest

__all__ = ["Dataset", "fetch", "ingest"]
