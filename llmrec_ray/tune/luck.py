"""Winner and recipe on the same fresh seeds -> is the winner better, or was it lucky; and what the search made of it.

Pure figures and sentences: nothing is trained or read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

from llmrec_ray.tune.outcome import Confirmation

__all__ = ["Gap", "Paired", "gap", "paired"]

Verdict: TypeAlias = Literal[
    "better", "worse", "no difference shown", "one seed only", "not compared", "the recipe itself"
]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """Winner - recipe on the seeds that both have.

    mean: 0 without any seed, as winner and recipe, the means of both. sd: standard deviation over the seeds; low, high:
    Student's 95 % interval of the mean; all None with fewer than two seeds. same: the winner is the recipe itself.
    """

    differences: Mapping[int, float]
    mean: float
    winner: float
    recipe: float
    sd: float | None
    low: float | None
    high: float | None
    same: bool = False

    @property
    def ahead(self) -> int:
        """Seeds on which the winner is strictly better."""
        return sum(difference > 0 for difference in self.differences.values())

    @property
    def verdict(self) -> Verdict:
        """Better or worse only when the whole interval is on that side."""
        if not self.differences:
            return "not compared"
        if self.same:
            return "the recipe itself"
        if self.low is None or self.high is None:
            return "one seed only"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"

    def sentence(self, metric: str) -> str:
        """The comparison in words. metric: as people know it, such as NDCG@10."""
        if not self.differences:
            return "Winner and recipe share no fresh seed, so nobody knows whether the winner was lucky."
        n = len(self.differences)
        if self.same:
            seeds = "one fresh seed" if n == 1 else f"{n} fresh seeds on average"
            return f"The winner is the recipe as it is, with {self.winner:.4f} {metric} on {seeds}: nothing to compare."
        seeds = f"{self.ahead} of {n} fresh seed{'s' if n > 1 else ''}"
        counted = f"The winner is better on {seeds}, by {self.mean:+.4f} {metric}"
        both = f"{self.winner:.4f} against {self.recipe:.4f}"
        if self.sd is None:
            return f"{counted}, {both}; one seed cannot tell that from luck."
        reach = f"95 % interval {self.low:+.4f} to {self.high:+.4f}"
        spread = f"on average, {both} (standard deviation {self.sd:.4f}, {reach})"
        said: dict[Verdict, str] = {
            "better": "more than the luck of the seed", "worse": "the recipe as it is does better",
            "no difference shown": f"{n} seeds do not tell that from luck",
        }
        return f"{counted} {spread}: {said[self.verdict]}."


def paired(confirmation: Confirmation) -> Paired:
    """Compare by the seeds of which both have a figure that is a number."""
    seeds = [
        seed for seed, value in confirmation.winner.items()
        if math.isfinite(value - confirmation.default.get(seed, math.nan))
    ]
    ours, theirs = (np.array([each[seed] for seed in seeds]) for each in (confirmation.winner, confirmation.default))
    values = ours - theirs
    differences = dict(zip(seeds, values.tolist(), strict=True))
    mean, winner, recipe = (float(figures.mean()) if seeds else 0.0 for figures in (values, ours, theirs))
    same = confirmation.same
    if same or len(seeds) < 2:
        return Paired(differences, mean, winner, recipe, None, None, None, same)
    sd = float(values.std(ddof=1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Paired(differences, mean, winner, recipe, sd, mean - reach, mean + reach)


@dataclass(frozen=True)
class Gap:
    """The winner's figure at each step away from what it was chosen by.

    search: its value in the search, or among finalists when `by_finalists`. fresh: mean on validation over fresh seeds.
    validation, test: of the one model that looked at test. None where there is no such figure.
    """

    search: float
    fresh: float | None
    validation: float | None
    test: float | None
    by_finalists: bool = False

    @property
    def flattered(self) -> float | None:
        """How much higher the search saw the winner than fresh seeds do."""
        return None if self.fresh is None else self.search - self.fresh

    @property
    def generalisation(self) -> float | None:
        """How much higher the same model stands on validation than on test."""
        return None if self.validation is None or self.test is None else self.validation - self.test

    def sentence(self, metric: str) -> str:
        """Both gaps in words, as far as they are known."""
        said = []
        if self.flattered is not None:
            saw = "Its seeds as a finalist gave" if self.by_finalists else "The search saw"
            said.append(
                f"{saw} {self.search:.4f} {metric} for the winner, fresh seeds give {self.fresh:.4f} on the "
                f"same split ({_signed(-self.flattered)}): the part that was chance of the trial."
            )
        if self.generalisation is not None:
            said.append(
                f"The one model that was scored on test has {self.validation:.4f} on validation and {self.test:.4f} on "
                f"test ({_signed(-self.generalisation)}): what was fitted to validation, and how test differs."
            )
        return " ".join(said)


def gap(search: float, confirmation: Confirmation, *, by_finalists: bool = False) -> Gap:
    """search: the winner's value that it was chosen by, best measured as `confirmation` was."""
    values = [value for value in confirmation.winner.values() if math.isfinite(value)]
    scored = None if confirmation.test_seed is None else confirmation.winner.get(confirmation.test_seed)
    return Gap(search, float(np.mean(values)) if values else None, scored, confirmation.test, by_finalists)


def _signed(difference: float) -> str:
    return f"{difference:+.4f}"
