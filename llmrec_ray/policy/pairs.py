"""Calibrated scores and targets -> the items that could outrank each target, so that a weighting is judged quickly.

Weights are never negative: an item that scores lower than the target by every signal never outranks it, one that scores
higher by every signal always does. What is left is kept as differences, and many weightings are tried by one product.
It does not know which weightings are worth trying. Shapes: B users, N items, P pairs, S signals, T weightings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.metrics import ndcg_gains
from llmrec_ray.ranking import mask_seen
from llmrec_ray.signals import Calibration
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["MAX_K", "Pairs", "centred"]

MAX_K = 20
"""Up to this cut-off gains are right; a target that has as many items above it for certain is not looked at."""
SCORES_AT_ONCE = 2_000_000
PRODUCTS_AT_ONCE = 8_000_000
FAR = 1e30  # finite, so that a weight of 0 still makes 0 of it


@dataclass(frozen=True)
class Pairs:
    """users: [B'] places of the users in the arrays given. above: [B'] items that always outrank the target. counts:
    [B'] pairs of each. differences: [S, P] float32, how much the item of a pair is above the target by each signal."""

    names: tuple[str, ...]
    users: IntArray
    above: IntArray
    counts: IntArray
    differences: FloatArray

    @classmethod
    def of(
        cls, scores: Mapping[str, FloatArray], targets: IntArray, seen: Histories, calibration: Calibration,
        users: IntArray | None = None, *, most: int | None = None,
    ) -> Self:
        """From raw scores [B, N], targets [B] and items seen before; of the users at the places `users`, in this order,
        only as many as give about `most` pairs, but one at least."""
        names = tuple(sorted(scores))
        users = np.arange(len(targets)) if users is None else users
        size = max(1, SCORES_AT_ONCE // max(scores[names[0]].shape[1], 1))
        parts, kept = list[_Part](), 0
        for start in range(0, len(users), size):
            some = users[start : start + size]
            raw = {name: centred(calibration, name, scores[name][some]) for name in names}
            parts.append(_compare([raw[name] for name in names], targets[some], seen.select(some)))
            kept += int(parts[-1].counts.sum())
            if most is not None and kept >= most:
                break
        above, counts = (np.concatenate([getattr(part, name) for part in parts]) for name in ("above", "counts"))
        differences = np.concatenate([part.differences for part in parts], axis=1)
        return cls(names, users[: len(above)], above, counts, differences)

    def gains(self, weightings: Sequence[Mapping[str, float]], k: int) -> NDArray[np.float64]:
        """NDCG@k of every user under every weighting, [T, B'] float64, ties counted half; k at most MAX_K."""
        assert k <= MAX_K, f"NDCG@{k} of pairs that are kept for NDCG@{MAX_K}. This is a bug."
        weights = np.array([[each.get(name, 0.0) for name in self.names] for each in weightings], np.float32)
        ranks = np.tile(1.0 + self.above, (len(weightings), 1))
        busy = self.counts > 0
        if not busy.any():
            return ndcg_gains(ranks, k)
        starts = (np.cumsum(self.counts) - self.counts)[busy]
        size = max(1, PRODUCTS_AT_ONCE // self.differences.shape[1])
        for start in range(0, len(weightings), size):
            signs = np.sign(weights[start : start + size] @ self.differences)
            ranks[start : start + size, busy] += (np.add.reduceat(signs, starts, axis=1) + self.counts[busy]) / 2
        return ndcg_gains(ranks, k)


def centred(calibration: Calibration, name: str, raw: FloatArray) -> FloatArray:
    """Calibrated scores in which no opinion (NaN) counts as the mean, and nothing is infinite."""
    return np.nan_to_num(calibration.apply(name, raw), nan=0.0, posinf=FAR, neginf=-FAR)


@dataclass(frozen=True)
class _Part:
    above: IntArray
    counts: IntArray
    differences: FloatArray


def _compare(scores: list[FloatArray], targets: IntArray, seen: Histories) -> _Part:
    """`scores` [S] of [B, N]."""
    users = np.arange(len(targets))
    open_items = mask_seen(np.zeros(scores[0].shape, np.float32), seen) == 0
    is_open = open_items[users, targets]
    open_items[users, targets] = False
    higher, lower = open_items.copy(), open_items.copy()
    for values in scores:
        own = values[users, targets][:, None]
        higher &= values > own
        lower &= values < own
    above = np.where(is_open, higher.sum(axis=1), open_items.sum(axis=1))
    kept = open_items & ~higher & ~lower & (is_open & (above < MAX_K))[:, None]
    differences = [(values - values[users, targets][:, None])[kept] for values in scores]
    return _Part(above.astype(np.int64), kept.sum(axis=1).astype(np.int64), np.stack(differences))
