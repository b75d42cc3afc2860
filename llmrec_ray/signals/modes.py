"""The fusion modes that are sums: `late` and `feature`, `cascade`, and `learned`, which adds a network to `late`.

How a mode is made again from a Bundle stands here too. The gates are in `gated`; the network of `learned` fusion is
handed in. Shapes: B users, C candidates, S signals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.config import FusionMode
from llmrec_ray.ranking import top_k
from llmrec_ray.signals.fusion import Fusion, Given, calibrated
from llmrec_ray.signals.gated import GatedFusion
from llmrec_ray.signals.late import Calibration, fuse
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["CascadeFusion", "CorrectedFusion", "Correction", "WeightedFusion", "load_fusion"]

CORRECTION = "reranker"
"""Name of the share that a network adds to the shares of the signals."""


class WeightedFusion:
    """`late`: a weighted sum of calibrated signals. `feature` is the same with all weight on the neural one."""

    def __init__(self, calibration: Calibration, weights: Mapping[str, float]) -> None:
        self.calibration = calibration
        self.weights = {str(name): float(weight) for name, weight in weights.items() if weight}

    @property
    def signals(self) -> tuple[str, ...]:
        """Those with a weight."""
        return tuple(self.weights)

    def fuse(self, scores: Mapping[str, FloatArray], given: Given) -> tuple[FloatArray, dict[str, FloatArray]]:
        """See `Fusion`."""
        total, shares = fuse(scores, self.calibration, self.weights)
        empty = ~given.mask
        total[empty] = 0.0
        for share in shares.values():
            share[empty] = 0.0
        return total, shares

    def settings(self) -> dict[str, Any]:
        """See `Fusion`."""
        return {"weights": self.weights}

    def state(self) -> dict[str, FloatArray]:
        """See `Fusion`."""
        return {}


class CascadeFusion:
    """`cascade`: the signal `first` keeps its best candidates, the signal `then` ranks them.

    Those not kept follow, in the order of `first`: their score is its calibrated one, moved below everything kept.
    """

    def __init__(self, calibration: Calibration, first: str, keep: int, then: str) -> None:
        self.calibration = calibration
        self.first, self.keep, self.then = first, keep, then

    @property
    def signals(self) -> tuple[str, ...]:
        """The two of the cascade."""
        return self.first, self.then

    def fuse(self, scores: Mapping[str, FloatArray], given: Given) -> tuple[FloatArray, dict[str, FloatArray]]:
        """See `Fusion`. A kept item's score is all `then`'s share, any other's all `first`'s."""
        values = calibrated(scores, self.calibration, self.signals)
        first, then = values[..., 0], values[..., 1]
        kept = _best(np.where(given.mask, first, -np.inf), self.keep)
        left = given.mask & ~kept
        lowest = np.where(kept, then, np.inf).min(axis=1, initial=np.inf)
        highest = np.where(left, first, -np.inf).max(axis=1, initial=-np.inf)
        drop = np.where(left.any(axis=1), 1.0 + highest - lowest, 0.0)
        shares = {
            self.first: np.where(left, first - drop[:, None], 0.0).astype(np.float32),
            self.then: np.where(kept, then, 0.0).astype(np.float32),
        }
        return shares[self.first] + shares[self.then], shares

    def settings(self) -> dict[str, Any]:
        """See `Fusion`."""
        return {"first": self.first, "keep": self.keep, "then": self.then}

    def state(self) -> dict[str, FloatArray]:
        """See `Fusion`."""
        return {}


class Correction(Protocol):
    """What a network adds to the weighted sum of the signals."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads, in the order of its inputs."""

    def __call__(
        self, values: FloatArray, item_rows: IntArray, users: FloatArray, lengths: IntArray
    ) -> FloatArray:
        """[B, C] float32, from calibrated scores [B, C, S], candidates [B, C], user vectors [B, d + 1] and history
        lengths [B]."""

    def settings(self) -> dict[str, Any]:
        """What JSON can hold of it."""

    def state(self) -> dict[str, FloatArray]:
        """Its arrays."""


class CorrectedFusion:
    """`learned`: late fusion, and what a network adds to it as a share of its own, `reranker`."""

    def __init__(self, base: WeightedFusion, correction: Correction) -> None:
        self.base, self.correction = base, correction

    @property
    def signals(self) -> tuple[str, ...]:
        """Those of the weighted sum and those that the network reads."""
        return tuple(dict.fromkeys((*self.base.signals, *self.correction.signals)))

    def fuse(self, scores: Mapping[str, FloatArray], given: Given) -> tuple[FloatArray, dict[str, FloatArray]]:
        """See `Fusion`."""
        total, shares = self.base.fuse(scores, given)
        values = calibrated(scores, self.base.calibration, self.correction.signals)
        more = self.correction(values, given.item_rows, given.users, given.histories.lengths)
        added = np.where(given.mask, more, 0.0).astype(np.float32)
        return total + added, {**shares, CORRECTION: added}

    def settings(self) -> dict[str, Any]:
        """See `Fusion`."""
        return {"base": self.base.settings(), "correction": self.correction.settings()}

    def state(self) -> dict[str, FloatArray]:
        """See `Fusion`."""
        return self.correction.state()


def load_fusion(
    mode: FusionMode, settings: Mapping[str, Any], state: Mapping[str, FloatArray], calibration: Calibration,
    load_correction: Callable[[Mapping[str, Any], Mapping[str, FloatArray]], Correction],
) -> Fusion:
    """The fusion of a mode that `settings` and `state` came from; `load_correction` makes the network of `learned`."""
    if mode == "gated":
        return GatedFusion.from_state(settings, state, calibration)
    if mode == "cascade":
        return CascadeFusion(calibration, **settings)
    if mode == "learned":
        base = WeightedFusion(calibration, **settings["base"])
        return CorrectedFusion(base, load_correction(settings["correction"], state))
    return WeightedFusion(calibration, **settings)


def _best(scores: FloatArray, n: int) -> NDArray[np.bool_]:
    """[B, C] True at each user's n best scores that are finite; ties go to the earlier place."""
    places, _ = top_k(scores, n)
    best = np.zeros(scores.shape, np.bool_)
    users, columns = np.nonzero(places >= 0)
    best[users, places[users, columns]] = True
    return best
