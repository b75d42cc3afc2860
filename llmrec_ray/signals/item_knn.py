"""ItemKNN baseline: from who-consumed-what to the nearest items by cosine, kept sparse."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse

from llmrec_ray.ranking import take_items
from llmrec_ray.signals.base import blank_without_history, history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["ItemKnn"]


class ItemKnn:
    """The `item_knn` baseline: an item is scored by those of its nearest `neighbors` that a history holds.

    Similarity is the asymmetric cosine of Aiolli 2013, users(i, j) / (users(i)^a · users(j)^(1 - a)) for
    a = `asymmetry` on the scored item i (0.5 is the plain cosine), raised to `amplification` (Breese et al.
    1998).
    """

    name: ClassVar[str] = "item_knn"

    def __init__(
        self,
        neighbors: int = 10,
        asymmetry: float = 0.3,
        amplification: float = 3.0,
        recency: float | None = None,
    ) -> None:
        self.neighbors = neighbors
        self.asymmetry = asymmetry
        self.amplification = amplification
        self.recency = recency
        self.similarities: Any = sparse.csr_matrix((0, 0), dtype=np.float32)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Learn the sparse similarities [N, N]: row = item of the history, column = item to be scored."""
        occurrences = history_matrix(train, n_items, None)
        counts = np.asarray(occurrences.sum(axis=0)).ravel()
        together = (occurrences.T @ occurrences).tocoo()
        norms = counts[together.row] ** self.asymmetry * counts[together.col] ** (1 - self.asymmetry)
        cosines = together.data / norms
        values = np.where(together.row == together.col, 0.0, cosines**self.amplification)
        similarities = sparse.csr_matrix((values, (together.row, together.col)), together.shape)
        self.similarities = _nearest(similarities, self.neighbors).T.tocsr()
        return self

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32; NaN for a user without history."""
        weighted = history_matrix(histories, self.similarities.shape[0], self.recency)
        return blank_without_history((weighted @ self.similarities).toarray(), histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1."""
        return take_items(self.score(histories), item_rows)


def _nearest(similarities: Any, neighbors: int) -> Any:
    """Keep the largest values of each row; ties go to the lower column."""
    rows = np.repeat(np.arange(similarities.shape[0]), np.diff(similarities.indptr))
    order = np.lexsort((similarities.indices, -similarities.data, rows))
    place = np.arange(len(order)) - similarities.indptr[rows]
    kept = order[place < neighbors]
    values = similarities.data[kept].astype(np.float32)
    return sparse.csr_matrix((values, (rows[kept], similarities.indices[kept])), similarities.shape)
