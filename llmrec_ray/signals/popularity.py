"""Popularity: from how many users consumed an item to one score for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from llmrec_ray.signals.base import history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Popularity"]


class Popularity:
    """The `popularity` signal: log(1 + users), which orders as the count does and suits a weighted sum."""

    name: ClassVar[str] = "popularity"

    def __init__(self) -> None:
        self.log_counts: FloatArray = np.empty(0, np.float32)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Count the users of each item."""
        counts = np.asarray(history_matrix(train, n_items, None).sum(axis=0)).ravel()
        self.log_counts = np.log1p(counts).astype(np.float32)
        return self

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32, the same for everybody."""
        return np.tile(self.log_counts, (len(histories), 1))

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1."""
        return np.where(item_rows >= 0, self.log_counts[np.maximum(item_rows, 0)], np.nan).astype(np.float32)

    def arrays(self) -> dict[str, FloatArray]:
        """Everything needed to score, for safetensors."""
        return {"log_counts": self.log_counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The signal that `arrays` came from."""
        signal = cls()
        signal.log_counts = np.asarray(arrays["log_counts"], np.float32)
        return signal
