"""All that a campaign found, as its table and its report show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from llmrec_ray.config import Domain, FusionMode, Recipe
from llmrec_ray.policy import PolicyFound
from llmrec_ray.tune.records import TrialRecord

__all__ = ["Confirmation", "Finalist", "Finals", "Outcome", "in_words"]


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained again with every seed of `Finals`.

    value: in the search. modes: fusion mode -> seed -> validation metric of the served pipeline. failed: seed -> why
    it has none. left_out: mode -> why it has none.
    """

    trial: int
    value: float
    modes: Mapping[FusionMode, Mapping[int, float]]
    failed: Mapping[int, str] = field(default_factory=dict)
    left_out: Mapping[FusionMode, str] = field(default_factory=dict)

    @property
    def means(self) -> dict[FusionMode, float]:
        """Of the modes that have a value of every seed; none when a seed failed."""
        if self.failed:
            return {}
        seeds = max((len(values) for values in self.modes.values()), default=0)
        return {mode: fmean(values.values()) for mode, values in self.modes.items() if len(values) == seeds}


@dataclass(frozen=True)
class Finals:
    """What chose the winner among the best trials: the mean over several seeds, and its fusion mode with it.

    finalists: the best mean first, then those without one. mode: None when no finalist has a mean, so that the best
    trial of the search won as without them. modes: trial -> the mode that it was compared in.
    """

    seeds: tuple[int, ...]
    finalists: tuple[Finalist, ...]
    trial: int
    mode: FusionMode | None
    modes: Mapping[int, FusionMode] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The winner's, in its mode."""
        return None if self.mode is None else self.finalists[0].means[self.mode]

    @property
    def seeds_in_words(self) -> str:
        """`seed 11`, `seeds 11, 12 and 13`."""
        return f"seed{'s' if len(self.seeds) > 1 else ''} {in_words(self.seeds)}"


def in_words(numbers: Sequence[int]) -> str:
    """`11`, `11 and 12`, `11, 12 and 13`."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


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
    finals: Finals | None = None
    policy: PolicyFound | None = None
    confirmation: Confirmation | None = None
