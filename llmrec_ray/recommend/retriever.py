"""Histories and text vectors -> candidates: every source proposes items that pass the filters; they merge.

Shapes: B requests, N items, C candidates, T text vector size. Nothing is scored for the final order here.
"""

from __future__ import annotations

from functools import cached_property
from time import perf_counter

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.bundle import Bundle
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.index import Index
from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.batch import Encoded, RequestBatch, Retrieved
from llmrec_ray.recommend.filters import ItemFilter
from llmrec_ray.recommend.weights import is_cold
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.types import Candidates, FloatArray, Histories, IntArray

__all__ = ["Retriever"]

Mask = NDArray[np.bool_]
MAX_EXTRA = 4  # fetch at most this many times n beyond n, to make up for hidden items


class Retriever:
    """Holds the Index, the signals that propose candidates, and the items' attributes.

    Raises ArtifactMismatchError when the Index was built from another Bundle.
    """

    def __init__(
        self, bundle: Bundle, index: Index, attributes: pl.DataFrame, policy: FusionPolicy, release_id: str
    ) -> None:
        if index.bundle_id != bundle.id:
            raise ArtifactMismatchError(
                f"The index {index.uri} was built from bundle {index.bundle_id}, not {bundle.id}: "
                "run `llmrec index` on this Bundle."
            )
        self._bundle = bundle
        self._index = index
        self._filter = ItemFilter(bundle.items, attributes)
        self._sources = {
            source: n for source, n in policy.candidates.items() if source in {"neural", *bundle.signals}
        }
        self._n_cold = policy.candidates.get("cold", 0) if policy.cold_scale and policy.cold_weights else 0
        self._policy = policy
        self._release_id = release_id

    def retrieve(self, batch: RequestBatch, encoded: Encoded | None) -> Retrieved:
        """Candidates for B requests, with their encoded texts or None when no request carries one.

        Whenever k items pass a request's filters there are at least k candidates, whatever the sources miss.
        """
        batch.check_release(self._release_id)
        start = perf_counter()
        text, before_ms = (None, {}) if encoded is None else (encoded.vectors, encoded.timings_ms)
        users = self._bundle.user_vectors(batch.histories, text)
        by_profile = np.zeros(len(batch), np.bool_)
        if encoded is not None:
            by_profile = (batch.histories.lengths == 0) & encoded.users.any(axis=1)
            users[by_profile] = encoded.users[by_profile]
        allowed = self._allowed(batch)
        proposed: dict[str, Mask] = {
            source: self._propose(source, max(n, int(batch.k.max())), batch.histories, users, text, allowed)
            for source, n in self._sources.items()
        }
        if self._n_cold and len(self._bundle.cold):
            proposed["cold"] = self._propose_cold(batch.histories, users, allowed)
        self._backfill(batch, allowed, proposed)
        candidates = _merge(proposed)
        timings_ms = {**before_ms, "retrieve": (perf_counter() - start) * 1000}
        return Retrieved(candidates, users, text, by_profile, timings_ms)

    def similar(self, item_rows: IntArray, k: int) -> tuple[IntArray, FloatArray]:
        """The items most like each of B, without itself: rows and cosines of fused vectors, [B, <= k]."""
        scores = self._unit_vectors[item_rows] @ self._unit_vectors.T
        scores[np.arange(len(item_rows)), item_rows] = -np.inf
        return top_k(scores, min(k, len(self._index) - 1))

    @cached_property
    def _unit_vectors(self) -> FloatArray:
        vectors = self._bundle.item_vectors[:, :-1]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)

    def _allowed(self, batch: RequestBatch) -> Mask:
        """[B, N] True where an item may be shown to the person who asks."""
        allowed = np.stack([self._filter.passing(filters) for filters in batch.filters])
        owners = np.repeat(np.arange(len(batch)), batch.histories.lengths)
        hidden = batch.exclude_seen[owners]
        allowed[owners[hidden], batch.histories.item_rows[hidden]] = False
        return allowed

    def _propose(
        self,
        source: str,
        n: int,
        histories: Histories,
        users: FloatArray,
        text: FloatArray | None,
        allowed: Mask,
    ) -> Mask:
        """[B, N] True for the n best items that `source` knows and that are allowed."""
        if source == "neural":
            return self._nearest(users, n, allowed)
        scores = self._bundle.score_signal(source, histories, text)
        return _best_allowed(scores, allowed, n)

    def _propose_cold(self, histories: Histories, users: FloatArray, allowed: Mask) -> Mask:
        """[B, N] True for the best allowed items without a train event; none for people without a history."""
        rows = self._bundle.cold.rows
        proposed = np.zeros(allowed.shape, np.bool_)
        scores = self._bundle.blend_cold(histories, users, self._policy)
        scores[histories.lengths == 0] = -np.inf
        proposed[:, rows] = _best_allowed(scores, allowed[:, rows], self._n_cold)
        return proposed

    def _nearest(self, users: FloatArray, n: int, allowed: Mask) -> Mask:
        """The n nearest allowed items; where filters leave too few of those fetched, all are looked at."""
        hidden = (~allowed).sum(axis=1)
        rows, _ = self._index.search(users, n + min(int(hidden.max()), MAX_EXTRA * n))
        nearest = np.zeros(allowed.shape, np.bool_)
        for user in range(len(users)):
            fetched = rows[user][rows[user] >= 0]
            found = fetched[allowed[user, fetched]][:n]
            if len(found) < min(n, allowed.shape[1] - hidden[user]):
                candidates = np.flatnonzero(allowed[user])
                found, _ = self._index.search_among(users[user], candidates, n)
            nearest[user, found] = True
        return nearest

    def _backfill(self, batch: RequestBatch, allowed: Mask, proposed: dict[str, Mask]) -> None:
        """Let popularity propose for people of whom nothing is known, and where fewer than k were found."""
        union = np.any(list(proposed.values()), axis=0)
        short = union.sum(axis=1) < np.minimum(batch.k, allowed.sum(axis=1))
        users = np.flatnonzero(short | is_cold(batch))
        if not len(users):
            return
        popular = proposed.setdefault("popularity", np.zeros(allowed.shape, np.bool_))
        scores = self._bundle.score_signal("popularity", batch.histories.select(users), None)
        popular[users] |= _best_allowed(scores, allowed[users], int(batch.k.max()))


def _best_allowed(scores: FloatArray, allowed: Mask, n: int) -> Mask:
    rows, _ = top_k(np.where(allowed, scores, -np.inf).astype(np.float32), n)
    best = np.zeros(allowed.shape, np.bool_)
    users, places = np.nonzero(rows >= 0)
    best[users, rows[users, places]] = True
    return best


def _merge(proposed: dict[str, Mask]) -> Candidates:
    """The union per request, in row order, with each source's mark; scores are the Reranker's to add."""
    union = np.any(list(proposed.values()), axis=0)
    counts = union.sum(axis=1)
    users, rows = np.nonzero(union)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    item_rows = np.full((len(union), int(counts.max(initial=0))), -1, np.int64)
    item_rows[users, places] = rows
    sources = {name: np.zeros(item_rows.shape, np.bool_) for name in proposed}
    for name, mask in proposed.items():
        sources[name][users, places] = mask[users, rows]
    return Candidates(item_rows=item_rows, scores={}, sources=sources)
