"""What every signal can do, and the recency-weighted history matrix that most of them read.

Shapes: B = users, N = items in the catalogue, C = candidates per user, E = events in all histories together.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy import sparse

from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Signal", "blank_without_history", "history_matrix", "recency_weights"]


class Signal(Protocol):
    """One named raw score. A user for whom it has nothing to go by gets NaN: no opinion, not a bad one."""

    @property
    def name(self) -> str:
        """Name in fusion weights, explanations and tables."""

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32."""

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C], [B, C] float32; NaN where the row is -1."""


def recency_weights(histories: Histories, recency: float | None) -> FloatArray:
    """Weight of every event, [E] float32: exp(-age / recency), a user's newest has age 0; None = all 1."""
    if recency is None:
        return np.ones(len(histories.item_rows), np.float32)
    ends = np.repeat(histories.indptr[1:], histories.lengths)
    ages = ends - 1 - np.arange(len(histories.item_rows))
    return np.exp(-ages / recency).astype(np.float32)


def history_matrix(histories: Histories, n_items: int, recency: float | None) -> Any:
    """Sparse [B, N] float32 matrix of event weights; an item that occurs twice counts as its newest event."""
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    keys = (users * n_items + histories.item_rows)[::-1]
    distinct, newest = np.unique(keys, return_index=True)
    weights = recency_weights(histories, recency)[::-1][newest]
    cells = (distinct // n_items, distinct % n_items)
    return sparse.csr_matrix((weights, cells), shape=(len(histories), n_items))


def blank_without_history(scores: FloatArray, histories: Histories) -> FloatArray:
    """Scores [B, N] with NaN for every user whose history is empty; the same array where there is none."""
    if histories.lengths.all():
        return scores.astype(np.float32, copy=False)
    return np.where(histories.lengths[:, None] > 0, scores, np.nan).astype(np.float32)
