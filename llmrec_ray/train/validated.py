"""Stored scores of the validation split -> calibration, the weights of late fusion, and the policy made of them.

The test split is not read here. Shapes: B users, N items.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmrec_ray.bundle import Scorer
from llmrec_ray.config import Recipe, SignalName
from llmrec_ray.data import Dataset
from llmrec_ray.metrics import ndcg
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.signals import Calibration, FusionPolicy, fuse, recipe_policy, search_weights, weight_curve
from llmrec_ray.train.newcomers import newcomer_weights
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["ValidatedFusion", "fuse_on_validation", "make_policy", "validation_users"]

logger = logging.getLogger(__name__)

K = 10
MAX_VALIDATION_SCORES = 50_000_000


@dataclass(frozen=True)
class ValidatedFusion:
    """Calibration of the signals, the weights of late fusion, their validation NDCG@10, and that of other weights.

    curve: [neural weight, NDCG@10] with the rest on item_item; empty without that signal.
    """

    calibration: Calibration
    weights: Mapping[str, float]
    ndcg: float
    curve: list[list[float]]
    newcomer_weights: Mapping[str, float] = field(default_factory=dict)


def fuse_on_validation(recipe: Recipe, dataset: Dataset, scorer: Scorer) -> ValidatedFusion:
    """Calibrate every signal and choose the fusion weights on stored scores of the validation split, where cold items,
    which have weights of their own, stay in the middle of the catalogue."""
    positions = validation_users(recipe, dataset)
    seen, targets = dataset.histories("train").select(positions), dataset.targets("validation")[positions]
    scores = scorer.score_all(seen)
    for raw in scores.values():
        raw[:, scorer.cold.rows] = np.nan
    calibration = Calibration.fit(scores, seen)
    curve = weight_curve(scores, targets, seen, calibration) if "item_item" in scores else []
    fixed = _fixed_weights(recipe, scorer)
    if fixed is not None:
        fused, _ = fuse(scores, calibration, fixed)
        return ValidatedFusion(calibration, fixed, ndcg(target_ranks(mask_seen(fused, seen), targets), K), curve)
    start = time.perf_counter()
    usable: dict[str, FloatArray] = {name: scores[name] for name in _existing(recipe.fusion.signals, scorer)}
    search = search_weights(usable, targets, seen, calibration, k=K)
    logger.info("late fusion on validation: NDCG@10 %.4f with %s (%d weightings in %.1f s)", search.ndcg,
                ", ".join(f"{name} {weight:.2f}" for name, weight in search.weights.items()), len(search.table),
                time.perf_counter() - start)
    few = recipe.fusion.newcomer_events
    newcomers = newcomer_weights(dataset, scorer, calibration, [*usable], positions, few) if few > 1 else {}
    return ValidatedFusion(calibration, search.weights, search.ndcg, curve, newcomers)


def validation_users(recipe: Recipe, dataset: Dataset) -> IntArray:
    """All users who have a target, or as many drawn at random as keep the score arrays within MAX_VALIDATION_SCORES
    each."""
    users, most = np.flatnonzero(dataset.targets("validation") >= 0), MAX_VALIDATION_SCORES // len(dataset.items)
    if len(users) <= max(1, most):
        return users
    return np.sort(np.random.default_rng(recipe.seed).choice(users, max(1, most), replace=False))


def _fixed_weights(recipe: Recipe, scorer: Scorer) -> dict[str, float] | None:
    if recipe.fusion.mode == "feature":
        return {"neural": 1.0}
    if recipe.fusion.weights is None:
        return None
    return {name: recipe.fusion.weights[name] for name in _existing(tuple(recipe.fusion.weights), scorer)}


def _existing(wanted: Sequence[SignalName], scorer: Scorer) -> list[SignalName]:
    existing = [name for name in wanted if name in scorer.signal_names]
    assert existing, f"a recipe that fuses only {wanted}, which do not exist. This is a bug."
    return existing


def make_policy(recipe: Recipe, scorer: Scorer, fusion: ValidatedFusion) -> FusionPolicy:
    """The Bundle's fusion policy: what was found, and what the recipe says."""
    return FusionPolicy.model_validate({
        "weights": fusion.weights, "newcomer_weights": fusion.newcomer_weights,
        **recipe_policy(recipe, scorer.signal_names),
    })
