"""Stored scores -> what the served pipeline would give under any policy: retrieve, merge and rerank without scoring.

Every source's longest list is kept, and the raw scores of whatever any of them proposes; a policy then takes a part of
each list. Lists, merging and fusion are those of `recommend`, so that the figures are the pipeline's own, for requests
for k items by people of the validation split. The test split is not read here.

Shapes: B users, N items, n items of a source's list, C items that any source proposes, P targets, d embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.bundle import Bundle
from llmrec_ray.metrics import ndcg_gains, reciprocal_gains
from llmrec_ray.policy.components import Components
from llmrec_ray.ranking import mask_seen, take_items, top_k
from llmrec_ray.recommend import RequestBatch, Reranker
from llmrec_ray.recommend.merging import by_rank, by_weight, source_weights
from llmrec_ray.recommend.sources import Proposed
from llmrec_ray.signals import CascadeFusion, Fusion, FusionPolicy
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Contest", "Figures", "Simulation", "Targets", "gains_of"]

Mask = NDArray[np.bool_]
FALLBACK = "popularity"
NOT_LISTED = np.iinfo(np.int32).max
MAX_LISTED = 20_000_000
SCORES_AT_ONCE = 4_000_000
UNPUBLISHED = "unpublished"


@dataclass(frozen=True)
class Figures:
    """value: mean of the metric. candidates: how many the reranker must order, mean per request."""

    value: float
    candidates: float


@dataclass(frozen=True)
class Targets:
    """What people really went for. owners: [P] places of the users; rows: [P] items. barred: per user of the
    simulation, items that are no candidates; an owner's own target is one nevertheless."""

    owners: IntArray
    rows: IntArray
    barred: Histories


