"""A recipe's search space: what is searched when nothing is named, at which level, and what settings make of a recipe.

Settings are values by dotted key, as a recipe holds them, so that a winner is a list of overrides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from llmrec_ray.config import (
    Choice,
    Domain,
    IntRange,
    LogUniform,
    Recipe,
    Uniform,
    as_override,
    domain_of,
    needs_no_training,
    with_settings,
)
from llmrec_ray.errors import ConfigError

__all__ = [
    "current_settings",
    "default_search",
    "grid",
    "is_possible",
    "overrides_of",
    "readable",
    "split_levels",
    "trial_count",
    "with_settings",
]

LEARNING_RATES, WEIGHT_DECAYS, DROPOUTS = (5e-4, 2e-2), (1e-3, 3e-1), (0.0, 0.5)
ENCODER_RATES = {"top_layers": (5e-6, 2e-4), "lora": (5e-5, 2e-3), "full": (5e-6, 2e-4)}
FITTED_MODES = ("gated", "learned")
COLD_SCALES = (0.0, 1.0)
CANDIDATE_SHARES = (0.25, 0.5, 1.0, 2.0)
MOST_LISTED = 1000


def default_search(recipe: Recipe) -> dict[str, Domain]:
    """What is worth searching first: rates, which matter most (Bengio 2012), then what keeps the model from learning by
    heart; and, since that is nearly free, how many candidates each source has to propose, and the modes of fusion where
    one that takes a training of its own is fitted anyway. Ranges of rates hold the recipe's own.
    """
    search: dict[str, Domain] = {
        "train.learning_rate": _around(LEARNING_RATES, recipe.train.learning_rate),
        "train.weight_decay": _around(WEIGHT_DECAYS, recipe.train.weight_decay),
        "model.dropout": Uniform(uniform=DROPOUTS),
    }
    if recipe.fusion.item_vector == "feature":
        search["model.id_dropout"] = Uniform(uniform=DROPOUTS)
    if recipe.fusion.item_vector != "id" and recipe.encoder.tuning != "frozen":
        rates = ENCODER_RATES[recipe.encoder.tuning]
        search["encoder.learning_rate"] = _around(rates, recipe.encoder.learning_rate)
    if recipe.fusion.mode in FITTED_MODES:
        modes = [mode for mode in ("late", *FITTED_MODES) if is_possible(recipe, {"fusion.mode": mode})]
        search["fusion.mode"] = Choice(choice=tuple(modes))
    if recipe.data.split == "cold_items" and recipe.fusion.mode != "feature":
        search["fusion.cold_scale"] = Uniform(uniform=COLD_SCALES)
    return search | {
        f"retrieval.candidates.{source}": Choice(choice=tuple(
            dict.fromkeys(max(1, round(share * count)) for share in CANDIDATE_SHARES)
        ))
        for source, count in recipe.retrieval.candidates.items()
        if source != "cold" and (source != "text" or recipe.data.items)
    }


def split_levels(recipe: Recipe) -> tuple[dict[str, Domain], dict[str, Domain]]:
    """What `tune.search` says, or the default: keys that need a training each, and keys that need none."""
    search = recipe.tune.search or default_search(recipe)
    known = {key: domain_of(key, domain) for key, domain in search.items()}
    return (
        {key: domain for key, domain in known.items() if not needs_no_training(key)},
        {key: domain for key, domain in known.items() if needs_no_training(key)},
    )


def current_settings(recipe: Recipe, space: Mapping[str, Domain]) -> dict[str, Any]:
    """The recipe's own value of every key of the space; None for a source of candidates that it does not ask."""
    tree = recipe.model_dump(mode="json")
    settings = {}
    for key in space:
        node: Any = tree
        for part in key.split("."):
            node = node.get(part)
        settings[key] = node
    return settings


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """Dotted overrides that give a recipe these settings."""
    return [as_override(key, value) for key, value in settings.items()]


def is_possible(recipe: Recipe, settings: Mapping[str, Any]) -> bool:
    """Whether the recipe's rules allow these settings together."""
    try:
        with_settings(recipe, settings)
    except ConfigError:
        return False
    return True


def readable(value: float, domain: LogUniform | Uniform) -> float:
    """A value of the range in four digits, which a person can read and write."""
    low, high = domain.loguniform if isinstance(domain, LogUniform) else domain.uniform
    return min(max(float(f"{value:.4g}"), low), high)


def grid(space: Mapping[str, Domain]) -> Iterator[dict[str, Any]] | None:
    """Every combination, or None when there are too many to list."""
    values = [_listed(domain) for domain in space.values()]
    if any(each is None for each in values) or math.prod(len(each) for each in values if each) > MOST_LISTED:
        return None
    return (dict(zip(space, each, strict=True)) for each in itertools.product(*(each or () for each in values)))


def trial_count(recipe: Recipe) -> int:
    """Trials of a campaign: `tune.trials`, or fewer when there are fewer different settings to train."""
    space, _ = split_levels(recipe)
    combinations = grid(space)
    if combinations is None:
        return recipe.tune.trials
    own, others = current_settings(recipe, space), 0
    for settings in combinations:
        others += settings != own and is_possible(recipe, settings)
        if 1 + others >= recipe.tune.trials:
            break
    return min(recipe.tune.trials, 1 + others)


def _around(bounds: tuple[float, float], own: float) -> LogUniform:
    low, high = bounds
    return LogUniform(loguniform=(min(low, own), max(high, own)) if own > 0.0 else bounds)


def _listed(domain: Domain) -> tuple[Any, ...] | None:
    if isinstance(domain, Choice):
        return domain.choice
    if isinstance(domain, IntRange):
        low, high = domain.int
        return tuple(range(low, high + 1)) if high - low < MOST_LISTED else None
    return None
