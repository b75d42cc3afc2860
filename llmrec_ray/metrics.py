"""From the rank of one held-out item per user, and from the lists users get, to the usual figures of quality.

Ranks are float64 [B], 1 is best; half ranks come from ties. With one relevant item per user, recall equals
the hit rate, and every mean here is a mean over users. Figures of whole lists come from sums that add up over
batches of users, see `ListSums`. This module does not know how the ranks and lists were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Difference",
    "ListSums",
    "auc",
    "bootstrap",
    "coverage",
    "f1",
    "gini",
    "hit_rate",
    "mrr",
    "ndcg",
    "ndcg_gains",
    "paired_bootstrap",
    "paired_difference",
    "precision",
    "recall",
    "reciprocal_gains",
    "self_information",
    "summarise",
]

Ranks = NDArray[np.float64]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
RESAMPLES = 2000
CONFIDENCE = 0.95
MAX_DRAWS_AT_ONCE = 4_000_000
SIMILARITY_UNIT = 2.0**-32


def hit_rate(ranks: Ranks, k: int) -> float:
    """Share of users whose item is among the first k."""
    return float(np.mean(ranks <= k))


def ndcg_gains(ranks: Ranks, k: int) -> Floats:
    """Each user's normalised discounted cumulative gain, [B] float64: 1 / log2(rank + 1) within k, else 0."""
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def ndcg(ranks: Ranks, k: int) -> float:
    """Mean normalised discounted cumulative gain (Järvelin and Kekäläinen 2002)."""
    return float(np.mean(ndcg_gains(ranks, k)))


def reciprocal_gains(ranks: Ranks, k: int) -> Floats:
    """Each user's reciprocal rank, [B] float64: 1 / rank within k, else 0."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def mrr(ranks: Ranks, k: int) -> float:
    """Mean of 1 / rank within k, else 0."""
    return float(np.mean(reciprocal_gains(ranks, k)))


def recall(ranks: Ranks, k: int) -> float:
    """Share of the relevant items among the first k; the hit rate, as there is one per user."""
    return hit_rate(ranks, k)


def precision(ranks: Ranks, k: int) -> float:
    """Share of the first k that is relevant; at most 1 / k."""
    return hit_rate(ranks, k) / k


def f1(ranks: Ranks, k: int) -> float:
    """Mean over users of the harmonic mean of precision and recall: 2 / (k + 1) for a hit, else 0."""
    return 2.0 * hit_rate(ranks, k) / (k + 1)


def auc(ranks: Ranks, n_candidates: Counts) -> float:
    """Mean area under the ROC curve: the share of the n_candidates [B] - 1 other items below the target."""
    others = np.maximum(n_candidates - 1, 1)
    return float(np.mean((n_candidates - ranks) / others))


def summarise(ranks: Ranks, ks: Sequence[int], n_candidates: Counts | None = None) -> dict[str, float]:
    """All figures at every k as `{"ndcg@10": …, "hr@10": …}`, and `auc` when n_candidates [B] is given.

    A k above the number of candidates counts every ranked item as found.
    """
    figures = {"ndcg": ndcg, "hr": hit_rate, "mrr": mrr, "recall": recall, "precision": precision, "f1": f1}
    summary = {f"{name}@{k}": figure(ranks, k) for k in ks for name, figure in figures.items()}
    if n_candidates is not None:
        summary["auc"] = auc(ranks, n_candidates)
    return summary


def coverage(lists: Counts, n_items: int) -> float:
    """Share of the catalogue that appears in at least one list of rows [B, k]; -1 is an empty place."""
    return ListSums.of(lists, n_items).coverage


@dataclass(frozen=True)
class ListSums:
    """What lists of recommendations hold, as sums that add up over batches of users, in any order.

    exposure: [N] int64, in how many lists each item stands. lists: lists with at least two items that have
    vectors to compare. similarity: sum over these lists of the mean cosine of their pairs, in units of
    SIMILARITY_UNIT: whole numbers add up to the same sum in any order.
    """

    exposure: Counts
    lists: int = 0
    similarity: int = 0

    @classmethod
    def of(cls, lists: Counts, n_items: int, vectors: NDArray[np.float32] | None = None) -> ListSums:
        """Of rows [B, k], -1 an empty place. vectors: [N, d] of any length; a zero vector is like nothing."""
        exposure = np.bincount(lists[lists >= 0], minlength=n_items).astype(np.int64)
        if vectors is None:
            return cls(exposure)
        pairs, similarity = _mean_cosines(lists, vectors)
        units = np.rint(similarity[pairs > 0] / SIMILARITY_UNIT).astype(np.int64)
        return cls(exposure, int((pairs > 0).sum()), int(units.sum()))

    def __add__(self, other: ListSums) -> ListSums:
        return ListSums(
            self.exposure + other.exposure, self.lists + other.lists, self.similarity + other.similarity
        )

    @property
    def coverage(self) -> float:
        """Share of the catalogue that stands in at least one list."""
        return float(np.mean(self.exposure > 0))

    @property
    def gini(self) -> float:
        """How unequally places are shared out among the catalogue, see `gini`."""
        return gini(self.exposure)

    def novelty(self, popularity: Counts, n_users: int) -> float:
        """Mean `self_information` in bits over all listed places (Zhou et al. 2010); 0 when nothing is listed."""
        places = self.exposure.sum()
        return float(self.exposure @ self_information(popularity, n_users) / places) if places else 0.0

    @property
    def diversity(self) -> float | None:
        """1 - mean cosine of a list's pairs, averaged over the lists (Ziegler et al. 2005); None without vectors."""
        return 1.0 - self.similarity * SIMILARITY_UNIT / self.lists if self.lists else None

    def figures(self, k: int, popularity: Counts, n_users: int) -> dict[str, float]:
        """`coverage@k`, `gini@k`, `novelty@k`, and `diversity@k` where it is known; k names the lists' length.

        popularity: [N] int64, train events of each item. n_users: users of train.
        """
        figures = {
            f"coverage@{k}": self.coverage,
            f"gini@{k}": self.gini,
            f"novelty@{k}": self.novelty(popularity, n_users),
        }
        return figures if self.diversity is None else figures | {f"diversity@{k}": self.diversity}


