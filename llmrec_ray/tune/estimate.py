"""Records of trials -> draws of Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

It models all keys together (Falkner et al. 2018), in a study in memory that is made anew of the records each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform
from llmrec_ray.tune.records import TrialRecord, values_of
from llmrec_ray.tune.space import readable

__all__ = ["estimated"]


def estimated(
    space: Mapping[str, Domain], seed: int, number: int, records: Sequence[TrialRecord], metric: str
) -> Iterator[dict[str, Any]]:
    """Endless draws for trial `number`, each away from those before it and from trials that have no value yet."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chance = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=chance, n_startup_trials=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {key: _distribution(domain) for key, domain in space.items()}
    for record in records:
        study.add_trial(_told(record, space, distributions, metric))
    while True:
        drawn = study.ask(distributions).params
        yield {key: _value(drawn[key], domain) for key, domain in space.items()}


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution([*range(len(domain.choice))])
    if isinstance(domain, IntRange):
        return IntDistribution(*domain.int)
    if isinstance(domain, LogUniform):
        return FloatDistribution(*domain.loguniform, log=True)
    return FloatDistribution(*domain.uniform)


def _told(
    record: TrialRecord, space: Mapping[str, Domain], distributions: Mapping[str, BaseDistribution], metric: str
) -> FrozenTrial:
    """A trial that was trained to the end is complete. One that was stopped, or waits, is pruned: it comes after all
    complete ones, the earlier the fewer epochs it had. A failed one is the worst of all."""
    inside = {
        key: domain.choice.index(record.settings[key]) if isinstance(domain, Choice) else record.settings[key]
        for key, domain in space.items() if _holds(domain, record.settings.get(key))
    }
    known: dict[str, Any] = {"params": inside, "distributions": {key: distributions[key] for key in inside}}
    values = values_of(record, metric)
    if record.status == "failed":
        return create_trial(state=TrialState.PRUNED, **known)
    if not values:
        return create_trial(state=TrialState.RUNNING, **known)
    if record.status == "finished":
        return create_trial(value=max(values), **known)
    return create_trial(state=TrialState.PRUNED, intermediate_values={record.done: max(values)}, **known)


def _holds(domain: Domain, value: Any) -> bool:
    """Not, possibly, the recipe's own."""
    if isinstance(domain, Choice):
        return value in domain.choice
    low, high = next(iter(domain.model_dump().values()))
    return value is not None and bool(low <= value <= high)


def _value(drawn: Any, domain: Domain) -> Any:
    """What a recipe has for what Optuna drew: choices are drawn by their place."""
    if isinstance(domain, Choice):
        return domain.choice[drawn]
    if isinstance(domain, IntRange):
        return int(drawn)
    return readable(drawn, domain)
