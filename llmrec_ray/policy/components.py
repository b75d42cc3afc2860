"""A Dataset and what scores -> stored scores of the validation split, which everything without training is chosen on.

The test split is not read here. Shapes: B users, N items, d embedding size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec_ray.bundle import Scorer
from llmrec_ray.config import Recipe
from llmrec_ray.data import Dataset
from llmrec_ray.signals import Calibration
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Components", "component_scores", "validation_users"]

MAX_VALIDATION_SCORES = 50_000_000


@dataclass(frozen=True)
class Components:
    """B users who have a validation target.

    users: [B] their rows. targets: [B] item rows. seen: their train histories. vectors: [B, d + 1] user vectors. raw:
    signal -> scores [B, N] float32. cold_rows: items without a train event. calibration: of the raw scores of the
    others.
    """

    users: IntArray
    targets: IntArray
    seen: Histories
    vectors: FloatArray
    raw: dict[str, FloatArray]
    cold_rows: IntArray
    calibration: Calibration

    def known(self, names: Sequence[str]) -> dict[str, FloatArray]:
        """Raw scores of some signals, with no opinion (NaN) about items without a train event: these have weights of
        their own, and stay in the middle of the catalogue."""
        return {name: _without(self.raw[name], self.cold_rows) for name in names}


def component_scores(
    recipe: Recipe, dataset: Dataset, scorer: Scorer, names: Collection[str] | None = None
) -> Components:
    """Scores of the signals `names`, all when None, for the validation users: at most MAX_VALIDATION_SCORES numbers
    each."""
    users = validation_users(recipe, dataset)
    seen = dataset.histories("train").select(users)
    vectors, cold = scorer.user_vectors(seen), scorer.cold.rows
    wanted = scorer.signal_names if names is None else names
    raw = {name: scorer.score_catalogue(name, seen, vectors) for name in scorer.signal_names if name in wanted}
    calibrations = [Calibration.fit({name: _without(scores, cold)}, seen) for name, scores in raw.items()]
    calibration = Calibration(
        means={name: mean for each in calibrations for name, mean in each.means.items()},
        stds={name: std for each in calibrations for name, std in each.stds.items()},
    )
    return Components(users, dataset.targets("validation")[users], seen, vectors, raw, cold, calibration)


def validation_users(recipe: Recipe, dataset: Dataset) -> IntArray:
    """All users who have a target, or as many drawn at random as keep the score arrays within MAX_VALIDATION_SCORES
    each."""
    users, most = np.flatnonzero(dataset.targets("validation") >= 0), MAX_VALIDATION_SCORES // len(dataset.items)
    if len(users) <= max(1, most):
        return users
    return np.sort(np.random.default_rng(recipe.seed).choice(users, max(1, most), replace=False))


def _without(scores: FloatArray, rows: IntArray) -> FloatArray:
    if not len(rows):
        return scores
    known = scores.copy()
    known[:, rows] = np.nan
    return known
