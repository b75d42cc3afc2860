"""Late fusion: from calibrated signals to one score that is the sum of the signals' shares.

A signal is calibrated with one mean and one standard deviation, measured once on validation scores and then
fixed, so that the same pair gets the same score offline and online. Shapes: B = users, N = items; `fuse` and
`Calibration.apply` take any shape.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config import ColdSignalName, MergeName, Recipe, SignalName, SourceName
from llmrec_ray.metrics import ndcg
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = [
    "Calibration",
    "FusionPolicy",
    "WeightSearch",
    "fuse",
    "recipe_policy",
    "search_weights",
    "weight_curve",
]

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Weights = dict[SignalName, Weight]
ColdWeights = dict[ColdSignalName, Weight]
STEPS = (0.5, 0.3, 0.2, 0.1, 0.05)
MIN_GAIN = 1e-4
SEARCHES = 10
SEARCH_K = 20
MIN_WEIGHT = 0.05
MAX_SCORES = 2_000_000
CURVE_STEPS = 10


class Calibration(BaseModel):
    """Mean and standard deviation of each signal's raw scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    means: dict[str, float]
    stds: dict[str, PositiveFloat]

    @classmethod
    def fit(cls, scores: Mapping[str, FloatArray], seen: Histories | None = None) -> Self:
        """Measure on raw scores [B, N] per signal, leaving out NaN, infinities and each user's seen items."""
        counted = {name: _counted(raw, seen) for name, raw in scores.items()}
        return cls(
            means={name: float(values.mean()) for name, values in counted.items()},
            stds={name: float(values.std()) or 1.0 for name, values in counted.items()},
        )

    def apply(self, name: str, raw: FloatArray) -> FloatArray:
        """The raw scores in standard deviations from the signal's mean; NaN stays NaN."""
        return ((raw - self.means[name]) / self.stds[name]).astype(np.float32)


class FusionPolicy(BaseModel):
    """What a Release may change without retraining: signal weights, and how many items a source proposes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    weights: Weights
    """For a person with a history; searched on validation scores."""
    candidates: dict[SourceName, PositiveInt]
    """Items per source."""
    merge: MergeName = "all"
    """How the sources' candidates become one list."""
    max_candidates: PositiveInt | None = None
    """The most candidates of one request; None keeps all."""
    newcomer_weights: Weights = {}
    """For a person with fewer than `newcomer_events` events; empty takes `weights`. Also searched on validation."""
    newcomer_events: PositiveInt = 5
    """From so many events on, a history is read with `weights`."""
    profile_weights: Weights = {"neural": 0.5, "popularity": 0.5}
    """For a profile without a history, when the Bundle knows what such people like."""
    query_weights: Weights = {"text": 0.8, "popularity": 0.2}
    """For a query without a history."""
    query_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """How much `query_weights` count beside what a history or a profile says."""
    unknown_weights: Weights = {"popularity": 1.0}
    """For a person about whom nothing is known."""
    cold_weights: ColdWeights = {}
    """For items without a train event, when a person has a history; empty where there are none."""
    cold_scale: Weight = 1.0
    """How far items without a train event may rise among the others; 0 leaves them in the middle of the catalogue."""

    @model_validator(mode="after")
    def _check_not_empty(self) -> FusionPolicy:
        policies = (self.weights, self.query_weights, self.unknown_weights, self.profile_weights)
        if not all(any(weights.values()) for weights in policies):
            raise ValueError("every fusion weight is 0, so nothing would rank items: give a signal a weight")
        if not {*self.candidates} - {"cold"}:
            raise ValueError("no source proposes known items as candidates: name at least one, such as neural: 100")
        return self


def recipe_policy(recipe: Recipe, signal_names: Collection[str]) -> dict[str, Any]:
    """The fields of a policy that a recipe decides without training, for a Bundle with these signals."""
    candidates, cold = recipe.retrieval.candidates, recipe.fusion.cold_weights
    return {
        "candidates": {name: count for name, count in candidates.items() if name in {"cold", *signal_names}},
        "cold_weights": {name: weight for name, weight in cold.items() if name in signal_names},
        "cold_scale": recipe.fusion.cold_scale,
        "newcomer_events": recipe.fusion.newcomer_events,
        "merge": recipe.retrieval.merge,
        "max_candidates": recipe.retrieval.max_candidates,
    }


