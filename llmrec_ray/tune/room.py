"""How many trainings of a recipe the cluster has room for at once."""

from __future__ import annotations

import logging
import math

import ray

from llmrec_ray.config import Recipe
from llmrec_ray.errors import ClusterError

__all__ = ["concurrent_trials", "trials_per_machine"]

logger = logging.getLogger(__name__)


def concurrent_trials(recipe: Recipe) -> int:
    """Trials that the cluster has room for at once, at most `tune.max_concurrent`. Raises ClusterError for none."""
    train, have = recipe.train, ray.cluster_resources()
    least = train.min_workers or train.num_workers
    kinds = ["CPU", "GPU"] if train.use_gpu else ["CPU"]
    for kind in kinds:
        if have.get(kind, 0) < least:
            field = "num_workers" if train.min_workers is None else "min_workers"
            raise ClusterError(
                f"Each trial needs {least} {kind}s (train.{field}), but Ray has {have.get(kind, 0):g}: set "
                f"train.{field} lower, or join a larger cluster."
            )
    room = max(1, min(int(have[kind] // train.num_workers) for kind in kinds))
    wanted = recipe.tune.max_concurrent
    if wanted is not None and wanted > room:
        logger.info("tune.max_concurrent is %d, but Ray has room for %d trials at once: the others wait", wanted, room)
    return min(room, wanted or room)


def trials_per_machine(recipe: Recipe) -> int:
    """How many of them may run on one machine, and share its cores; machines that lend Ray none do not count."""
    machines = sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())
    return math.ceil(concurrent_trials(recipe) / max(machines, 1))
