"""All that a campaign found, as its table and its report show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmrec_ray.config import Domain, Recipe
from llmrec_ray.policy import PolicyFound
from llmrec_ray.tune.records import TrialRecord

__all__ = ["Confirmation", "Outcome"]


@dataclass(frozen=True)
class Confirmation:
    """Winner and recipe trained again on seeds that the search has not seen.

    winner, default: seed -> validation metric of the served pipeline; same: the winner is the recipe as it is, so that
    both are one. test: the winner's on the test split, None when
    it was not scored; test_seed: of which fresh run, the first that succeeded; test_uri: its Evaluation. looks: how
    often the test split of this Dataset was scored from this workspace so far, that time included. failed: what there
    is no figure of, such as "winner-102" or "test", with reasons.
    """

    winner: dict[int, float]
    default: dict[int, float]
    test: float | None = None
    test_seed: int | None = None
    test_uri: str | None = None
    looks: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    same: bool = False


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
