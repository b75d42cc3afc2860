"""First-order Markov chain baseline: from which item follows which to the probability of the next one.

Only the newest item of a history is read. Counts are kept sparse and smoothed twice: an item that follows a few events
later counts too, but less, as in skip-grams (Guthrie et al. 2006); and every row has a Dirichlet prior of one event,
spread over the items as the train events are.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse

from llmrec_ray.ranking import take_items
from llmrec_ray.signals.base import blank_without_history
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["MarkovChain"]


REACH = 4
"""Followers beyond so many times `decay` are not counted: their weight is below 2 %."""


class MarkovChain:
    """The `markov` baseline.

    decay: an item that follows after `gap` events counts exp(-(gap - 1) / decay); None counts neighbours only.
    backward: how much a transition counts in the opposite direction. Logs often give several events one timestamp, and
    then the order says little.
    """

    name: ClassVar[str] = "markov"

    def __init__(self, decay: float | None = 4.0, backward: float = 1.0) -> None:
        self.decay = decay
        self.backward = backward
        self.counts: Any = sparse.csr_matrix((0, 0), dtype=np.float32)
        self.prior: FloatArray = np.empty(0, np.float32)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Count the transitions [N, N] within each history."""
        forward = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
        for gap in range(1, self._longest_gap + 1):
            weight = 1.0 if self.decay is None else np.exp(-(gap - 1) / self.decay)
            forward += np.float32(weight) * _followers(train, gap, n_items)
        self.counts = (forward + np.float32(self.backward) * forward.T).tocsr()
        self.prior = (np.bincount(train.item_rows, minlength=n_items) / len(train.item_rows)).astype(np.float32)
        return self

    def score(self, histories: Histories) -> FloatArray:
        """Probability of each item as the next one, [B, N] float32; NaN for a user without history."""
        newest = histories.last(1)[0][:, 0]
        counts = self.counts[newest].toarray()
        scores = (counts + self.prior) / (counts.sum(axis=1, keepdims=True) + 1.0)
        return blank_without_history(scores, histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1."""
        return take_items(self.score(histories), item_rows)

    @property
    def _longest_gap(self) -> int:
        return 1 if self.decay is None else 1 + int(REACH * self.decay)


def _followers(train: Histories, gap: int, n_items: int) -> Any:
    """[N, N] how often the column's item comes `gap` events after the row's in one history."""
    owners = np.repeat(np.arange(len(train)), train.lengths)
    inside = owners[gap:] == owners[:-gap]
    cells = (train.item_rows[:-gap][inside], train.item_rows[gap:][inside])
    return sparse.csr_matrix((np.ones(int(inside.sum()), np.float32), cells), shape=(n_items, n_items))
