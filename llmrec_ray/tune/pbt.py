"""Records at one epoch -> whose weights a trial goes on with: population-based training (Jaderberg et al. 2017).

After every few epochs the worst trials take over weights and settings of the best ones, and change the settings a
little. A pure rule: chances follow from the seed, the trial and the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform, TuneConfig, Uniform
from llmrec_ray.tune.records import TrialRecord
from llmrec_ray.tune.space import readable

__all__ = ["Exploit", "next_step"]

STEP, LEAST_STEP = 0.2, 0.02
"""Of the value, and of the range, so that a setting of 0 can leave it."""
ATTEMPTS = 20


@dataclass(frozen=True)
class Exploit:
    """Go on with the weights of trial `donor` and with these settings, all of them; `reason` in words."""

    donor: int
    settings: dict[str, Any]
    reason: str


def next_step(
    record: TrialRecord,
    epoch: int,
    records: Sequence[TrialRecord],
    config: TuneConfig,
    space: Mapping[str, Domain],
    seed: int,
    metric: str,
    *,
    is_possible: Callable[[Mapping[str, Any]], bool] = lambda settings: True,
) -> Exploit | None:
    """What a trial does after `epoch`: None goes on as it is.

    Compared are the values of that very epoch, not the best up to it, since those are of the weights that would be
    taken over; a value that is not finite is the worst. Failed trials are no rivals. The worst `quantile` of those that
    got there, at least one, take over from the best `quantile`, unless they are as good.
    is_possible: whether settings can be trained; after some attempts only those change that go with the donor's others.
    """
    values = _values(records, metric, epoch)
    ranking = sorted(values, key=lambda number: (-values[number], number))
    places = max(1, math.floor(len(ranking) * config.pbt_rules.quantile))
    if len(ranking) < 2 or record.number not in ranking[-places:]:
        return None
    random = np.random.default_rng([seed, record.number, epoch])
    donor = ranking[int(random.integers(places))]
    if not values[donor] > values[record.number]:
        return None
    settings = next(other for other in records if other.number == donor).settings_at(epoch)
    return Exploit(donor, _explored(settings, space, random, is_possible), (
        f"epoch {epoch}: {_shown(values[record.number])} is among the worst {places} of {len(ranking)} trials; goes on "
        f"from trial {donor} with {_shown(values[donor])}"
    ))


def _values(records: Sequence[TrialRecord], metric: str, epoch: int) -> dict[int, float]:
    """By number, those of exactly that epoch; -inf where it was reached without a finite value."""
    reached = {
        record.number: entry.get(metric)
        for record in records if record.status != "failed" for entry in record.epochs if entry["epoch"] == epoch
    }
    return {
        number: float(value) if value is not None and math.isfinite(value) else -math.inf
        for number, value in reached.items()
    }


def _shown(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "no finite value"


def _explored(
    settings: Mapping[str, Any], space: Mapping[str, Domain], random: np.random.Generator,
    is_possible: Callable[[Mapping[str, Any]], bool],
) -> dict[str, Any]:
    changed = dict(settings)
    for _ in range(ATTEMPTS):
        changed = {
            key: _changed(value, space[key], random) if key in space else value for key, value in settings.items()
        }
        if is_possible(changed):
            return changed
    kept = dict(settings)
    for key, value in changed.items():  # one that has no effect beside the others must stay, and the rest may change
        if is_possible(kept | {key: value}):
            kept[key] = value
    return kept


def _changed(value: Any, domain: Domain, random: np.random.Generator) -> Any:
    """A neighbour of a value within its domain."""
    if isinstance(domain, Choice):
        return _neighbour(value, domain.choice, random)
    up = bool(random.integers(2))
    if isinstance(domain, LogUniform):
        return readable(value * (1.0 + STEP if up else 1.0 - STEP), domain)
    low, high = domain.int if isinstance(domain, IntRange) else domain.uniform
    step = max(STEP * abs(value), LEAST_STEP * (high - low))
    if isinstance(domain, Uniform):
        return readable(value + step if up else value - step, domain)
    whole = max(1, round(step))
    return int(min(max(value + whole if up else value - whole, low), high))


def _neighbour(value: Any, choices: Sequence[Any], random: np.random.Generator) -> Any:
    """The choice before, the same, or the one after it."""
    if value not in choices:
        return choices[int(random.integers(len(choices)))]
    place = choices.index(value) + int(random.integers(-1, 2))
    return choices[min(max(place, 0), len(choices) - 1)]
