"""A Dataset and a trained model -> the fusion that the recipe names, or all of them for comparison.

`late`, `feature` and `cascade` need no fitting beyond the calibration and the weights that were searched on the
validation split. `gated` and `learned` are fitted on cross-fitted lists of candidates, see `crossfit`: neither the
validation nor the test split is read here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmrec_ray.bundle import Bundle, Scorer
from llmrec_ray.config import CascadeConfig, FusionMode, Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.signals import (
    Calibration,
    CandidateLists,
    CascadeFusion,
    CorrectedFusion,
    Fusion,
    FusionPolicy,
    GatedFusion,
    WeightedFusion,
)
from llmrec_ray.train.crossfit import HeldOut, cross_fitted_lists
from llmrec_ray.train.listwise import fit_correction
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["FittedMode", "fit_fusion", "fit_modes"]

logger = logging.getLogger(__name__)

HELD_OUT = 5
"""Newest train events of each person that fusion learns from."""
RECENT_SHARE = 0.2
"""Item popularity rises when the last fifth of the log has more than a fifth of an item's events."""


@dataclass(frozen=True)
class FittedMode:
    """A fusion; seconds that fitting it took, its share of the cross-fitting included; what fitting measured."""

    fusion: Fusion
    seconds: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)


def fit_fusion(
    recipe: Recipe, dataset: Dataset, scorer: Scorer, calibration: Calibration, policy: FusionPolicy
) -> Fusion:
    """The fusion of `fusion.mode`, for requests with a history and no weights of their own.

    Fitting `gated` or `learned` takes about as long as training the towers by one process. Raises DataError when there
    is nothing to learn from.
    """
    mode = recipe.fusion.mode
    _say_what_trains([mode])
    fitted = _Fitting(recipe, dataset, scorer, calibration, policy).fit(mode)
    if fitted.measured:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in fitted.measured.items())
        logger.info("%s fusion, fitted on these events in %.1f s: %s", mode, fitted.seconds, figures)
    return fitted.fusion


def fit_modes(
    recipe: Recipe, dataset: Dataset, bundle: Bundle, modes: Sequence[FusionMode] | None = None
) -> dict[FusionMode, FittedMode]:
    """Modes on the towers of a Bundle, all that its signals allow unless they are named; cross-fitting is done once."""
    fitting = _Fitting(recipe, dataset, bundle, bundle.calibration, bundle.policy)
    wanted = _possible_modes(recipe, bundle) if modes is None else modes
    _say_what_trains(wanted)
    return {mode: fitting.fit(mode) for mode in wanted}


def _say_what_trains(modes: Sequence[FusionMode]) -> None:
    if fitted := " and ".join(mode for mode in modes if mode in {"gated", "learned"}):
        logger.info("%s fusion: training a second model without each person's newest %d train events", fitted, HELD_OUT)


def _possible_modes(recipe: Recipe, bundle: Bundle) -> list[FusionMode]:
    modes: list[FusionMode] = ["late", "feature", "gated", "learned"]
    if {_cascade(recipe).first, _cascade(recipe).then} <= set(bundle.signal_names):
        modes.append("cascade")
    return modes


class _Fitting:
    """What all modes are fitted from; lists are made when first needed."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, scorer: Scorer, calibration: Calibration, policy: FusionPolicy
    ) -> None:
        self.recipe, self.dataset, self.scorer, self.calibration = recipe, dataset, scorer, calibration
        self.weights = {str(name): weight for name, weight in policy.weights.items()}
        self._lists: tuple[CandidateLists, HeldOut] | None = None
        self._list_seconds = 0.0

    def fit(self, mode: FusionMode) -> FittedMode:
        """One mode."""
        if mode == "late":
            return FittedMode(WeightedFusion(self.calibration, self.weights))
        if mode == "feature":
            return FittedMode(WeightedFusion(self.calibration, {"neural": 1.0}))
        if mode == "cascade":
            cascade = _cascade(self.recipe)
            return FittedMode(CascadeFusion(self.calibration, cascade.first, cascade.keep, cascade.then))
        lists, held_out = self._cross_fitted()
        start = time.perf_counter()
        fusion, measured = self._gated(lists) if mode == "gated" else self._learned(lists, held_out)
        return FittedMode(fusion, self._list_seconds + time.perf_counter() - start, measured)

    def _cross_fitted(self) -> tuple[CandidateLists, HeldOut]:
        if self._lists is None:
            start = time.perf_counter()
            wanted = {*self.weights, *self.recipe.fusion.signals}
            names = [name for name in self.scorer.signal_names if name != "ncf" or name in wanted]
            self._lists = cross_fitted_lists(self.recipe, self.dataset, self.scorer, HELD_OUT, names)
            self._list_seconds = time.perf_counter() - start
        return self._lists

    def _gated(self, lists: CandidateLists) -> tuple[Fusion, dict[str, float]]:
        counts = np.bincount(self.dataset.histories("train").item_rows, minlength=len(self.dataset.items))
        log_counts = np.log1p(counts).astype(np.float32)
        return GatedFusion.fit(lists, list(lists.scores), self.calibration, log_counts), {"lists": float(len(lists))}

    def _learned(self, lists: CandidateLists, held_out: HeldOut) -> tuple[Fusion, dict[str, float]]:
        n_items, train = len(self.dataset.items), self.dataset.histories("train")
        times = self.dataset.history_times("train")
        earlier = _item_features(held_out.rest.item_rows, times[held_out.counted], n_items)
        now = _item_features(train.item_rows, times, n_items)
        fitted = fit_correction(lists, earlier, self.weights, self.recipe.seed)
        correction = fitted.correction.at(self.scorer.item_vectors, now)
        return CorrectedFusion(WeightedFusion(self.calibration, self.weights), correction), {
            "lists": float(len(lists)), "strength": correction.strength,
            "late_ndcg@10": fitted.ndcg[0.0], "learned_ndcg@10": fitted.ndcg[correction.strength],
        }


def _cascade(recipe: Recipe) -> CascadeConfig:
    return recipe.fusion.cascade or CascadeConfig()


def _item_features(item_rows: IntArray, times: IntArray, n_items: int) -> FloatArray:
    """[N, 2] float32, standardised: log(1 + events), and the log of how much more of them are recent than of all."""
    counts = np.bincount(item_rows, minlength=n_items)
    recent = np.bincount(item_rows[times >= np.quantile(times, 1 - RECENT_SHARE)], minlength=n_items)
    features = np.stack([np.log1p(counts), np.log((recent + 1) / (RECENT_SHARE * counts + 1))], axis=1)
    stds = features.std(axis=0)
    return np.asarray((features - features.mean(axis=0)) / np.where(stds > 0, stds, 1.0), np.float32)
