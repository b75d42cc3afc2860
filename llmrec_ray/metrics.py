"""From the rank of one held-out item per user to the usual figures of ranking quality.

Ranks are float64 [B], 1 is best; half ranks come from ties. With one relevant item per user, recall equals
the hit rate, and every mean here is a mean over users. This module does not know how the ranks were made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "auc",
    "coverage",
    "f1",
    "hit_rate",
    "mrr",
    "ndcg",
    "ndcg_gains",
    "paired_difference",
    "precision",
    "recall",
    "summarise",
]

Ranks = NDArray[np.float64]
NORMAL_95 = 1.96


def hit_rate(ranks: Ranks, k: int) -> float:
    """Share of users whose item is among the first k."""
    return float(np.mean(ranks <= k))


def ndcg_gains(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """Each user's normalised discounted cumulative gain, [B] float64: 1 / log2(rank + 1) within k, else 0."""
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def ndcg(ranks: Ranks, k: int) -> float:
    """Mean normalised discounted cumulative gain (Järvelin and Kekäläinen 2002)."""
    return float(np.mean(ndcg_gains(ranks, k)))


def mrr(ranks: Ranks, k: int) -> float:
    """Mean of 1 / rank within k, else 0."""
    return float(np.mean(np.where(ranks <= k, 1.0 / ranks, 0.0)))


def recall(ranks: Ranks, k: int) -> float:
    """Share of the relevant items among the first k; the hit rate, as there is one per user."""
    return hit_rate(ranks, k)


def precision(ranks: Ranks, k: int) -> float:
    """Share of the first k that is relevant; at most 1 / k."""
    return hit_rate(ranks, k) / k


def f1(ranks: Ranks, k: int) -> float:
    """Mean over users of the harmonic mean of precision and recall: 2 / (k + 1) for a hit, else 0."""
    return 2.0 * hit_rate(ranks, k) / (k + 1)


def auc(ranks: Ranks, n_candidates: NDArray[np.int64]) -> float:
    """Mean area under the ROC curve: the share of the n_candidates [B] - 1 other items below the target."""
    others = np.maximum(n_candidates - 1, 1)
    return float(np.mean((n_candidates - ranks) / others))


def coverage(lists: NDArray[np.int64], n_items: int) -> float:
    """Share of the catalogue that appears in at least one list of rows [B, k]; -1 is an empty place."""
    return len(np.unique(lists[lists >= 0])) / n_items


def summarise(
    ranks: Ranks, ks: Sequence[int], n_candidates: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """All figures at every k as `{"ndcg@10": …, "hr@10": …}`, and `auc` when n_candidates [B] is given."""
    figures = {"ndcg": ndcg, "hr": hit_rate, "mrr": mrr, "recall": recall, "precision": precision, "f1": f1}
    summary = {f"{name}@{k}": figure(ranks, k) for k in ks for name, figure in figures.items()}
    if n_candidates is not None:
        summary["auc"] = auc(ranks, n_candidates)
    return summary


def paired_difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> dict[str, float]:
    """Mean of ours [B] - theirs [B] over the same users, and its 95 % interval (normal approximation)."""
    difference = ours - theirs
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    margin = NORMAL_95 * error
    return {"mean": mean, "low": mean - margin, "high": mean + margin}
