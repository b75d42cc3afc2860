"""Text space: from raw text vectors to centred unit vectors, and from a user's past to a cosine per item.

Uncentred vectors of a language model all point one way, so their cosines say little; the centre of the
catalogue is subtracted first. T = text vector width. A zero vector stands for "no text" throughout.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from llmrec_ray.signals.base import blank_without_history, history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["TEXT_RECENCY", "TextCosine", "center", "to_text_space"]

TEXT_RECENCY = 3.0
"""The text forgets faster than co-occurrence does (MovieLens-100K, six held-out events per person)."""


def center(vectors: FloatArray) -> FloatArray:
    """Mean of the vectors [N, T] that are not all zero, [T] float32."""
    with_text = vectors[np.any(vectors != 0, axis=1)]
    if not len(with_text):
        return np.zeros(vectors.shape[1], np.float32)
    return np.asarray(with_text.mean(axis=0, dtype=np.float64), dtype=np.float32)


def to_text_space(vectors: FloatArray, center: FloatArray) -> FloatArray:
    """Centred unit vectors [N, T] float32; an all-zero input stays zero."""
    has_text = np.any(vectors != 0, axis=1, keepdims=True)
    return _unit(np.where(has_text, vectors - center, 0.0))


class TextCosine:
    """The `text` signal: cosine of an item with the recency-weighted mean of a history's text vectors."""

    name: ClassVar[str] = "text"

    def __init__(self, text_vectors: FloatArray, recency: float | None = TEXT_RECENCY) -> None:
        self.text_vectors = text_vectors
        self.recency = recency

    def profiles(self, histories: Histories) -> FloatArray:
        """Unit vector of each user's past, [B, T] float32; zero without history or texts."""
        weighted = history_matrix(histories, len(self.text_vectors), self.recency)
        return _unit(weighted @ self.text_vectors)

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32; NaN for a user without history."""
        return blank_without_history(self.profiles(histories) @ self.text_vectors.T, histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1 or there is no history."""
        return blank_without_history(self.score_query_items(self.profiles(histories), item_rows), histories)

    def score_query(self, vectors: FloatArray) -> FloatArray:
        """Cosine of every item with text vectors [B, T] that are in text space already, [B, N] float32."""
        return np.asarray(vectors @ self.text_vectors.T, dtype=np.float32)

    def score_query_items(self, vectors: FloatArray, item_rows: IntArray) -> FloatArray:
        """Cosine of item_rows [B, C] with text vectors [B, T], [B, C] float32; NaN where the row is -1."""
        cosines = np.einsum("bt,bct->bc", vectors, self.text_vectors[np.maximum(item_rows, 0)])
        return np.where(item_rows >= 0, cosines, np.nan).astype(np.float32)


def _unit(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return np.asarray(units, np.float32)
