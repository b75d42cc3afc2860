"""Records of earlier trials -> the settings of the next: by chance, or by Optuna's tree-structured Parzen estimator.

Pure: the same records give the same settings, so a campaign that was killed goes on as if nothing had happened, and no
state of a searcher has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats.qmc import Sobol

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform, Recipe, TuneConfig
from llmrec_ray.errors import ConfigError
from llmrec_ray.tune.records import TrialRecord, values_of
from llmrec_ray.tune.space import current_settings, grid, is_possible, readable

__all__ = ["suggest"]

ATTEMPTS = 50
STARTUP_SHARE, MOST_STARTUP = 0.6, 10
"""Of all trials, by chance, before the estimator has something to go by; fewer did worse in short campaigns."""

Settings = dict[str, Any]


def suggest(
    config: TuneConfig,
    space: Mapping[str, Domain],
    seed: int,
    number: int,
    records: Sequence[TrialRecord],
    metric: str,
    recipe: Recipe,
) -> Settings:
    """Settings of trial `number`: values by dotted key of the space, which the recipe allows and no earlier trial had.

    Trial 0 is the recipe as it is. `random` follows from the seed and the number, and spreads trials by a scrambled
    Sobol sequence (Bergstra and Bengio 2012, section 4); so does `tpe` at first, then it learns from the others.
    Numbers that have no effect beside the other settings stay as the recipe has them.
    Raises ConfigError when nothing is left to try.
    """
    own = current_settings(recipe, space)
    if number == 0:
        return own
    tried = [own, *(record.settings for record in records if record.number < number)]
    told = [record for record in records if record.status == "failed" or values_of(record, metric)]
    guided = config.algorithm == "tpe" and len(told) >= _startup(config)
    ordered = dict(sorted(space.items()))  # whatever order a recipe names them in
    draws = _by_estimate(ordered, seed, number, records, metric) if guided else _by_chance(ordered, seed, number)
    for _ in range(ATTEMPTS if space else 0):
        settings = _allowed(recipe, space, own, next(draws))
        if settings is not None and settings not in tried:
            return settings
    return _first_untried(recipe, space, tried)


def _startup(config: TuneConfig) -> int:
    return min(MOST_STARTUP, math.ceil(STARTUP_SHARE * config.trials))


def _by_chance(space: Mapping[str, Domain], seed: int, number: int) -> Iterator[Settings]:
    """The trial's own point of a sequence that fills the space evenly, then any points."""
    sequence = Sobol(len(space), rng=np.random.default_rng(seed))
    if number > 1:
        sequence.fast_forward(number - 1)
    yield _at(space, sequence.random()[0])
    random = np.random.default_rng([seed, number])
    while True:
        yield _at(space, random.random(len(space)))


def _at(space: Mapping[str, Domain], point: NDArray[np.float64]) -> Settings:
    """The settings at a point of the unit cube."""
    return {key: _value(domain, float(place)) for (key, domain), place in zip(space.items(), point, strict=True)}


def _value(domain: Domain, place: float) -> Any:
    """The value at a place from 0 to 1 of a domain."""
    if isinstance(domain, Choice):
        return domain.choice[int(place * len(domain.choice))]
    if isinstance(domain, IntRange):
        first, last = domain.int
        return first + int(place * (last - first + 1))
    if isinstance(domain, LogUniform):
        low, high = domain.loguniform
        return readable(low * (high / low) ** place, domain)
    low, high = domain.uniform
    return readable(low + place * (high - low), domain)


def _by_estimate(
    space: Mapping[str, Domain], seed: int, number: int, records: Sequence[TrialRecord], metric: str
) -> Iterator[Settings]:
    from llmrec_ray.tune.estimate import estimated  # Optuna takes half a second to import

    return estimated(space, seed, number, records, metric)


def _allowed(recipe: Recipe, space: Mapping[str, Domain], own: Settings, drawn: Settings) -> Settings | None:
    """What was drawn, with as many of its numbers as the recipe allows beside its choices; None when these alone do
    not go together."""
    if is_possible(recipe, drawn):
        return {key: drawn[key] for key in space}
    settings = {key: drawn[key] if isinstance(domain, Choice) else own[key] for key, domain in space.items()}
    if not is_possible(recipe, settings):
        return None
    for key in space:
        if is_possible(recipe, settings | {key: drawn[key]}):
            settings[key] = drawn[key]
    return settings


def _first_untried(recipe: Recipe, space: Mapping[str, Domain], tried: Sequence[Settings]) -> Settings:
    """Of a space that can be listed; tried: the recipe's own settings, then those of all trials. Raises ConfigError."""
    for settings in grid(space) or ():
        if settings not in tried and is_possible(recipe, settings):
            return settings
    trials = len(tried) - 1
    raise ConfigError(
        f"Of tune.search ({', '.join(space)}) no settings are left that were not tried and go together, after "
        f"{trials} trials and {ATTEMPTS} attempts: lower tune.trials to {trials}, or search wider ranges."
    )
