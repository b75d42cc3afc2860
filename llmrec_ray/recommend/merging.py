"""What the sources propose -> one set of candidates per request, and their order by what the sources say.

Merging by reciprocal rank: Cormack et al. 2009. Shapes: B requests, n items per source, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from llmrec_ray.recommend.allowed import Mask
from llmrec_ray.recommend.batch import RequestBatch
from llmrec_ray.recommend.sources import Proposed
from llmrec_ray.recommend.weights import plans
from llmrec_ray.signals import Calibration, FusionPolicy
from llmrec_ray.types import Candidates, FloatArray, IntArray

__all__ = ["Merged", "by_rank", "by_weight", "source_weights"]

RANK_OFFSET = 60
RANK_SHARE = 1e-3  # ranks decide where no weighted source proposed anything


@dataclass(frozen=True)
class Merged:
    """The union per request, in row order: requests [M] and rows [M] ascending, order [M] the higher the better.

    places: source -> where in these its items are.
    """

    n_requests: int
    requests: IntArray
    rows: IntArray
    order: FloatArray
    places: Mapping[str, IntArray]

    @classmethod
    def of(cls, proposed: Mapping[str, Proposed], scores: Mapping[str, FloatArray], n_requests: int) -> Self:
        """The union of all; an item's order is the sum of its `scores` [B, n], which are beside the proposed rows."""
        listed = {name: np.nonzero(found.rows >= 0) for name, found in proposed.items()}
        size = 1 + max((int(found.rows.max(initial=0)) for found in proposed.values()), default=0)
        keys = {name: listed[name][0] * size + found.rows[listed[name]] for name, found in proposed.items()}
        union = np.unique(np.concatenate([*keys.values(), np.empty(0, np.int64)]))
        places = {name: np.searchsorted(union, own) for name, own in keys.items()}
        order = np.zeros(len(union), np.float32)
        for name, own in places.items():
            order[own] += scores[name][listed[name]]
        return cls(n_requests, union // size, union % size, order, places)

    @property
    def counts(self) -> IntArray:
        """Candidates per request, [B]."""
        return np.bincount(self.requests, minlength=self.n_requests)

    def best(self, n: int) -> Self:
        """The n best of each request by `order`, ties to the lower row, in row order again."""
        by_order = np.lexsort((self.rows, -self.order, self.requests))
        ranks = np.arange(len(by_order)) - (np.cumsum(self.counts) - self.counts)[self.requests]
        kept = np.sort(by_order[ranks < n])
        moved = np.full(len(self.rows), -1, np.int64)
        moved[kept] = np.arange(len(kept))
        places = {name: moved[own][moved[own] >= 0] for name, own in self.places.items()}
        return replace(
            self, requests=self.requests[kept], rows=self.rows[kept], order=self.order[kept], places=places
        )

    def candidates(self) -> tuple[Candidates, FloatArray]:
        """Padded to the longest: rows [B, C], each source's marks [B, C], and the order [B, C], -inf where empty."""
        counts = self.counts
        columns = np.arange(len(self.rows)) - (np.cumsum(counts) - counts)[self.requests]
        shape = (self.n_requests, int(counts.max(initial=0)))
        rows, order = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
        rows[self.requests, columns], order[self.requests, columns] = self.rows, self.order
        sources = {name: np.zeros(shape, np.bool_) for name in self.places}
        for name, own in self.places.items():
            sources[name][self.requests[own], columns[own]] = True
        return Candidates(item_rows=rows, scores={}, sources=sources), order


def by_rank(proposed: Mapping[str, Proposed]) -> dict[str, FloatArray]:
    """1 / (60 + rank) of every proposed item, source -> [B, n]."""
    return {
        name: np.broadcast_to(1.0 / (RANK_OFFSET + 1 + np.arange(found.rows.shape[1])), found.rows.shape)
        .astype(np.float32)
        for name, found in proposed.items()
    }


def by_weight(
    proposed: Mapping[str, Proposed], weights: Mapping[str, FloatArray], calibration: Calibration
) -> dict[str, FloatArray]:
    """Weight [B] times how many standard deviations an item is above the last that its source proposed, [B, n].

    With weights of the fusion that is close to the fused score: an item that a source did not propose counts as its
    last. Scores of cold items are in standard deviations already.
    """
    scores = {}
    for name, ranks in by_rank(proposed).items():
        found = proposed[name]
        shown = found.rows >= 0
        last = np.where(shown, found.scores, np.inf).min(axis=1, initial=np.inf, keepdims=True)
        above = np.where(shown, found.scores - np.where(shown.any(axis=1, keepdims=True), last, 0.0), 0.0)
        deviation = 1.0 if name == "cold" else calibration.stds.get(name, 1.0)
        scores[name] = (weights[name][:, None] * above / deviation + RANK_SHARE * ranks).astype(np.float32)
    return scores


def source_weights(
    batch: RequestBatch, policy: FusionPolicy, wanted: Mask, by_profile: Mask, sources: list[str]
) -> dict[str, FloatArray]:
    """Source -> [B] how much the fused score of each request weighs it, for the sources `sources`.

    wanted: [B] where a text says what is wanted. by_profile: [B] where the user vector comes from a profile.
    """
    every = plans(batch, policy, wanted, by_profile)
    weights = {name: np.zeros(len(batch), np.float32) for name in sources}
    for request, plan in enumerate(every):
        past = policy.newcomer_weights if plan.newcomer and policy.newcomer_weights else policy.weights
        total = {str(name): plan.past * weight for name, weight in past.items()}
        total["cold"] = plan.past * policy.cold_scale
        for name, weight in plan.everywhere:
            total[name] = total.get(name, 0.0) + weight
        for name in sources:
            weights[name][request] = total.get(name, 0.0)
    return weights
