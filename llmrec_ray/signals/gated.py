"""Gated fusion: a weighted sum of calibrated signals whose weights depend on the item and on the person.

The weight of signal s for a candidate is softplus(b_s + a_s · f), where f holds the logarithms of the item's events in
train and of the length of the person's history, standardised; a handful of numbers in all, fitted listwise: softmax
cross-entropy of the target among its candidates, by L-BFGS with exact gradients.

Shapes: L lists, C candidates, S signals, F = 3 inputs of a gate (a constant first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from llmrec_ray.signals.fusion import CandidateLists, Given, calibrated
from llmrec_ray.signals.late import Calibration
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["GatedFusion"]

Wide = NDArray[np.float64]
SHRINKAGE = 1e-3
"""Pulls the gates' slopes to 0, per squared unit, beside a mean loss per list."""


@dataclass(frozen=True)
class _Gates:
    """weights: [S, F], the constant's first. means, stds: of the two features. scale: what all weights are times."""

    weights: Wide
    means: Wide
    stds: Wide
    scale: float = 1.0

    def inputs(self, log_counts: FloatArray, given: Given) -> Wide:
        """[B, C, F]."""
        popularity = log_counts[np.maximum(given.item_rows, 0)].astype(np.float64)
        length = np.broadcast_to(np.log1p(given.histories.lengths)[:, None], popularity.shape)
        features = (np.stack([popularity, length], axis=-1) - self.means) / self.stds
        return np.concatenate([np.ones((*popularity.shape, 1)), features], axis=-1)


class GatedFusion:
    """`gated`: see the module."""

    def __init__(self, calibration: Calibration, signals: Sequence[str], gates: _Gates, log_counts: FloatArray) -> None:
        self.calibration = calibration
        self._signals, self._gates, self._log_counts = tuple(signals), gates, log_counts

    @classmethod
    def fit(
        cls, lists: CandidateLists, signals: Sequence[str], calibration: Calibration, log_counts: FloatArray
    ) -> GatedFusion:
        """Learn the gates from the lists, for use with the calibration and item counts of the model that is served.

        The weights of a candidate add up to 1 on average, as those of late fusion do.
        """
        values = calibrated(lists.scores, lists.calibration, signals).astype(np.float64)
        mask = lists.given.mask
        start = _standard(lists, len(signals))
        inputs = start.inputs(lists.log_counts, lists.given)
        weights = _fit(values, inputs, mask, lists.places, start.weights)
        scale = 1.0 / np.logaddexp(0.0, inputs[mask] @ weights.T).sum(axis=1).mean()
        gates = _Gates(weights, start.means, start.stds, float(scale))
        return cls(calibration, signals, gates, np.asarray(log_counts, np.float32))

    @property
    def signals(self) -> tuple[str, ...]:
        """Those that are weighed."""
        return self._signals

    def weights(self, given: Given) -> FloatArray:
        """[B, C, S] float32 weight of every signal for every candidate; never negative."""
        raw = self._gates.inputs(self._log_counts, given) @ self._gates.weights.T
        return (self._gates.scale * np.logaddexp(0.0, raw)).astype(np.float32)

    def fuse(self, scores: Mapping[str, FloatArray], given: Given) -> tuple[FloatArray, dict[str, FloatArray]]:
        """See `Fusion`."""
        values = self.weights(given) * calibrated(scores, self.calibration, self._signals)
        values[~given.mask] = 0.0
        return values.sum(axis=-1), {name: values[..., place] for place, name in enumerate(self._signals)}

    def settings(self) -> dict[str, Any]:
        """See `Fusion`."""
        gates = self._gates
        return {
            "signals": list(self._signals), "weights": gates.weights.tolist(), "means": gates.means.tolist(),
            "stds": gates.stds.tolist(), "scale": gates.scale,
        }

    def state(self) -> dict[str, FloatArray]:
        """See `Fusion`."""
        return {"log_counts": self._log_counts}

    @classmethod
    def from_state(
        cls, settings: Mapping[str, Any], state: Mapping[str, FloatArray], calibration: Calibration
    ) -> GatedFusion:
        """The fusion that `settings` and `state` came from."""
        weights, means, stds = (np.asarray(settings[name], np.float64) for name in ("weights", "means", "stds"))
        gates = _Gates(weights, means, stds, settings["scale"])
        return cls(calibration, settings["signals"], gates, state["log_counts"])


def _standard(lists: CandidateLists, n_signals: int) -> _Gates:
    """Gates that weigh all signals alike, with the features' mean and deviation over the lists' candidates."""
    raw = _Gates(np.zeros((n_signals, 3)), np.zeros(2), np.ones(2))
    features = raw.inputs(lists.log_counts, lists.given)[lists.given.mask][:, 1:]
    stds = features.std(axis=0)
    return _Gates(raw.weights, features.mean(axis=0), np.where(stds > 0, stds, 1.0))


def _fit(values: Wide, inputs: Wide, mask: NDArray[np.bool_], places: IntArray, start: Wide) -> Wide:
    """Weights [S, F] from calibrated scores [L, C, S] and gate inputs [L, C, F]."""
    lists = np.arange(len(places))

    def loss(flat: Wide) -> tuple[float, Wide]:
        weights = flat.reshape(start.shape)
        raw = inputs @ weights.T
        logits = np.where(mask, (np.logaddexp(0.0, raw) * values).sum(axis=-1), -np.inf)
        logs = log_softmax(logits, axis=1)
        slope = np.exp(logs)
        slope[lists, places] -= 1.0
        slopes = weights * np.array([0.0, 1.0, 1.0])
        gradient = np.einsum("lcs,lcf->sf", slope[..., None] * values * expit(raw), inputs) / len(places)
        penalty = SHRINKAGE * float((slopes**2).sum())
        return penalty - float(logs[lists, places].mean()), (gradient + 2 * SHRINKAGE * slopes).ravel()

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, np.float64).reshape(start.shape)
