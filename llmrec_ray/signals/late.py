"""Late fusion: from calibrated signals to one score that is the sum of the signals' shares.

A signal is calibrated with one mean and one standard deviation, measured once on validation scores and then
fixed, so that the same pair gets the same score offline and online. Shapes: B = users, N = items; `fuse` and
`Calibration.apply` take any shape.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from llmrec_ray.config import ColdSignalName, MergeName, Recipe, SignalName, SourceName
from llmrec_ray.ranking import mask_seen
from llmrec_ray.types import FloatArray, Histories

__all__ = [
    "Calibration",
    "FusionPolicy",
    "fuse",
    "recipe_policy",
]

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Weights = dict[SignalName, Weight]
ColdWeights = dict[ColdSignalName, Weight]


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


def _counted(raw: FloatArray, seen: Histories | None) -> NDArray[np.float64]:
    unseen = raw if seen is None else mask_seen(raw, seen)
    values = unseen[np.isfinite(unseen)].astype(np.float64)
    return values if values.size else np.zeros(1)


def _centred(calibration: Calibration, name: str, raw: FloatArray) -> FloatArray:
    return np.nan_to_num(calibration.apply(name, raw), nan=0.0, posinf=np.inf, neginf=-np.inf)
