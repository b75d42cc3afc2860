"""Candidates -> the final order: every signal scores every candidate, calibrated, weighted and summed.

Shapes: B requests, C candidates, K = longest list asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.bundle import Bundle
from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.batch import Ranked, RequestBatch, Retrieved
from llmrec_ray.recommend.weights import Plan, plans
from llmrec_ray.signals import Fusion, FusionPolicy, Given, WeightedFusion, fuse
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Reranker"]

Scalar = TypeVar("Scalar", bound=np.generic)


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
        return Ranked(
            item_rows=_at(candidates.item_rows, places, -1),
            scores=scores,
            shares={name: _at(share, places, 0.0) for name, share in shares.items()},
            sources={name: _at(marks, places, False) for name, marks in candidates.sources.items()},
            timings_ms={**retrieved.timings_ms, "rerank": (perf_counter() - start) * 1000},
        )

    def score(self, histories: Histories, item_rows: IntArray) -> FloatArray:
        """Fused scores [B, C] float32 of given items, NaN where the row is -1.

        The same numbers that order the answer of a request without texts and weights of its own.
        """
        users, nobody = self._bundle.user_vectors(histories), np.zeros(len(histories), np.bool_)
        every = plans(RequestBatch.of_histories(self._release_id, histories, 1), self._policy, nobody, nobody)
        total = np.zeros(item_rows.shape, np.float32)
        for plan in dict.fromkeys(every):
            some = np.flatnonzero([one == plan for one in every])
            total[some], _ = self._planned(plan, _Part(histories.select(some), item_rows[some], users[some], None))
        return np.where(item_rows >= 0, total, np.nan).astype(np.float32)

    def _fused(self, batch: RequestBatch, retrieved: Retrieved) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Total [B, C] and every signal's share of it; requests that are scored alike are scored together."""
        rows = retrieved.candidates.item_rows
        text = retrieved.text
        wanted = np.zeros(len(batch), np.bool_) if text is None else np.asarray(text.any(axis=1), np.bool_)
        every = plans(batch, self._policy, wanted, retrieved.by_profile)
        total = np.zeros(rows.shape, np.float32)
        shares = {name: np.zeros(rows.shape, np.float32) for name in self._bundle.signal_names}
        for plan in dict.fromkeys(every):
            users = np.array([one == plan for one in every])
            part = _Part.of(batch.histories, retrieved, users)
            total[users], parts = self._planned(plan, part)
            for name, share in parts.items():
                shares.setdefault(name, np.zeros(rows.shape, np.float32))[users] = share
        return total, shares

    def _planned(self, plan: Plan, part: _Part) -> tuple[FloatArray, dict[str, FloatArray]]:
        total, shares = np.zeros(part.item_rows.shape, np.float32), dict[str, FloatArray]()
        if plan.past:
            past, parts = self._past(part.histories, part.item_rows, part.users, part.text, newcomer=plan.newcomer)
            total += np.float32(plan.past) * past
            _add(shares, parts, plan.past)
        if plan.everywhere:
            weights = {name: weight for name, weight in plan.everywhere if name in self._bundle.signal_names}
            raw = self._bundle.score_items(part.histories, part.item_rows, part.users, part.text, weights)
            rest, parts = fuse(raw, self._bundle.calibration, weights)
            total += rest
            _add(shares, parts, 1.0)
        return total, shares

    def _past(
        self, histories: Histories, item_rows: IntArray, users: FloatArray, text: FloatArray | None, *, newcomer: bool
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """The fused score of the history: known items by the fusion, for which cold ones are empty places, and cold
        ones by weights of their own."""
        fusion, cold = self._fusion(newcomer=newcomer), self._bundle.cold.are(item_rows)
        known = np.where(cold, -1, item_rows)
        raw = self._bundle.score_items(histories, known, users, text, fusion.signals)
        total, shares = fusion.fuse(raw, Given(histories, known, users))
        if not cold.any():
            return total, shares
        more, parts = self._bundle.fuse_cold(histories, users, item_rows, self._policy)
        _add(shares, parts, 1.0)
        return (total + more).astype(np.float32), shares

    def _fusion(self, *, newcomer: bool) -> Fusion:
        """That of the Bundle's mode; the policy's weights for `late` and `feature`, and for short histories."""
        few = self._policy.newcomer_weights if newcomer else {}
        if self._bundle.fusion is not None and not few:
            return self._bundle.fusion
        weights = {str(name): weight for name, weight in (few or self._policy.weights).items()}
        return WeightedFusion(self._bundle.calibration, weights)


@dataclass(frozen=True)
class _Part:
    """Some requests of a batch and their candidates."""

    histories: Histories
    item_rows: IntArray
    users: FloatArray
    text: FloatArray | None

    @classmethod
    def of(cls, histories: Histories, retrieved: Retrieved, users: NDArray[np.bool_]) -> Self:
        """Those where `users` [B] is True."""
        rows, text = retrieved.candidates.item_rows, retrieved.text
        if users.all():
            return cls(histories, rows, retrieved.users, text)
        return cls(
            histories.select(np.flatnonzero(users)), rows[users], retrieved.users[users],
            None if text is None else text[users],
        )


def _add(shares: dict[str, FloatArray], parts: Mapping[str, FloatArray], factor: float) -> None:
    for name, part in parts.items():
        scaled = (np.float32(factor) * part).astype(np.float32)
        shares[name] = shares[name] + scaled if name in shares else scaled


def _at(values: NDArray[Scalar], places: IntArray, empty: float) -> NDArray[Scalar]:
    """values [B, C] at places [B, K <= C]; `empty` where the place is -1."""
    taken = np.take_along_axis(values, np.maximum(places, 0), axis=1)
    taken[places < 0] = empty
    return taken