@dataclass(frozen=True)
class Simulation:
    """users: [B] places in the Components. rows: [B, C] ascending, -1 after the last. raw: signal -> [B, C]. listed:
    source -> its longest list [B, n]; places: where in `rows` that is; ranks: source -> [B, C] places in its list.
    allowed: [B] items that may be shown. k: items that are asked for."""

    bundle: Bundle
    users: IntArray
    seen: Histories
    rows: IntArray
    raw: dict[str, FloatArray]
    listed: dict[str, Proposed]
    places: dict[str, IntArray]
    ranks: dict[str, NDArray[np.int32]]
    allowed: IntArray
    k: int

    @classmethod
    def of(
        cls, bundle: Bundle, components: Components, policy: FusionPolicy, most: Mapping[str, int], k: int,
        hidden: IntArray,
    ) -> Self:
        """For policies that are like `policy` but for weights, scale, merging, and up to `most` items per source.

        hidden: rows of items that nobody is shown. Of too many users some are drawn.
        """
        most = {name: max(n, k) for name, n in {FALLBACK: k, **most}.items()}
        users = _some(len(components.users), MAX_LISTED // sum(most.values()))
        seen = components.seen.select(users)
        listed = {
            name: _list(bundle, components, policy, name, n, users, hidden) for name, n in most.items()
            if name in bundle.signal_names or (name == "cold" and len(bundle.cold) and policy.cold_weights)
        }
        rows, places = _union(listed, len(bundle.items))
        raw = {name: take_items(scores[users], rows) for name, scores in components.raw.items()}
        ranks = {name: _ranks(found, rows.shape) for name, found in places.items()}
        allowed = _count_allowed(seen, hidden, len(bundle.items))
        return cls(bundle, users, seen, rows, raw, listed, places, ranks, allowed, k)

    def totals(self, policy: FusionPolicy, fusion: Fusion | None, members: Mask | None = None) -> FloatArray:
        """Fused scores [B, C], NaN where there is no candidate; `fusion` in place of the Bundle's, unless None."""
        bundle = self.bundle if fusion is None else _fused_by(self.bundle, fusion)
        rows = self.rows if members is None else np.where(members, self.rows, -1)
        reranker, size = Reranker(bundle, policy, UNPUBLISHED), max(1, SCORES_AT_ONCE // max(rows.shape[1], 1))
        parts = []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            raw = {name: scores[part] for name, scores in self.raw.items()}
            parts.append(reranker.score(self.seen.select(part), rows[part], raw))
        return np.concatenate(parts)

    def members(self, policy: FusionPolicy) -> Mask:
        """[B, C] True for what the sources propose and merging keeps."""
        members = np.zeros(self.rows.shape, np.bool_)
        counts = self._counts(policy)
        for name, n in counts.items():
            members |= self.ranks[name] < n
        helped = np.zeros(len(self.rows), np.bool_)
        if FALLBACK not in counts:
            short = members.sum(axis=1) < np.minimum(self.k, self.allowed)
            helped = np.asarray(short | (self.seen.lengths == 0), np.bool_)
            members |= helped[:, None] & (self.ranks[FALLBACK] < self.k)
        if policy.max_candidates is None:
            return members
        order = np.where(members, self._order(policy, counts, helped), -np.inf)
        first = np.argsort(-order, axis=1, kind="stable")[:, : max(policy.max_candidates, self.k)]
        kept = np.zeros_like(members)
        np.put_along_axis(kept, first, True, axis=1)
        return kept & members

    def _counts(self, policy: FusionPolicy) -> dict[str, int]:
        """Source -> how many items it proposes, in the order in which the Retriever asks them."""
        counts = {str(name): n for name, n in policy.candidates.items() if name in self.listed}
        n_cold = counts.pop("cold", 0)
        known = {name: max(n, self.k) for name, n in counts.items()}
        return known | ({"cold": n_cold} if n_cold and policy.cold_scale else {})

    def _order(self, policy: FusionPolicy, counts: Mapping[str, int], helped: Mask) -> FloatArray:
        """[B, C] what the sources say of their items, as the Retriever merges them."""
        found = {name: _first(self.listed[name], n) for name, n in counts.items()}
        if "cold" in found:
            scale = np.float32(policy.cold_scale)
            found["cold"] = Proposed(found["cold"].rows, scale * found["cold"].scores)
        if helped.any():
            popular = _first(self.listed[FALLBACK], self.k)
            found[FALLBACK] = Proposed(np.where(helped[:, None], popular.rows, -1), popular.scores)
        if policy.merge == "reciprocal_rank":
            scores = by_rank(found)
        else:
            nobody = np.zeros(len(self.rows), np.bool_)
            batch = RequestBatch.of_histories(UNPUBLISHED, self.seen, self.k)
            weights = source_weights(batch, policy, nobody, nobody, [*found])
            scores = by_weight(found, weights, self.bundle.calibration)
        order = np.zeros(self.rows.shape, np.float32)
        for name, values in scores.items():
            users, columns = np.nonzero(found[name].rows >= 0)
            order[users, self.places[name][users, columns]] += values[users, columns]
        return order


@dataclass
class Contest:
    """Targets under one fusion with fixed weights: whatever the candidates, the same items stand before a target.

    policy: whose weights and scale those are. fusion: in place of the Bundle's, unless None.
    """

    simulation: Simulation
    policy: FusionPolicy
    fusion: Fusion | None
    targets: Targets
    metric: str

    def figures(self, policy: FusionPolicy) -> Figures:
        """Of a policy with the same weights and scale."""
        members, owners = self.simulation.members(policy), self.targets.owners
        taking_part = members[owners]
        is_listed = (self._places >= 0) & taking_part[np.arange(len(owners)), np.maximum(self._places, 0)]
        before = self._before
        if before is None:
            before = self._compare(self.simulation.totals(self.policy, self.fusion, members))
        gains = gains_of(self.metric, np.where(is_listed, 1.0 + (taking_part & before).sum(axis=1), np.inf))
        return Figures(float(gains.mean()) if len(gains) else 0.0, float(members.sum(axis=1).mean()))

    @cached_property
    def _places(self) -> IntArray:
        """[P] where in its owner's rows each target is, -1 where no source proposes it."""
        found = self.simulation.rows[self.targets.owners] == self.targets.rows[:, None]
        return np.asarray(np.where(found.any(axis=1), found.argmax(axis=1), -1), np.int64)

    @cached_property
    def _before(self) -> Mask | None:
        """The items that stand before each target; None where that depends on the candidates."""
        if isinstance(self.fusion or self.simulation.bundle.fusion, CascadeFusion):
            return None
        return self._compare(self.simulation.totals(self.policy, self.fusion))

    def _compare(self, totals: FloatArray) -> Mask:
        """[P, C] True for the items that stand before a target by fused scores [B, C], ties to the lower row."""
        targets, rows = self.targets, self.simulation.rows
        scores = totals[targets.owners]
        own = scores[np.arange(len(scores)), np.maximum(self._places, 0)][:, None]
        is_lower = np.arange(rows.shape[1]) < self._places[:, None]
        barred = _listed_in(rows, targets.barred)[targets.owners]
        return np.asarray(((scores > own) | ((scores == own) & is_lower)) & ~barred)


def gains_of(metric: str, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each rank's gain by `ndcg@k`, `hr@k` or `mrr@k`; that of an infinite rank is 0."""
    name, _, cut = metric.partition("@")
    k = int(cut)
    if name == "hr":
        return (ranks <= k).astype(np.float64)
    return ndcg_gains(ranks, k) if name == "ndcg" else reciprocal_gains(ranks, k)


def _some(n_users: int, most: int) -> IntArray:
    if n_users <= max(most, 1):
        return np.arange(n_users)
    return np.sort(np.random.default_rng(0).choice(n_users, max(most, 1), replace=False))


def _list(
    bundle: Bundle, components: Components, policy: FusionPolicy, name: str, n: int, users: IntArray, hidden: IntArray
) -> Proposed:
    """What one source proposes at most; of cold items with a scale of 1."""
    n_items = len(bundle.items)
    columns = bundle.cold.rows if name == "cold" else np.arange(n_items)
    rows = np.full((len(users), min(n, len(columns))), -1, np.int64)
    scores = np.full(rows.shape, -np.inf, np.float32)
    size = max(1, SCORES_AT_ONCE // n_items)
    for start in range(0, len(users), size):
        some = users[start : start + size]
        seen = components.seen.select(some)
        known = _blended(bundle, components, policy, some) if name == "cold" else components.raw[name][some]
        known[_marks(seen, n_items, hidden)[:, columns]] = -np.inf
        places, best = top_k(known, n)
        rows[start : start + size] = np.where(places >= 0, columns[np.maximum(places, 0)], -1)
        scores[start : start + size] = best
    return Proposed(rows, scores)


def _blended(bundle: Bundle, components: Components, policy: FusionPolicy, users: IntArray) -> FloatArray:
    seen = components.seen.select(users)
    scores = bundle.blend_cold(seen, components.vectors[users], policy.model_copy(update={"cold_scale": 1.0})).copy()
    scores[seen.lengths == 0] = -np.inf
    return scores


def _marks(seen: Histories, n_items: int, hidden: IntArray) -> Mask:
    """[B, N] True for what may not be shown."""
    marks = np.isneginf(mask_seen(np.zeros((len(seen), n_items), np.float32), seen))
    marks[:, hidden] = True
    return np.asarray(marks)


def _count_allowed(seen: Histories, hidden: IntArray, n_items: int) -> IntArray:
    """[B] items that are neither seen nor hidden."""
    cells = np.unique(np.repeat(np.arange(len(seen)), seen.lengths) * n_items + seen.item_rows)
    cells = cells[~np.isin(cells % n_items, hidden)]
    return np.asarray(n_items - len(hidden) - np.bincount(cells // n_items, minlength=len(seen)), np.int64)


def _union(listed: Mapping[str, Proposed], n_items: int) -> tuple[IntArray, dict[str, IntArray]]:
    """All rows of each user, ascending, [B, C], -1 after the last; and where in them each list's rows are, [B, n]."""
    n_users = len(next(iter(listed.values())).rows)
    owners = np.arange(n_users)[:, None] * n_items
    keys = {name: (owners + found.rows)[found.rows >= 0] for name, found in listed.items()}
    union = np.unique(np.concatenate([*keys.values()]))
    counts = np.bincount(union // n_items, minlength=n_users)
    columns = np.arange(len(union)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((n_users, int(counts.max(initial=0))), -1, np.int64)
    rows[union // n_items, columns] = union % n_items
    places = {}
    for name, found in listed.items():
        places[name] = np.full(found.rows.shape, -1, np.int64)
        places[name][found.rows >= 0] = columns[np.searchsorted(union, keys[name])]
    return rows, places


def _ranks(places: IntArray, shape: tuple[int, ...]) -> NDArray[np.int32]:
    ranks = np.full(shape, NOT_LISTED, np.int32)
    users, columns = np.nonzero(places >= 0)
    ranks[users, places[users, columns]] = columns
    return ranks


def _fused_by(bundle: Bundle, fusion: Fusion) -> Bundle:
    other = copy.copy(bundle)
    other.fusion = fusion
    return other


def _first(found: Proposed, n: int) -> Proposed:
    return Proposed(found.rows[:, :n], found.scores[:, :n])


def _listed_in(rows: IntArray, items: Histories) -> Mask:
    """[B, C] True for the rows that are among each user's items."""
    if not len(items.item_rows):
        return np.zeros(rows.shape, np.bool_)
    size = max(int(items.item_rows.max()), int(rows.max(initial=0))) + 1
    owners = np.repeat(np.arange(len(items)), items.lengths)
    keys = np.arange(len(rows))[:, None] * size + rows
    return np.asarray(np.isin(keys, owners * size + items.item_rows) & (rows >= 0))
