"""Candidates -> the final order: every signal scores every candidate, calibrated, weighted and summed.

Scores that a source has computed already come with the candidates and are not computed again. Why an item stands
where it does is worked out for the requests that ask, and sent for these alone.

Shapes: B requests, C candidates, K = longest list asked for, E = requests to be explained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.bundle import Bundle
from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.batch import Because, Ranked, RequestBatch, Retrieved
from llmrec_ray.recommend.because import nearest_of_history
from llmrec_ray.recommend.weights import Plan, plans
from llmrec_ray.signals import Fusion, FusionPolicy, Given, WeightedFusion, fuse
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Reranker"]

Scalar = TypeVar("Scalar", bound=np.generic)
BLENDED = "cold"
"""Name of the scores of cold items that come with the candidates: `Bundle.blend_cold`, not a raw signal."""


class Reranker:
    """Holds the signals, their calibration and the fusion policy."""

    def __init__(self, bundle: Bundle, policy: FusionPolicy, release_id: str) -> None:
        self._bundle = bundle
        self._policy = policy
        self._release_id = release_id

    def rerank(self, batch: RequestBatch, retrieved: Retrieved) -> Ranked:
        """Order each request's candidates and keep its k best; ties go to the lower row."""
        batch.check_release(self._release_id)
        start = perf_counter()
        candidates = retrieved.candidates
        total, shares = self._fused(batch, retrieved)
        places, scores = top_k(np.where(candidates.mask, total, -np.inf), int(batch.k.max(initial=0)))
        beyond = np.arange(places.shape[1]) >= batch.k[:, None]
        places, scores = np.where(beyond, -1, places), np.where(beyond, -np.inf, scores).astype(np.float32)
        item_rows = _at(candidates.item_rows, places, -1)
        explained = np.flatnonzero(batch.explain)
        return Ranked(
            item_rows=item_rows,
            scores=scores,
            shares={name: _at(share, places[explained], 0.0) for name, share in shares.items()},
            sources=_sources(retrieved, explained, places),
            timings_ms={**retrieved.timings_ms, "rerank": (perf_counter() - start) * 1000},
            explained=explained,
            because=self._because(batch.histories, explained, item_rows),
            degraded=retrieved.degraded,
        )

    def score(
        self, histories: Histories, item_rows: IntArray, raw: Mapping[str, FloatArray] | None = None
    ) -> FloatArray:
        """Fused scores [B, C] float32 of given items, NaN where the row is -1.

        The same numbers that order the answer of a request without texts and weights of its own. raw: scores [B, C] of
        signals that have scored these items already.
        """
        users, nobody = self._bundle.user_vectors(histories), np.zeros(len(histories), np.bool_)
        every = plans(RequestBatch.of_histories(self._release_id, histories, 1), self._policy, nobody, nobody)
        total = np.zeros(item_rows.shape, np.float32)
        for plan, _, some in _alike(every, nobody):
            scores = {name: values[some] for name, values in (raw or {}).items()}
            part = _Part(histories.select(some), item_rows[some], users[some], None, scores)
            total[some], _ = self._planned(plan, part)
        return np.where(item_rows >= 0, total, np.nan).astype(np.float32)

    def _fused(self, batch: RequestBatch, retrieved: Retrieved) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Total [B, C], and every signal's share of it [E, C]; requests that are scored alike are scored together."""
        rows, text = retrieved.candidates.item_rows, retrieved.text
        wanted = np.zeros(len(batch), np.bool_) if text is None else np.asarray(text.any(axis=1), np.bool_)
        every = plans(batch, self._policy, wanted, retrieved.by_profile)
        total, shares = np.zeros(rows.shape, np.float32), dict[str, FloatArray]()
        asked = np.cumsum(batch.explain) - 1
        if batch.explain.any():
            empty = (int(batch.explain.sum()), rows.shape[1])
            shares = {name: np.zeros(empty, np.float32) for name in self._bundle.signal_names}
        for plan, explain, some in _alike(every, batch.explain):
            part = _Part.of(batch.histories, retrieved, some, with_blended=not explain)
            total[some], parts = self._planned(plan, part)
            for name, share in parts.items() if explain else ():
                shares.setdefault(name, np.zeros(empty, np.float32))[asked[some]] = share
        return total, shares

    def _planned(self, plan: Plan, part: _Part) -> tuple[FloatArray, dict[str, FloatArray]]:
        total, shares = np.zeros(part.item_rows.shape, np.float32), dict[str, FloatArray]()
        if plan.past:
            past, parts = self._past(part, newcomer=plan.newcomer)
            total += np.float32(plan.past) * past
            _add(shares, parts, plan.past)
        if plan.everywhere:
            weights = {name: weight for name, weight in plan.everywhere if name in self._bundle.signal_names}
            rest, parts = fuse(self._raw(part, part.item_rows, weights), self._bundle.calibration, weights)
            total += rest
            _add(shares, parts, 1.0)
        return total, shares

    def _past(self, part: _Part, *, newcomer: bool) -> tuple[FloatArray, dict[str, FloatArray]]:
        """The fused score of the history: known items by the fusion, for which cold ones are empty places, and cold
        ones by weights of their own."""
        fusion, cold = self._fusion(newcomer=newcomer), self._bundle.cold.are(part.item_rows)
        known = np.where(cold, -1, part.item_rows)
        total, shares = fusion.fuse(
            self._raw(part, known, fusion.signals), Given(part.histories, known, part.users)
        )
        if not cold.any():
            return total, shares
        if BLENDED in part.scores:
            return np.where(cold, part.scores[BLENDED], total).astype(np.float32), shares
        more, parts = self._bundle.fuse_cold(part.histories, part.users, part.item_rows, self._policy)
        _add(shares, parts, 1.0)
        return (total + more).astype(np.float32), shares

    def _raw(self, part: _Part, item_rows: IntArray, names: Collection[str]) -> dict[str, FloatArray]:
        """Raw scores [B, C] by signal, NaN where item_rows is -1: those that came along, and the others."""
        missing = [name for name in names if name not in part.scores]
        raw = self._bundle.score_items(part.histories, item_rows, part.users, part.text, missing) if missing else {}
        for name in names:
            if name in part.scores:
                raw[name] = np.where(item_rows < 0, np.float32(np.nan), part.scores[name])
        return raw

    def _fusion(self, *, newcomer: bool) -> Fusion:
        """That of the Bundle's mode; the policy's weights for `late` and `feature`, and for short histories."""
        few = self._policy.newcomer_weights if newcomer else {}
        if self._bundle.fusion is not None and not few:
            return self._bundle.fusion
        weights = {str(name): weight for name, weight in (few or self._policy.weights).items()}
        return WeightedFusion(self._bundle.calibration, weights)

    def _because(self, histories: Histories, explained: IntArray, item_rows: IntArray) -> Because | None:
        if not len(explained):
            return None
        return nearest_of_history(self._bundle.item_vectors, histories.select(explained), item_rows[explained])


