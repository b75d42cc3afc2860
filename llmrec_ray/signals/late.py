"""Late fusion: from calibrated signals to one score that is the sum of the signals' shares.

A signal is calibrated with one mean and one standard deviation, measured once on validation scores and then
fixed, so that the same pair gets the same score offline and online. Shapes: B = users, N = items; `fuse` and
`Calibration.apply` take any shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config import SignalName, SourceName
from llmrec_ray.metrics import ndcg
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Calibration", "FusionPolicy", "WeightSearch", "fuse", "search_weights"]

Weights = dict[SignalName, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]
STEPS = (0.5, 0.3, 0.2, 0.1, 0.05)
MIN_GAIN = 1e-4


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

    def to_dict(self) -> dict[str, dict[str, float]]:
        """As JSON, for the Bundle."""
        return {"means": self.means, "stds": self.stds}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The calibration that `to_dict` came from."""
        return cls.model_validate(value)

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
    query_weights: Weights = {"text": 0.8, "popularity": 0.2}
    """For a text (query or profile) without a history."""
    query_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """How much `query_weights` count, beside `weights`, for a text with a history."""
    cold_weights: Weights = {"popularity": 1.0}
    """For a person about whom nothing is known."""

    @model_validator(mode="after")
    def _check_not_empty(self) -> FusionPolicy:
        policies = (self.weights, self.query_weights, self.cold_weights)
        if not all(any(weights.values()) for weights in policies):
            raise ValueError("every fusion weight is 0, so nothing would rank items: give a signal a weight")
        if not self.candidates:
            raise ValueError("no source proposes candidates: name at least one, such as neural: 100")
        return self


class WeightSearch(BaseModel):
    """Result of `search_weights`: weights that sum to 1, their validation NDCG, and every weighting tried."""

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
    """Weights with the best validation NDCG@k for raw scores [B, N], targets [B] and items seen before.

    Starts from the best single signal and moves weight to one other signal at a time while that helps; the
    same input gives the same weights. Seconds for some million scores.
    """
    calibrated = {name: mask_seen(_centred(calibration, name, scores[name]), seen) for name in sorted(scores)}
    search = _Search(calibrated, targets, k)
    while search.improve():
        pass
    weights = {name: round(weight, 6) for name, weight in search.weights.items() if weight > 0}
    return WeightSearch(weights=weights, ndcg=search.best, table=search.table)


class _Search:
    """State of the greedy search: current weights, their fused scores, and what was tried."""

    def __init__(self, calibrated: dict[str, FloatArray], targets: IntArray, k: int) -> None:
        self.calibrated, self.targets, self.k = calibrated, targets, k
        self.table: list[dict[str, float]] = []
        alone = {name: self._try({name: 1.0}, values) for name, values in calibrated.items()}
        start = max(alone, key=lambda name: alone[name])
        self.weights, self.best, self.fused = {start: 1.0}, alone[start], calibrated[start]

    def improve(self) -> bool:
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
        value = ndcg(target_ranks(fused, self.targets), self.k)
        self.table.append({**weights, "ndcg": value})
        return value


def _counted(raw: FloatArray, seen: Histories | None) -> NDArray[np.float64]:
    unseen = raw if seen is None else mask_seen(raw, seen)
    values = unseen[np.isfinite(unseen)].astype(np.float64)
    return values if values.size else np.zeros(1)


def _centred(calibration: Calibration, name: str, raw: FloatArray) -> FloatArray:
    return np.nan_to_num(calibration.apply(name, raw), nan=0.0, posinf=np.inf, neginf=-np.inf)
