"""EASE: from who-consumed-what to an item-item matrix in closed form (Steck 2019), read with recency.

The matrix is learnt from unweighted histories; at scoring time each history item weighs exp(-age / recency).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from llmrec_ray.errors import ConfigError
from llmrec_ray.signals.base import blank_without_history, history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Ease"]

MAX_ITEMS = 20_000


class Ease:
    """The `item_item` signal."""

    name: ClassVar[str] = "item_item"

    def __init__(self, l2: float = 400.0, recency: float | None = 10.0) -> None:
        self.l2 = l2
        self.recency = recency
        self.weights: FloatArray = np.empty((0, 0), np.float32)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Learn the item-item matrix [N, N]. Raises ConfigError when a dense one would be too large."""
        self.check_size(n_items)
        occurrences = history_matrix(train, n_items, None)
        gram = (occurrences.T @ occurrences).toarray().astype(np.float64)
        gram[np.diag_indices(n_items)] += self.l2
        precision = np.linalg.inv(gram)
        weights = precision / -np.diag(precision)
        np.fill_diagonal(weights, 0.0)
        self.weights = weights.astype(np.float32)
        return self

    @staticmethod
    def check_size(n_items: int) -> None:
        """Raise ConfigError when a dense matrix over the catalogue would be too large."""
        if n_items > MAX_ITEMS:
            raise ConfigError(
                f"EASE keeps a dense matrix of items × items, and {n_items} items are more than its limit of "
                f"{MAX_ITEMS}: leave item_item out of fusion.signals and retrieval.candidates, and ease and "
                "ease_recency out of evaluate.baselines."
            )

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32; NaN for a user without history."""
        weighted = history_matrix(histories, len(self.weights), self.recency)
        return blank_without_history(weighted @ self.weights, histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C], reading only the matrix cells that are needed."""
        weighted = history_matrix(histories, len(self.weights), self.recency)
        scores = np.full(item_rows.shape, np.nan, np.float32)
        for user in np.flatnonzero(histories.lengths):
            start, end = weighted.indptr[user : user + 2]
            cells = self.weights[np.ix_(weighted.indices[start:end], np.maximum(item_rows[user], 0))]
            scores[user] = weighted.data[start:end] @ cells
        return np.where(item_rows >= 0, scores, np.nan).astype(np.float32)

    def columns(self, item_rows: IntArray) -> FloatArray:
        """[N, C] float32 columns of the matrix."""
        return np.ascontiguousarray(self.weights[:, item_rows])

    def arrays(self) -> dict[str, FloatArray]:
        """Everything needed to score, for safetensors."""
        recency = np.nan if self.recency is None else self.recency
        return {"weights": self.weights, "settings": np.array([self.l2, recency], np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The signal that `arrays` came from."""
        l2, recency = (float(setting) for setting in arrays["settings"])
        signal = cls(l2, None if np.isnan(recency) else recency)
        signal.weights = np.asarray(arrays["weights"], np.float32)
        return signal