@dataclass(frozen=True)
class _Part:
    """Some requests of a batch, their candidates, and the raw scores that came with these."""

    histories: Histories
    item_rows: IntArray
    users: FloatArray
    text: FloatArray | None
    scores: Mapping[str, FloatArray]

    @classmethod
    def of(cls, histories: Histories, retrieved: Retrieved, some: IntArray, *, with_blended: bool) -> Self:
        """Those at the places `some`. The blended scores of cold items cannot be told apart by signal again, so that
        requests to be explained go without them."""
        rows, text = retrieved.candidates.item_rows, retrieved.text
        scores = {name: raw for name, raw in retrieved.candidates.scores.items() if with_blended or name != BLENDED}
        if len(some) == len(rows):
            return cls(histories, rows, retrieved.users, text, scores)
        return cls(
            histories.select(some), rows[some], retrieved.users[some], None if text is None else text[some],
            {name: values[some] for name, values in scores.items()},
        )


def _alike(every: Sequence[Plan], explain: NDArray[np.bool_]) -> Iterator[tuple[Plan, bool, IntArray]]:
    """Each plan and whether to explain it, with the places of the requests that have both."""
    places: dict[tuple[Plan, bool], list[int]] = {}
    for place, key in enumerate(zip(every, explain.tolist(), strict=True)):
        places.setdefault(key, []).append(place)
    return ((plan, asked, np.array(some, np.int64)) for (plan, asked), some in places.items())


def _add(shares: dict[str, FloatArray], parts: Mapping[str, FloatArray], factor: float) -> None:
    for name, part in parts.items():
        scaled = (np.float32(factor) * part).astype(np.float32)
        shares[name] = shares[name] + scaled if name in shares else scaled


def _sources(retrieved: Retrieved, explained: IntArray, places: IntArray) -> dict[str, NDArray[np.bool_]]:
    if not len(explained):
        return {}
    sources = retrieved.candidates.sources
    return {name: _at(marks[explained], places[explained], False) for name, marks in sources.items()}


def _at(values: NDArray[Scalar], places: IntArray, empty: float) -> NDArray[Scalar]:
    """values [B, C] at places [B, K <= C]; `empty` where the place is -1."""
    taken = np.take_along_axis(values, np.maximum(places, 0), axis=1)
    taken[places < 0] = empty
    return taken
