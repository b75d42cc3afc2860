"""Items that come when training is over: from their texts and attributes to what cold items have.

It is the map of `cold`, kernel ridge regression from the content of known items to what was learnt about them, kept so
that one more item costs no training: its vector is one product with coefficients that were solved for beforehand.

Shapes: B users, N items of training, M items that came later, W known items carried over from, C candidates, T text
vector size, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy import linalg

from llmrec_ray.signals.base import blank_without_history, history_matrix
from llmrec_ray.signals.cold import RIDGE, ItemKernel, usable_items
from llmrec_ray.signals.ease import Ease
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["GrownItemItem", "NewItems"]

Columns = Mapping[str, Sequence[object]]


class NewItems:
    """known: [W] int64 rows. coefficients: [W, D + 1] float32. inverse: [W, W] float32, or None without item-item.

    attributes: columns of W values.
    """

    def __init__(
        self, known: IntArray, text_vectors: FloatArray, attributes: Columns, coefficients: FloatArray,
        inverse: FloatArray | None,
    ) -> None:
        """text_vectors: [N, T] in text space."""
        self.known, self.coefficients, self.inverse = known, coefficients, inverse
        self.attributes = dict(attributes)
        self._text = text_vectors

    @classmethod
    def fit(
        cls, text_vectors: FloatArray, attributes: Columns, item_counts: IntArray, cold: IntArray,
        item_vectors: FloatArray, *, item_item: bool, ridge: float = RIDGE,
    ) -> NewItems | None:
        """From the items that `Propagation.fit` carries over to cold ones; None when there are none.

        item_counts: [N] train events per item. attributes: columns of N values. item_vectors: [N, D + 1] float32.
        """
        known = usable_items(item_counts, cold)
        if not len(known):
            return None
        of_known = {name: [column[row] for row in known.tolist()] for name, column in attributes.items()}
        everyone = np.arange(len(known))
        system = ItemKernel(text_vectors[known], of_known.values()).between(everyone, everyone).astype(np.float64)
        system[np.diag_indices(len(known))] += ridge
        factor = linalg.cho_factor(system, lower=True, overwrite_a=True)
        coefficients = linalg.cho_solve(factor, item_vectors[known].astype(np.float64)).astype(np.float32)
        inverse = linalg.cho_solve(factor, np.eye(len(known))).astype(np.float32) if item_item else None
        return cls(known, text_vectors, of_known, coefficients, inverse)

    def similarities(self, text_vectors: FloatArray, attributes: Columns) -> FloatArray:
        """[M, W] float32 likeness of later items to known ones, from text vectors [M, T] and columns of M values."""
        return self._kernel.of_others(text_vectors, [attributes[name] for name in self.attributes])

    @cached_property
    def _kernel(self) -> ItemKernel:
        return ItemKernel(self._text[self.known], self.attributes.values())

    def vectors(self, similar: FloatArray) -> FloatArray:
        """[M, D + 1] float32, as the rows of cold items."""
        return np.asarray(similar @ self.coefficients, np.float32)

    def weights(self, similar: FloatArray) -> FloatArray:
        """[W, M] float32, how much each known item says about each later one."""
        assert self.inverse is not None, "weights for a Bundle without item-item. This is a bug."
        return np.asarray(self.inverse @ similar.T, np.float32)

    def arrays(self) -> dict[str, FloatArray]:
        """Its coefficients, for safetensors; `known` and `attributes` are a table."""
        kept = {"coefficients": self.coefficients}
        return kept if self.inverse is None else {**kept, "inverse": self.inverse}


class GrownItemItem:
    """The `item_item` signal with later items: their rows and columns stand beside the matrix, which is shared."""

    name: ClassVar[str] = "item_item"

    def __init__(self, base: Ease, known: IntArray, weights: FloatArray) -> None:
        """known: [W] rows. weights: [W, M], see `NewItems.weights`."""
        self._base, self.recency, self._n = base, base.recency, len(base.weights)
        self._below = np.asarray(weights.T @ base.weights[known], np.float32)
        self._beside = np.asarray(base.weights[:, known] @ weights, np.float32)
        self._corner = np.asarray(self._below[:, known] @ weights, np.float32)
        np.fill_diagonal(self._corner, 0.0)

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N + M] float32; NaN for a user without history."""
        old, new = self._split(histories)
        scores = np.hstack([old @ self._base.weights + new @ self._below, old @ self._beside + new @ self._corner])
        return blank_without_history(scores, histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C], reading only the matrix cells that are needed."""
        weighted = history_matrix(histories, self._n + len(self._below), self.recency)
        scores = np.full(item_rows.shape, np.nan, np.float32)
        for user in np.flatnonzero(histories.lengths):
            start, end = weighted.indptr[user : user + 2]
            cells = self._cells(weighted.indices[start:end], np.maximum(item_rows[user], 0))
            scores[user] = weighted.data[start:end] @ cells
        return np.where(item_rows >= 0, scores, np.nan).astype(np.float32)

    def columns(self, item_rows: IntArray) -> FloatArray:
        """[N + M, C] float32 columns of the matrix."""
        return self._cells(np.arange(self._n + len(self._below)), item_rows)

    def _split(self, histories: Histories) -> tuple[FloatArray, FloatArray]:
        """Event weights of items of training and of later ones, sparse [B, N] and [B, M]."""
        weighted = history_matrix(histories, self._n + len(self._below), self.recency)
        return weighted[:, : self._n], weighted[:, self._n :]

    def _cells(self, rows: IntArray, columns: IntArray) -> FloatArray:
        cells = np.empty((len(rows), len(columns)), np.float32)
        later_rows, later_columns = rows >= self._n, columns >= self._n
        blocks = ((self._base.weights, self._beside), (self._below, self._corner))
        for below, of_rows in enumerate((~later_rows, later_rows)):
            for beside, of_columns in enumerate((~later_columns, later_columns)):
                block = blocks[below][beside]
                where = np.ix_(rows[of_rows] - below * self._n, columns[of_columns] - beside * self._n)
                cells[np.ix_(of_rows, of_columns)] = block[where]
        return cells
