"""TF-IDF content baseline: from item texts to the cosine with a user's past, no language model needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from llmrec_ray.ranking import take_items
from llmrec_ray.signals.base import blank_without_history, history_matrix
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["TfidfContent"]


class TfidfContent:
    """The `tfidf` baseline (scikit-learn's TfidfVectorizer, unit-norm rows)."""

    name: ClassVar[str] = "tfidf"

    def __init__(self, item_texts: Sequence[str], recency: float | None = None) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.recency = recency
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        self.terms = vectorizer.fit_transform(item_texts)

    def score(self, histories: Histories) -> FloatArray:
        """Raw scores of the whole catalogue, [B, N] float32; NaN for a user without history."""
        profiles = history_matrix(histories, self.terms.shape[0], self.recency) @ self.terms
        scores = (profiles @ self.terms.T).toarray()
        norms = np.sqrt(profiles.multiply(profiles).sum(axis=1))
        return blank_without_history(scores / np.maximum(np.asarray(norms).reshape(-1, 1), 1e-12), histories)

    def score_items(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Raw scores of item_rows [B, C] float32; NaN where the row is -1."""
        return take_items(self.score(histories), item_rows)
