"""iALS baseline: from who-consumed-what to item factors by alternating least squares, users folded in.

Hu, Koren and Volinsky 2008, with the frequency-scaled regularisation of Rendle et al. 2021. A user's vector
is solved from the history at scoring time, so new events and new users need no training.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.ranking import take_items
from llmrec_ray.signals.base import blank_without_history, history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Ials"]

Factors = NDArray[np.float64]


class Ials:
    """The `ials` baseline."""

    name: ClassVar[str] = "ials"

    def __init__(
        self,
        factors: int = 128,
        unobserved_weight: float = 0.5,
        l2: float = 0.005,
        iterations: int = 10,
        seed: int = 0,
    ) -> None:
        self.factors = factors
        self.unobserved_weight = unobserved_weight
        self.l2 = l2
        self.iterations = iterations
        self.seed = seed
        self.items: Factors = np.empty((0, factors))

    def fit(self, train: Histories, n_items: int) -> Self:
        """Learn the item factors [N, F]."""
        users_items = history_matrix(train, n_items, None)
        items_users = users_items.T.tocsr()
        spread = 0.1 / np.sqrt(self.factors)
        self.items = np.random.default_rng(self.seed).normal(0.0, spread, (n_items, self.factors))
        for _ in range(self.iterations):
            users = self._solve(users_items, self.items)
            self.items = self._solve(items_users, users)
        return self

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32; NaN for a user without history."""
        users = self._solve(history_matrix(histories, len(self.items), None), self.items)
        return blank_without_history((users @ self.items.T).astype(np.float32), histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1."""
        return take_items(self.score(histories), item_rows)

    def _solve(self, observed: Any, others: Factors) -> Factors:
        """Best vectors [rows, F] for a sparse binary matrix [rows, columns] given the columns' vectors."""
        shared = self.unobserved_weight * (others.T @ others)
        solved = np.zeros((observed.shape[0], self.factors))
        for row in np.flatnonzero(np.diff(observed.indptr)):
            mine = others[observed.indices[observed.indptr[row] : observed.indptr[row + 1]]]
            ridge = self.l2 * (len(mine) + self.unobserved_weight * len(others))
            system = shared + mine.T @ mine + ridge * np.eye(self.factors)
            solved[row] = np.linalg.solve(system, mine.sum(axis=0))
        return solved
