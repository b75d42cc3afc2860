"""Histories and texts -> raw scores of every signal, from arrays in memory.

Shapes: B users, N items, C candidates, d embedding size, T text vector size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from llmrec_ray.model import FusionRecommender, ncf, user_matrix
from llmrec_ray.signals import ColdItems, Ease, GrownItemItem, Signal, TextCosine
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Scorer", "cold_items"]

NCF_CHUNK_USERS = 32
NOBODY = np.empty(0, np.int64)


class Scorer:
    """Raw scores of every signal for histories and texts, from arrays in memory.

    item_vectors: [N, d + 1] float32, see `catalogue_vectors`. signals: the traditional ones, by name. cold_rows: items
    without a train event, whose vectors and item-item columns were carried over from known ones.
    """

    def __init__(
        self, model: FusionRecommender, item_vectors: FloatArray, signals: Mapping[str, Signal],
        cold_rows: IntArray | None = None,
    ) -> None:
        self.model = model.eval()
        self.item_vectors = item_vectors
        self.signals = dict(signals)
        self.cold = cold_items(NOBODY if cold_rows is None else cold_rows, self.signals, item_vectors)

    @property
    def signal_names(self) -> list[str]:
        """Names of all signals that it can score."""
        return ["neural", "ncf", *self.signals]

    def user_vectors(self, histories: Histories, text: FloatArray | None = None) -> FloatArray:
        """[B, d + 1] float32, last column 1.0: the dot product with `item_vectors` is the neural score.

        text: [B, T] in text space; a zero row means the user gave no text.
        """
        return user_matrix(self.model, self.item_vectors, histories, text)

    def score_all(self, histories: Histories, text: FloatArray | None = None) -> dict[str, FloatArray]:
        """Raw scores of the whole catalogue: signal name -> [B, N] float32."""
        users = self.user_vectors(histories, text)
        return {name: self.score_catalogue(name, histories, users, text) for name in self.signal_names}

    def score_catalogue(
        self, name: str, histories: Histories, users: FloatArray, text: FloatArray | None = None
    ) -> FloatArray:
        """Raw scores [B, N] float32 of the whole catalogue by one signal, for user vectors [B, d + 1]."""
        if name == "neural":
            return np.asarray(users @ self.item_vectors.T, np.float32)
        return self._ncf_all(users) if name == "ncf" else self.score_signal(name, histories, text)

    def score_signal(self, name: str, histories: Histories, text: FloatArray | None = None) -> FloatArray:
        """Raw scores [B, N] float32 of the whole catalogue by one of `signals`."""
        signal = self.signals[name]
        scores = signal.score(histories)
        if text is not None and isinstance(signal, TextCosine):
            return _prefer_query(scores, signal.score_query(text), text)
        return scores

    def score_items(
        self,
        histories: Histories,
        item_rows: IntArray,
        users: FloatArray | None = None,
        text: FloatArray | None = None,
        names: Collection[str] | None = None,
    ) -> dict[str, FloatArray]:
        """Raw scores of the given candidates [B, C]: signal name -> [B, C] float32, NaN where item_rows is -1.

        names: the signals to score, all when None.
        """
        users = self.user_vectors(histories, text) if users is None else users
        wanted = [name for name in self.signal_names if names is None or name in names]
        return {name: self._score_items(name, histories, item_rows, users, text) for name in wanted}

    def _score_items(
        self, name: str, histories: Histories, item_rows: IntArray, users: FloatArray, text: FloatArray | None
    ) -> FloatArray:
        if name == "neural":
            neural = np.einsum("bd,bcd->bc", users, self.item_vectors[np.maximum(item_rows, 0)])
            return np.where(item_rows < 0, np.float32(np.nan), neural).astype(np.float32)
        if name == "ncf":
            return ncf(self.model, users, self.item_vectors, item_rows)
        signal = self.signals[name]
        scores = signal.score_items(histories, item_rows)
        if text is not None and isinstance(signal, TextCosine):
            return _prefer_query(scores, signal.score_query_items(text, item_rows), text)
        return scores

    def _ncf_all(self, users: FloatArray) -> FloatArray:
        rows = np.arange(len(self.item_vectors), dtype=np.int64)
        chunks = [users[start : start + NCF_CHUNK_USERS] for start in range(0, len(users), NCF_CHUNK_USERS)]
        scored = [ncf(self.model, chunk, self.item_vectors, np.tile(rows, (len(chunk), 1))) for chunk in chunks]
        return np.concatenate([*scored, np.empty((0, len(rows)), np.float32)])


def cold_items(rows: IntArray, signals: Mapping[str, Signal], item_vectors: FloatArray) -> ColdItems:
    """The cold items of these rows [C], from signals and item vectors [N, d + 1] in which they are filled in."""
    item_item, text = signals.get("item_item"), signals.get("text")
    return ColdItems(
        rows, item_item.columns(rows) if isinstance(item_item, Ease | GrownItemItem) else None,
        text.text_vectors if isinstance(text, TextCosine) else None, item_vectors,
    )


def _prefer_query(history: FloatArray, query: FloatArray, text: FloatArray) -> FloatArray:
    """The text signal of a user who gave a text is its cosine with the items; the history speaks elsewhere."""
    return np.where(text.any(axis=1, keepdims=True), query, history).astype(np.float32)
