"""Histories and text vectors -> candidates: every source proposes items that may be shown; they merge.

Shapes: B requests, N items, C candidates, T text vector size. Raw scores that a source has made come along; nothing is
ordered for good here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from time import perf_counter

import numpy as np
import polars as pl

from llmrec_ray.bundle import Bundle
from llmrec_ray.errors import ArtifactMismatchError
from llmrec_ray.index import Index
from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.allowed import Allowed, Mask
from llmrec_ray.recommend.batch import Encoded, RequestBatch, Retrieved
from llmrec_ray.recommend.filters import ItemFilter
from llmrec_ray.recommend.lanes import Lanes
from llmrec_ray.recommend.merging import Merged, by_rank, by_weight, source_weights
from llmrec_ray.recommend.sources import (
    Asked,
    ColdSource,
    NearestSource,
    PopularSource,
    Proposed,
    SignalSource,
    Source,
)
from llmrec_ray.recommend.weights import is_cold
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["Retriever"]

NOTHING_HIDDEN = np.empty(0, np.int64)


class Retriever:
    """Holds the Index, the signals that propose candidates, and the items' attributes; many threads may use it.

    Raises ArtifactMismatchError when the Index was built from another Bundle.
    """

    def __init__(
        self, bundle: Bundle, index: Index, attributes: pl.DataFrame, policy: FusionPolicy, release_id: str, *,
        hidden: IntArray = NOTHING_HIDDEN, deadline_s: float | None = None,
    ) -> None:
        """hidden: rows of items that nobody is shown. deadline_s: of each source; None waits, and raises its errors."""
        if index.bundle_id != bundle.id:
            raise ArtifactMismatchError(
                f"The index {index.uri} was built from bundle {index.bundle_id}, not {bundle.id}: "
                "run `llmrec index` on this Bundle."
            )
        assert len(index) == len(bundle.items), "an index over other items than the bundle's. This is a bug."
        self._bundle, self._index, self._policy, self._release_id = bundle, index, policy, release_id
        self._hidden = np.zeros(len(bundle.items), np.bool_)
        self._hidden[hidden] = True
        self._filter = ItemFilter(bundle.items, attributes)
        self._sources = self._make_sources()
        self._lanes = Lanes(self._sources)
        self._deadline_s = deadline_s

    def retrieve(self, batch: RequestBatch, encoded: Encoded | None) -> Retrieved:
        """Candidates for B requests, with their encoded texts or None when no request carries one.

        Whenever k items pass a request's filters there are at least k candidates, whatever the sources miss.
        """
        batch.check_release(self._release_id)
        start = perf_counter()
        text, before_ms = (None, {}) if encoded is None else (encoded.vectors, encoded.timings_ms)
        users, by_profile = self._users(batch, encoded)
        allowed = Allowed.of(batch, self._filter, self._hidden)
        asked = Asked(batch.histories, users, text, allowed, int(batch.k.max(initial=0)))
        work = {name: partial(source.propose, asked) for name, source in self._sources.items()}
        proposed, left_out = self._lanes.run(work, self._deadline_s)
        wanted = np.zeros(len(batch), np.bool_) if text is None else np.asarray(text.any(axis=1), np.bool_)
        weights = source_weights(batch, self._policy, wanted, by_profile, [*self._sources, "popularity"])
        candidates, order = self._merged(batch, asked, proposed, weights).candidates()
        candidates = replace(candidates, scores=_scores(proposed, candidates.item_rows))
        timings_ms = {**before_ms, "retrieve": (perf_counter() - start) * 1000}
        degraded = tuple(f"source:{name}" for name in left_out)
        return Retrieved(candidates, users, text, by_profile, order, timings_ms, degraded)

    def similar(self, item_rows: IntArray, k: int) -> tuple[IntArray, FloatArray]:
        """The items most like each of B, without itself: rows and cosines of fused vectors, [B, <= k].

        Row -1 and score -inf stand at the end where fewer may be shown.
        """
        queries = self._bundle.item_vectors[item_rows].copy()
        queries[:, -1] = 0.0  # the bias of an item says nothing about what it is like
        scores = queries @ self._bundle.item_vectors.T / (self._norms[item_rows][:, None] * self._norms)
        scores[np.arange(len(item_rows)), item_rows] = -np.inf
        scores[:, np.flatnonzero(self._hidden)] = -np.inf
        return top_k(scores, min(k, len(self._index) - 1))

    @cached_property
    def _norms(self) -> FloatArray:
        vectors = self._bundle.item_vectors[:, :-1]
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        return np.asarray(np.maximum(norms, 1e-12), np.float32)

    @cached_property
    def _popular(self) -> PopularSource:
        return PopularSource(self._bundle, 0)

    def _make_sources(self) -> dict[str, Source]:
        sources: dict[str, Source] = {}
        for name, n in self._policy.candidates.items():
            if name == "neural":
                sources[name] = NearestSource(self._index, n)
            elif name == "popularity":
                sources[name] = PopularSource(self._bundle, n)
            elif name in self._bundle.signals:
                sources[name] = SignalSource(self._bundle, name, n)
        n_cold = self._policy.candidates.get("cold", 0)
        if n_cold and self._policy.cold_scale and self._policy.cold_weights and len(self._bundle.cold):
            sources["cold"] = ColdSource(self._bundle, self._policy, n_cold)
        return sources

    def _users(self, batch: RequestBatch, encoded: Encoded | None) -> tuple[FloatArray, Mask]:
        """User vectors [B, d + 1], and [B] True where one is that of people with such a profile."""
        users = self._bundle.user_vectors(batch.histories, None if encoded is None else encoded.vectors)
        if encoded is None:
            return users, np.zeros(len(batch), np.bool_)
        by_profile = (batch.histories.lengths == 0) & encoded.users.any(axis=1)
        users[by_profile] = encoded.users[by_profile]
        return users, by_profile

    def _merged(
        self, batch: RequestBatch, asked: Asked, proposed: dict[str, Proposed], weights: Mapping[str, FloatArray]
    ) -> Merged:
        """One list per request. Popularity proposes, where it is no source, for people of whom nothing is known and
        where fewer than k were found."""
        merged = self._merge(proposed, weights, len(batch))
        short = merged.counts < np.minimum(batch.k, asked.allowed.counts)
        if "popularity" not in proposed and (short | is_cold(batch)).any():
            popular = self._popular.propose(asked)
            popular.rows[~(short | is_cold(batch))] = -1
            merged = self._merge({**proposed, "popularity": popular}, weights, len(batch))
        most = self._policy.max_candidates
        return merged if most is None else merged.best(max(most, asked.k))

    def _merge(
        self, proposed: Mapping[str, Proposed], weights: Mapping[str, FloatArray], n_requests: int
    ) -> Merged:
        if self._policy.merge == "reciprocal_rank":
            return Merged.of(proposed, by_rank(proposed), n_requests)
        return Merged.of(proposed, by_weight(proposed, weights, self._bundle.calibration), n_requests)


def _scores(proposed: Mapping[str, Proposed], item_rows: IntArray) -> dict[str, FloatArray]:
    """What the sources have scored anyway, for the candidates [B, C]: the Reranker need not do it again."""
    found = {name: source.scores_of(item_rows) for name, source in proposed.items()}
    return {name: scores for name, scores in found.items() if scores is not None}