def gini(counts: Counts) -> float:
    """Gini coefficient of counts [N]: 0 when all are equal, (N - 1) / N when one item has them all; 0 of zeros."""
    ordered = np.sort(counts).astype(np.float64)
    n, total = len(ordered), ordered.sum()
    if total == 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def self_information(popularity: Counts, n_users: int) -> Floats:
    """-log2(count / n_users) of each item, [N] float64 bits; an item nobody has counts as if one user had it."""
    return -np.log2(np.maximum(popularity, 1).astype(np.float64) / max(n_users, 1))


@dataclass(frozen=True)
class Difference:
    """A mean and its interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    ours: Floats, theirs: Floats, users: Counts | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean of ours [U] - theirs [U] over the same users, and its 95 % interval, see `bootstrap`.

    Either may be [S, U], the gains of S runs that differ in nothing but the seed: they are averaged per user first,
    so that the interval is about users, whatever the number of runs.
    """
    return bootstrap(_over_runs(ours) - _over_runs(theirs), users, resamples=resamples, seed=seed)


def paired_difference(ours: Floats, theirs: Floats) -> dict[str, float]:
    """`paired_bootstrap` as a dictionary of mean, low and high."""
    difference = paired_bootstrap(ours, theirs)
    return {"mean": difference.mean, "low": difference.low, "high": difference.high}


def bootstrap(
    values: Floats, users: Counts | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean of values [U] and its 95 % percentile interval over users drawn with replacement (Efron 1979).

    users: [U] int64 of who each value is of, when one user has several; then users are drawn with all of theirs.
    Users with the same values are drawn together, by a multinomial of how often each distinct value occurs: the
    same distribution as drawing one by one, at a cost that does not grow with the number of users. The order of
    users has no influence. Fewer than two users have no interval: low and high equal the mean.
    """
    sums, sizes = _per_user(values, users)
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Difference(mean, mean, mean)
    distinct, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    means = _resampled_means(distinct, counts, resamples, np.random.default_rng(seed))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(mean, float(low), float(high))


def _mean_cosines(lists: Counts, vectors: NDArray[np.float32]) -> tuple[Counts, Floats]:
    """Pairs of items that have vectors, per list, and their mean cosine: from the norm of the sum, not pair by pair."""
    unit = vectors[np.maximum(lists, 0)]
    norms = np.linalg.norm(unit, axis=2, keepdims=True)
    usable = (lists >= 0)[:, :, None] & (norms > 0)
    unit *= np.where(usable, 1 / np.where(usable, norms, 1), 0)
    n = usable.sum(axis=(1, 2))
    pairs = n * (n - 1)
    similarity = np.square(unit.sum(axis=1, dtype=np.float64)).sum(axis=1) - n
    return pairs, similarity / np.maximum(pairs, 1)


def _over_runs(gains: Floats) -> Floats:
    return gains.mean(axis=0) if gains.ndim == 2 else gains


def _per_user(values: Floats, users: Counts | None) -> tuple[Floats, Floats]:
    if users is None:
        return values, np.ones_like(values)
    _, places = np.unique(users, return_inverse=True)
    return np.bincount(places, values).astype(np.float64), np.bincount(places).astype(np.float64)


def _resampled_means(
    distinct: Floats, counts: Counts, resamples: int, generator: np.random.Generator
) -> Floats:
    """[resamples] means of as many users as there are, drawn with replacement from distinct [D, 2] (sum, size)."""
    n_users = int(counts.sum())
    chunk = max(1, MAX_DRAWS_AT_ONCE // len(distinct))
    means = []
    for start in range(0, resamples, chunk):
        drawn = generator.multinomial(n_users, counts / n_users, size=min(chunk, resamples - start))
        sums, sizes = (drawn @ distinct).T
        means.append(sums / sizes)
    return np.concatenate(means)
