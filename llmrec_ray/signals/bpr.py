"""BPR baseline: from pairs of a consumed and another item to factors of users and items.

Matrix factorisation under Bayesian personalised ranking (Rendle et al. 2009), by Adam on shuffled mini-batches with
uniform negatives that the user has not consumed. Shapes: U users, N items, F factors, B events of a mini-batch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llmrec_ray.ranking import take_items
from llmrec_ray.signals.base import blank_without_history, history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Bpr"]

MOMENTS = (0.9, 0.999)
INITIAL_STD = 0.1
FOLD_IN_RIDGE = 1e-3


class Bpr:
    """The `bpr` baseline.

    A user of the train split is scored by the learned vector, which newer events do not change. For anybody else a
    linear map, fitted on the train users, turns the mean vector of the history into a user vector.
    """

    name: ClassVar[str] = "bpr"

    def __init__(
        self, factors: int = 64, learning_rate: float = 0.02, l2: float = 0.005, epochs: int = 30,
        batch_size: int = 4096, seed: int = 0,
    ) -> None:
        self.factors = factors
        self.learning_rate = learning_rate
        self.l2 = l2
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.users: FloatArray = np.empty((0, factors), np.float32)
        self.items: FloatArray = np.empty((0, factors), np.float32)
        self.biases: FloatArray = np.empty((0, 1), np.float32)
        self.fold_in: FloatArray = np.eye(factors, dtype=np.float32)
        self.known: NDArray[np.bool_] = np.empty(0, np.bool_)

    def fit(self, train: Histories, n_items: int) -> Self:
        """Learn user vectors [U, F], item vectors [N, F] and item biases [N, 1]."""
        generator = np.random.default_rng(self.seed)
        self.users = _vectors(generator, len(train), self.factors)
        self.items = _vectors(generator, n_items, self.factors)
        self.biases = np.zeros((n_items, 1), np.float32)
        owners = np.repeat(np.arange(len(train)), train.lengths)
        pairs = np.unique(owners * n_items + train.item_rows)
        optimizer = _Adam([self.users, self.items, self.biases])
        for epoch in range(self.epochs):
            rate = self.learning_rate * (1 - epoch / self.epochs)
            order = generator.permutation(pairs)
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                optimizer.step(self._gradients(chosen, _negatives(chosen, pairs, n_items, generator)), rate)
        self._fit_fold_in(train)
        return self

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32; NaN for a user without history."""
        return blank_without_history(self._user_vectors(histories) @ self.items.T + self.biases.T, histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1."""
        return take_items(self.score(histories), item_rows)

    def _gradients(self, pairs: IntArray, negatives: IntArray) -> list[FloatArray]:
        """Of the mean loss over B pairs (user * N + item), in the order of the optimizer's parameters."""
        n_items, n_pairs = len(self.items), len(pairs)
        users, positives = pairs // n_items, pairs % n_items
        both = np.concatenate([positives, negatives])
        user_BF, item_BF, other_BF = self.users[users], self.items[positives], self.items[negatives]
        margin_B1 = (user_BF * (item_BF - other_BF)).sum(axis=1, keepdims=True)
        margin_B1 += self.biases[positives] - self.biases[negatives]
        push_B1 = -1.0 / (1.0 + np.exp(margin_B1)) / n_pairs
        decay = np.float32(self.l2 / n_pairs)
        pushed_BF = push_B1 * user_BF
        of_items = np.concatenate([pushed_BF, -pushed_BF]) + decay * np.concatenate([item_BF, other_BF])
        return [
            _summed(push_B1 * (item_BF - other_BF) + decay * user_BF, users, len(self.users)),
            _summed(of_items, both, n_items),
            _summed(np.concatenate([push_B1, -push_B1]), both, n_items),
        ]

    def _fit_fold_in(self, train: Histories) -> None:
        means, known = self._history_means(train), train.lengths > 0
        gram = means[known].T @ means[known]
        gram[np.diag_indices(self.factors)] += FOLD_IN_RIDGE
        self.fold_in = np.linalg.solve(gram, means[known].T @ self.users[known]).astype(np.float32)
        self.known = known

    def _user_vectors(self, histories: Histories) -> FloatArray:
        """[B, F]."""
        folded = self._history_means(histories) @ self.fold_in
        if not len(self.users):
            return folded
        rows = np.maximum(histories.user_rows, 0)
        known = (histories.user_rows >= 0) & self.known[rows]
        return np.where(known[:, None], self.users[rows], folded).astype(np.float32)

    def _history_means(self, histories: Histories) -> FloatArray:
        occurrences = history_matrix(histories, len(self.items), None)
        counts = np.maximum(np.diff(occurrences.indptr), 1)[:, None]
        return np.asarray((occurrences @ self.items) / counts, np.float32)


class _Adam:
    """Kingma and Ba 2015, in place on dense arrays."""

    def __init__(self, parameters: list[FloatArray]) -> None:
        self.parameters = parameters
        self.means = [np.zeros_like(parameter) for parameter in parameters]
        self.squares = [np.zeros_like(parameter) for parameter in parameters]
        self.steps = 0

    def step(self, gradients: list[FloatArray], rate: float) -> None:
        self.steps += 1
        first, second = MOMENTS
        scale = rate * np.sqrt(1 - second**self.steps) / (1 - first**self.steps)
        for parameter, gradient, mean, square in zip(
            self.parameters, gradients, self.means, self.squares, strict=True
        ):
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (gradient**2 - square)
            parameter -= (scale * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)


def _vectors(generator: np.random.Generator, n: int, factors: int) -> FloatArray:
    return generator.normal(0.0, INITIAL_STD, (n, factors)).astype(np.float32)


def _negatives(chosen: IntArray, pairs: IntArray, n_items: int, generator: np.random.Generator) -> IntArray:
    """One item for each chosen pair [B]; what the user has consumed after all is drawn once more."""
    users = chosen // n_items
    negatives = generator.integers(0, n_items, len(chosen))
    drawn = users * n_items + negatives
    taken = pairs[np.minimum(np.searchsorted(pairs, drawn), len(pairs) - 1)] == drawn
    negatives[taken] = generator.integers(0, n_items, int(taken.sum()))
    return negatives


def _summed(values: Any, rows: IntArray, n_rows: int) -> FloatArray:
    """[n_rows, F]: values [B, F] added up by row; a sparse product is several times faster than np.add.at."""
    places = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), (n_rows, len(rows)))
    return np.asarray(places @ values, np.float32)
