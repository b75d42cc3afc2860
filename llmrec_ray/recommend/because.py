"""A history and recommended items -> the items of the history that are most like each of them.

Shapes: E people, K recommended items each, N items in the catalogue, d embedding size.
"""

from __future__ import annotations

import numpy as np

from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.batch import Because
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["nearest_of_history"]

MAX_NEAREST = 3


def nearest_of_history(item_vectors: FloatArray, histories: Histories, item_rows: IntArray) -> Because:
    """For item_rows [E, K] (-1 = none) the nearest items of each history by the cosine of fused vectors [N, d + 1].

    An item is no reason for itself, and one that points away from it (cosine 0 or less) is no reason at all.
    """
    shape = (*item_rows.shape, MAX_NEAREST)
    nearest, similarities = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    for person, past in enumerate(histories):
        cosines = _unit(item_vectors, item_rows[person]) @ _unit(item_vectors, past).T
        cosines[(item_rows[person][:, None] == past) | (cosines <= 0)] = -np.inf
        places, best = top_k(cosines, MAX_NEAREST)
        width, found = places.shape[1], places >= 0
        if width:
            nearest[person, :, :width] = np.where(found, past[places], -1)
            similarities[person, :, :width] = np.where(found, best, 0.0)
    nearest[item_rows < 0], similarities[item_rows < 0] = -1, 0.0
    return Because(nearest, similarities)


def _unit(item_vectors: FloatArray, rows: IntArray) -> FloatArray:
    vectors = item_vectors[rows, :-1]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)
