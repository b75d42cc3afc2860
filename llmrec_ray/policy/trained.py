"""What training chooses on the validation split: calibration, the weights of late fusion, and the policy made of them.

The test split is not read here. Shapes: B users, N items.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmrec_ray.bundle import Bundle, Scorer
from llmrec_ray.config import Recipe, SignalName
from llmrec_ray.data import Dataset
from llmrec_ray.policy.components import Components, component_scores
from llmrec_ray.policy.pairs import Pairs
from llmrec_ray.policy.weights import search_weights, weight_curve
from llmrec_ray.signals import Calibration, FusionPolicy, recipe_policy
from llmrec_ray.types import Histories, IntArray

__all__ = ["ValidatedFusion", "choose_weights", "fuse_on_validation", "make_policy", "newcomer_weights", "policy_of"]

logger = logging.getLogger(__name__)

K = 10


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
    components = component_scores(recipe, dataset, scorer)
    return choose_weights(recipe, dataset, scorer, components, components.calibration)


def choose_weights(
    recipe: Recipe, dataset: Dataset, scorer: Scorer, components: Components, calibration: Calibration
) -> ValidatedFusion:
    """The weights of a person with a history and of a newcomer: searched, or those that the recipe fixes."""
    targets, seen = components.targets, components.seen
    names = components.raw.keys()
    curve = []
    if "item_item" in names:
        curve = weight_curve(components.known(["neural", "item_item"]), targets, seen, calibration)
    fixed = _fixed_weights(recipe, scorer)
    if fixed is not None:
        pairs = Pairs.of(components.known([*fixed]), targets, seen, calibration)
        return ValidatedFusion(calibration, fixed, float(pairs.gains([fixed], K).mean()), curve)
    start = time.perf_counter()
    usable = _existing(recipe.fusion.signals, scorer)
    search = search_weights(components.known(usable), targets, seen, calibration, k=K)
    logger.info("late fusion of all items on validation: NDCG@10 %.4f with %s (%d weightings in %.1f s)", search.ndcg,
                ", ".join(f"{name} {weight:.2f}" for name, weight in search.weights.items()), len(search.table),
                time.perf_counter() - start)
    few = recipe.fusion.newcomer_events
    newcomers = newcomer_weights(dataset, scorer, calibration, [*usable], components.users, few) if few > 1 else {}
    return ValidatedFusion(calibration, search.weights, search.ndcg, curve, newcomers)


def newcomer_weights(
    dataset: Dataset, scorer: Scorer, calibration: Calibration, names: list[str], users: IntArray, events: int
) -> dict[str, float]:
    """Weights of the signals `names` for people with fewer than `events` events, of whom nothing else is known.

    users: rows of people with a validation target. Each takes part as somebody unknown who did only the newest 1, 2, …
    events - 1 things of the train history, in turn; nothing of that history is to be recommended again.
    """
    seen, targets = dataset.histories("train").select(users), dataset.targets("validation")[users]
    newest = [items[-(1 + place % (events - 1)):] for place, items in enumerate(seen)]
    few = Histories.from_lists(newest, asked_at=seen.asked_at)
    vectors = scorer.user_vectors(few)
    scores = {name: scorer.score_catalogue(name, few, vectors) for name in names}
    for raw in scores.values():
        raw[:, scorer.cold.rows] = np.nan
    return search_weights(scores, targets, seen, calibration).weights


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


def policy_of(recipe: Recipe, bundle: Bundle) -> FusionPolicy:
    """What is served when nothing else is said: the weights of the Bundle, and what the recipe says now."""
    return FusionPolicy.model_validate(bundle.policy.model_dump() | recipe_policy(recipe, bundle.signal_names))