class WeightSearch(BaseModel):
    """Result of `search_weights`: weights that sum to 1, their validation NDCG, and every weighting tried.

    The table's `ndcg` is NDCG@20 of the users that the search looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights: dict[str, float]
    ndcg: float
    table: list[dict[str, float]]


def fuse(
    scores: Mapping[str, FloatArray], calibration: Calibration, weights: Mapping[str, float]
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Total and each signal's share of it, float32 in the scores' shape; the shares add up to the total.

    A signal without an opinion (NaN) counts as its mean: share 0. Signals of weight 0 have no share.
    """
    used = {name: weight for name, weight in weights.items() if weight}
    missing = used.keys() - scores.keys()
    assert not missing, f"weights for signals without scores: {missing}. This is a bug."
    shares = {name: np.float32(w) * _centred(calibration, name, scores[name]) for name, w in used.items()}
    total = np.sum(list(shares.values()), axis=0, dtype=np.float32)
    return np.asarray(total, dtype=np.float32), shares


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
    The same input gives the same weights, in seconds.
    """
    names = sorted(scores)
    calibrated = {name: mask_seen(_centred(calibration, name, scores[name]), seen) for name in names}
    generator = np.random.default_rng(0)
    table: list[dict[str, float]] = []
    chosen = []
    for _ in range(SEARCHES):
        users = np.sort(generator.permutation(len(targets))[: _users_per_search(calibrated[names[0]])])
        search = _Search({name: values[users] for name, values in calibrated.items()}, targets[users])
        chosen.append(search.run())
        table += search.table
    weights = _mean_weights(chosen)
    fused = np.sum([np.float32(weight) * calibrated[name] for name, weight in weights.items()], axis=0)
    return WeightSearch(weights=weights, ndcg=ndcg(target_ranks(fused, targets), k), table=table)


def weight_curve(
    scores: Mapping[str, FloatArray], targets: IntArray, seen: Histories, calibration: Calibration,
    partner: str = "item_item", *, k: int = 10,
) -> list[list[float]]:
    """[neural weight, NDCG@k] for weights 0, 0.1, … 1 of the neural signal, the rest being its partner's.

    From raw scores [B, N], targets [B] and items seen before, as `search_weights` takes them.
    """
    neural, other = (mask_seen(_centred(calibration, name, scores[name]), seen) for name in ("neural", partner))
    curve = []
    for step in range(CURVE_STEPS + 1):
        weight = step / CURVE_STEPS
        parts = [np.float32(share) * part for share, part in ((weight, neural), (1 - weight, other)) if share]
        curve.append([weight, ndcg(target_ranks(np.sum(parts, axis=0), targets), k)])
    return curve


def _users_per_search(scores: FloatArray) -> int:
    return max(1, min((len(scores) + 1) // 2, int(MAX_SCORES / scores.shape[1])))


def _mean_weights(chosen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean, without signals of a small weight: they would cost more than they bring. Sums to 1."""
    mean = {name: sum(weights.get(name, 0.0) for weights in chosen) / len(chosen) for name in sorted(chosen[0])}
    kept = {name: weight for name, weight in mean.items() if weight >= MIN_WEIGHT}
    return {name: round(weight / sum(kept.values()), 6) for name, weight in kept.items()}


class _Search:
    """State of the greedy search: current weights, their fused scores, and what was tried."""

    def __init__(self, calibrated: dict[str, FloatArray], targets: IntArray) -> None:
        self.calibrated, self.targets = calibrated, targets
        self.table: list[dict[str, float]] = []
        alone = {name: self._try({name: 1.0}, values) for name, values in calibrated.items()}
        start = max(alone, key=lambda name: alone[name])
        self.weights, self.best, self.fused = {start: 1.0}, alone[start], calibrated[start]

    def run(self) -> dict[str, float]:
        """From the best single signal, move weight to one other signal at a time while that helps."""
        while self._improve():
            pass
        return {name: self.weights.get(name, 0.0) for name in self.calibrated}

    def _improve(self) -> bool:
        """Make the best single move, or say that none gains enough."""
        best, move = self.best + MIN_GAIN, None
        for name, values in self.calibrated.items():
            for step in STEPS:
                moved = self._moved(name, step)
                value = self._try(moved, (1 - step) * self.fused + step * values) if len(moved) > 1 else 0.0
                if value > best:
                    best, move = value, (name, step)
        if move is None:
            return False
        name, step = move
        self.fused = (1 - step) * self.fused + step * self.calibrated[name]
        self.weights, self.best = self._moved(name, step), best
        return True

    def _moved(self, name: str, step: float) -> dict[str, float]:
        moved = {other: weight * (1 - step) for other, weight in self.weights.items()}
        return {**moved, name: moved.get(name, 0.0) + step}

    def _try(self, weights: dict[str, float], fused: FloatArray) -> float:
        value = ndcg(target_ranks(fused, self.targets), SEARCH_K)
        self.table.append({**weights, "ndcg": value})
        return value


def _counted(raw: FloatArray, seen: Histories | None) -> NDArray[np.float64]:
    unseen = raw if seen is None else mask_seen(raw, seen)
    values = unseen[np.isfinite(unseen)].astype(np.float64)
    return values if values.size else np.zeros(1)


def _centred(calibration: Calibration, name: str, raw: FloatArray) -> FloatArray:
    return np.nan_to_num(calibration.apply(name, raw), nan=0.0, posinf=np.inf, neginf=-np.inf)
