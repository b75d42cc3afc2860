"""Weights of this moment -> hard negatives: what the model ranks high for each user although they have not had it.

A user's train history is masked, and so are items that never occur in train. The best of the rest are skipped, since
what the user will like next is among them; `TrainingModule` leaves out more of them by score. Users are spread over
workers. It knows no steps and no loss. Shapes: U users, K hard negatives of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from llmrec_ray.config import Recipe
from llmrec_ray.model import TrainingModule, catalogue_vectors, user_matrix
from llmrec_ray.ranking import mask_seen, top_k
from llmrec_ray.train.engine import Engine
from llmrec_ray.train.inputs import TrainingInputs
from llmrec_ray.train.validation import current_texts, on_host
from llmrec_ray.train.workers import Workers
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["MOST_USERS", "mine"]

MOST_USERS = 100_000
"""Users mined per epoch, drawn anew each time; the others keep what they had."""


def mine(
    module: TrainingModule, engine: Engine, inputs: TrainingInputs, workers: Workers, recipe: Recipe, epoch: int
) -> None:
    """Renew `module.hard_UK` for an epoch, the same on every worker; all workers must call it."""
    assert module.hard_UK is not None, "mining for a module that takes no hard negatives. This is a bug."
    module.eval()
    model = on_host(module.model, engine)
    catalogue = catalogue_vectors(model, current_texts(module, inputs, workers, recipe.train.precision))
    module.train()
    users = _sample(len(inputs.histories), [recipe.seed, epoch])
    never = np.bincount(inputs.histories.item_rows, minlength=inputs.n_items) == 0
    found = np.zeros((len(users), module.hard_UK.shape[1]), np.int64)
    for places in _in_batches(workers.rank, workers.world_size, len(users), recipe.evaluate.batch_users):
        histories = inputs.histories.select(users[places])
        found[places] = _best_unseen(
            user_matrix(model, catalogue, histories) @ catalogue.T, histories, never, recipe.train.mined.skip,
            found.shape[1],
        ) + 1
    rows = workers.sum(torch.from_numpy(found)) - 1
    module.hard_UK[torch.from_numpy(users)] = rows.to(module.hard_UK)


def _sample(n_users: int, seed: list[int]) -> IntArray:
    if n_users <= MOST_USERS:
        return np.arange(n_users)
    return np.sort(np.random.default_rng(seed).choice(n_users, MOST_USERS, replace=False))


def _in_batches(rank: int, world_size: int, n: int, size: int) -> Iterator[IntArray]:
    own = np.arange(rank, n, world_size)
    return (own[start : start + size] for start in range(0, len(own), size))


def _best_unseen(
    scores: FloatArray, histories: Histories, never: NDArray[np.bool_], skip: int, pool: int
) -> IntArray:
    """[B, pool] rows, best first after the skipped ones; -1 where there are no more."""
    allowed = mask_seen(scores, histories)
    allowed[:, never] = -np.inf
    rows = np.full((len(scores), pool), -1, np.int64)
    best = top_k(allowed, skip + pool)[0][:, skip:]
    rows[:, : best.shape[1]] = best
    return rows
