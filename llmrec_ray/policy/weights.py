"""Raw scores of the signals and held-out items -> the weights of late fusion, and what other weights would give.

The scores are stored: nothing is trained and nothing is scored here. Shapes: B users, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from llmrec_ray.policy.pairs import Pairs
from llmrec_ray.signals import Calibration
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["WeightSearch", "search_weights", "weight_curve"]

STEPS = (0.5, 0.3, 0.2, 0.1, 0.05)
MIN_GAIN = 1e-4
SEARCHES = 10
SEARCH_K = 20
SMALL_WEIGHT = 0.05
WORTH = 0.002
"""A signal costs time to score: one of a small weight stays only where it brings such a share of the value."""
MAX_SCORES = 10_000_000
MAX_PAIRS = 3_000_000
CURVE_STEPS = 10
DIGITS = 9


class WeightSearch(BaseModel):
    """Result of `search_weights`: weights that sum to 1, their validation NDCG, and every weighting tried.

    The table's `ndcg` is NDCG@20 of the users that the search looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights: dict[str, float]
    ndcg: float
    table: list[dict[str, float]]


def search_weights(
    scores: Mapping[str, FloatArray],
    targets: IntArray,
    seen: Histories,
    calibration: Calibration,
    *,
    k: int = 10,
) -> WeightSearch:
    """Weights for a good validation NDCG@k, for raw scores [B, N], targets [B] and items seen before.

    Some hundred held-out items cannot tell many weightings apart, so the weights are the mean of greedy searches
    on random halves of the users, on NDCG@20. (One MovieLens-100K model, users split in two 8 times: NDCG@10 of
    the other half .131, against .1285 for one search on NDCG@10; fixed 0.7 neural, 0.3 item_item gave .133.)
    The same input gives the same weights, in seconds; of a large catalogue only some users are looked at.
    """
    generator = np.random.default_rng(0)
    is_large = next(iter(scores.values())).size > MAX_SCORES
    users = generator.permutation(len(targets)) if is_large else np.arange(len(targets))
    search = _Search(Pairs.of(scores, targets, seen, calibration, users, most=MAX_PAIRS))
    chosen = [search.run(generator.permutation(search.n_users)) for _ in range(SEARCHES)]
    weights = search.without_idle(_mean_weights(chosen))
    everybody = Pairs.of({name: scores[name] for name in weights}, targets, seen, calibration)
    return WeightSearch(weights=weights, ndcg=float(everybody.gains([weights], k).mean()), table=search.table)


def weight_curve(
    scores: Mapping[str, FloatArray], targets: IntArray, seen: Histories, calibration: Calibration,
    partner: str = "item_item", *, k: int = 10,
) -> list[list[float]]:
    """[neural weight, NDCG@k] for weights 0, 0.1, … 1 of the neural signal, the rest being its partner's.

    From raw scores [B, N], targets [B] and items seen before, as `search_weights` takes them.
    """
    pairs = Pairs.of({name: scores[name] for name in ("neural", partner)}, targets, seen, calibration)
    shares = [step / CURVE_STEPS for step in range(CURVE_STEPS + 1)]
    gains = pairs.gains([{"neural": share, partner: 1 - share} for share in shares], k)
    return [[share, float(value)] for share, value in zip(shares, gains.mean(axis=1), strict=True)]


def _mean_weights(chosen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    mean = {name: sum(weights[name] for weights in chosen) / len(chosen) for name in sorted(chosen[0])}
    return _of_sum_1({name: weight for name, weight in mean.items() if weight > 0})


def _of_sum_1(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: round(weight / sum(weights.values()), 6) for name, weight in weights.items()}


class _Search:
    """Greedy searches on some of the users at a time; what one has tried, the next need not try again."""

    def __init__(self, pairs: Pairs) -> None:
        self.table: list[dict[str, float]] = []
        self._pairs = pairs
        self._gains: dict[tuple[float, ...], NDArray[np.float64]] = {}

    @property
    def n_users(self) -> int:
        """Users whose pairs are here."""
        return len(self._pairs.users)

    def run(self, order: IntArray) -> dict[str, float]:
        """From the best single signal, move weight to one other signal at a time while that helps the first half."""
        names, users = self._pairs.names, order[: (len(order) + 1) // 2]
        weights, best = self._best([{name: 1.0} for name in names], users)
        while True:
            moves = [_moved(weights, name, step) for name in names for step in STEPS]
            found, value = self._best([moved for moved in moves if len(moved) > 1] or [weights], users)
            if value <= best + MIN_GAIN:
                return {name: weights.get(name, 0.0) for name in names}
            weights, best = found, value

    def without_idle(self, weights: dict[str, float]) -> dict[str, float]:
        """Without signals of a small weight, the smallest first, that hardly bring anything."""
        users = np.arange(self.n_users)
        for name in sorted(weights, key=lambda name: weights[name]):
            if weights[name] < SMALL_WEIGHT:
                rest = _of_sum_1({other: weight for other, weight in weights.items() if other != name})
                (_, value), (_, before) = self._best([rest], users), self._best([weights], users)
                weights = rest if value >= before * (1 - WORTH) else weights
        return weights

    def _best(self, tried: Sequence[dict[str, float]], users: IntArray) -> tuple[dict[str, float], float]:
        keys = [tuple(round(weights.get(name, 0.0), DIGITS) for name in self._pairs.names) for weights in tried]
        new = {key: weights for key, weights in zip(keys, tried, strict=True) if key not in self._gains}
        if new:
            self._gains.update(zip(new, self._pairs.gains([*new.values()], SEARCH_K), strict=True))
        values = [float(self._gains[key][users].mean()) for key in keys]
        self.table += [{**weights, "ndcg": value} for weights, value in zip(tried, values, strict=True)]
        place = int(np.argmax(values))
        return tried[place], values[place]


def _moved(weights: Mapping[str, float], name: str, step: float) -> dict[str, float]:
    moved = {other: weight * (1 - step) for other, weight in weights.items()}
    return {**moved, name: moved.get(name, 0.0) + step}
