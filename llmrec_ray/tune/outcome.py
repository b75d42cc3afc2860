"""All that a campaign found, as its table and its report show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmrec_ray.config import Domain, Recipe
from llmrec_ray.tune.records import TrialRecord

__all__ = ["Confirmation", "Outcome", "PolicyFound"]


@dataclass(frozen=True)
class PolicyFound:
    """What the search without retraining found on the winner's stored scores, validation split.

    overrides: dotted overrides of the recipe, such as "fusion.mode=late". value: the metric with them, base: with the
    recipe's own. table: one row per setting tried: its dotted keys, value, candidates. curve: [neural share, metric].
    """

    overrides: list[str]
    value: float
    base: float
    table: list[dict[str, Any]]
    curve: list[list[float]]
    weights: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Confirmation:
    """Winner and recipe trained again on seeds that the search has not seen.

    winner, default: seed -> validation metric of the served pipeline. test: the winner's on the test split, first fresh
    seed, None when it was not scored; test_uri: its Evaluation. looks: how often the test split of this Dataset was
    scored from this workspace so far, that time included. failed: what there is no figure of, such as "winner-102" or
    "test", with reasons.
    """

    winner: dict[int, float]
    default: dict[int, float]
    test: float | None = None
    test_uri: str | None = None
    looks: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One campaign.

    recipe: the one that was searched around. dataset: id. space: what Ray Tune searched, by dotted key. metric: key of
    an epoch's metrics that was maximised, such as "fused_ndcg@10"; label: the same in words. overrides: the winner's
    settings of both levels. best_recipe: `recipe` with them.
    """

    name: str
    recipe: Recipe
    dataset: str
    space: Mapping[str, Domain]
    records: list[TrialRecord]
    metric: str
    label: str
    winner: TrialRecord
    overrides: list[str]
    best_recipe: Recipe
    seconds: float
    policy: PolicyFound | None = None
    confirmation: Confirmation | None = None
