"""Candidates -> the final order: every signal scores every candidate, calibrated, weighted and summed.

Shapes: B requests, C candidates, K = longest list asked for.
"""

from __future__ import annotations

from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.bundle import Bundle
from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.batch import Ranked, RequestBatch, Retrieved
from llmrec_ray.recommend.weights import request_weights
from llmrec_ray.signals import FusionPolicy, fuse
from llmrec_ray.types import FloatArray, IntArray

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

    def _fused(self, batch: RequestBatch, retrieved: Retrieved) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Total [B, C] and every signal's share of it; requests with the same weights are fused together."""
        rows = retrieved.candidates.item_rows
        weights = request_weights(batch, self._policy)
        used = {name for each in weights for name, weight in each.items() if weight}
        raw = self._bundle.score_items(batch.histories, rows, retrieved.users, retrieved.text, used)
        total = np.zeros(rows.shape, np.float32)
        shares = {name: np.zeros(rows.shape, np.float32) for name in self._bundle.signal_names}
        for group in {tuple(sorted(each.items())) for each in weights}:
            users = np.array([tuple(sorted(each.items())) == group for each in weights])
            usable = {name: weight for name, weight in group if name in raw}
            chosen = {name: scores[users] for name, scores in raw.items()}
            total[users], parts = fuse(chosen, self._bundle.calibration, usable)
            for name, part in parts.items():
                shares[name][users] = part
        return total, shares


def _at(values: NDArray[Scalar], places: IntArray, empty: float) -> NDArray[Scalar]:
    """values [B, C] at places [B, K <= C]; `empty` where the place is -1."""
    taken = np.take_along_axis(values, np.maximum(places, 0), axis=1)
    taken[places < 0] = empty
    return taken
