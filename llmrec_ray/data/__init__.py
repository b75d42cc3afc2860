"""From raw logs and item texts to a Dataset."""

from llmrec_ray.data.dataset import Dataset
from llmrec_ray.data.extend import latest_dataset
from llmrec_ray.data.fetch import fetch
from llmrec_ray.data.importers import KINDS, Imported, import_recipe
from llmrec_ray.data.ingest import ingest, needs_ray

__all__ = ["KINDS", "Dataset", "Imported", "fetch", "import_recipe", "ingest", "latest_dataset", "needs_ray"]
