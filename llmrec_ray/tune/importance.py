"""Records of trials -> how much each setting mattered, by functional ANOVA over a random forest (Hutter et al. 2014).

The forest learns to predict a trial's value from its settings; a setting's share is the part of the variance of those
predictions, over the whole space, that it explains alone. Trials that were trained unequally long are compared at the
last epoch that all reached, or the share of a setting would be that of having been stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform
from llmrec_ray.tune.records import TrialRecord, values_of
from llmrec_ray.types import FloatArray

__all__ = ["Importance", "parameter_importance"]

FEWEST_TRIALS, PER_SETTING = 8, 2
TREES = 100
POOR_FIT = 0.2


@dataclass(frozen=True)
class Importance:
    """shares: dotted key -> share that it explains alone, largest first, sum at most 1; empty when nothing can be said.

    note: why nothing can be said, or how far to trust it. epoch: at which trials were compared. trials: how many.
    fit: R² on trials that trees had not seen, at most 1; near 0 or below, settings do not predict values.
    """

    shares: dict[str, float]
    note: str
    epoch: int = 0
    trials: int = 0
    fit: float = 0.0

    @property
    def jointly(self) -> float:
        """What settings explain only together."""
        return max(0.0, 1.0 - sum(self.shares.values()))


def parameter_importance(
    records: Sequence[TrialRecord], space: Mapping[str, Domain], metric: str, *, seed: int = 0
) -> Importance:
    """Shares of the settings of `space`, the same for the same records and seed."""
    scored = [record for record in records if record.status != "failed" and values_of(record, metric)]
    columns = {key: [_positive(domain, record.settings.get(key)) for record in scored] for key, domain in space.items()}
    varied = {key: column for key, column in columns.items() if len({_text(value) for value in column}) > 1}
    fewest = max(FEWEST_TRIALS, PER_SETTING * len(varied))
    if len(scored) < fewest:
        return Importance({}, f"{len(scored)} trial{'s' * (len(scored) != 1)} with a value cannot tell which setting "
                              f"mattered: that takes at least {fewest}.")
    epoch = _common_epoch(scored)
    values = np.array([_value_by(record, metric, epoch) for record in scored])
    if not varied or np.ptp(values) < 1e-9:
        return Importance({}, "All trials came out alike, so no setting made a difference.")
    fit = _unseen_fit(varied, space, values, seed)
    shares = _shares(varied, space, values, seed)
    return Importance(shares, _trust(fit, len(scored)), epoch, len(scored), fit)


def _positive(domain: Domain, value: Any) -> Any:
    """A recipe's own 0 counts as the lower end of orders of magnitude."""
    return max(value, domain.loguniform[0]) if isinstance(domain, LogUniform) and value <= 0 else value


def _common_epoch(records: Sequence[TrialRecord]) -> int:
    """The last epoch that all reached, but for those that were finished earlier of themselves."""
    ended = [record.done for record in records if record.status != "finished"]
    return min(ended, default=max(record.done for record in records))


def _value_by(record: TrialRecord, metric: str, epoch: int) -> float:
    early = record.model_copy(update={"epochs": [entry for entry in record.epochs if entry["epoch"] <= epoch]})
    return max(values_of(early, metric) or values_of(record, metric))


def _trust(fit: float, trials: int) -> str:
    if fit < POOR_FIT:
        return (
            "Take these with care: from the settings alone, values of trials left out of the forest cannot be foretold "
            f"(R² {fit:.2f} over {trials} trials)."
        )
    return f"From the settings alone, values of trials left out of the forest are foretold with R² {fit:.2f}."


def _unseen_fit(
    columns: Mapping[str, Sequence[Any]], space: Mapping[str, Domain], values: FloatArray, seed: int
) -> float:
    from sklearn.ensemble import RandomForestRegressor

    matrix = np.column_stack([part for key, tried in columns.items() for part in _encoded(space[key], tried)])
    forest = RandomForestRegressor(n_estimators=TREES, oob_score=True, random_state=seed, n_jobs=1)
    return float(forest.fit(matrix, values).oob_score_)


def _encoded(domain: Domain, tried: Sequence[Any]) -> list[FloatArray]:
    """Columns of one setting: one for a number, one per value for a choice."""
    if isinstance(domain, Choice):
        said = [_text(value) for value in tried]
        return [np.array([each == value for each in said], np.float64) for value in sorted({*said})]
    scale = math.log if isinstance(domain, LogUniform) else float
    return [np.array([scale(value) for value in tried])]


def _shares(
    columns: Mapping[str, Sequence[Any]], space: Mapping[str, Domain], values: FloatArray, seed: int
) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions, tried = {}, {}
    for key, column in columns.items():
        distributions[key], tried[key] = _as_optuna(space[key], column)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    study.add_trials([
        optuna.trial.create_trial(
            params={key: column[n] for key, column in tried.items()}, distributions=distributions, value=float(value)
        ) for n, value in enumerate(values)
    ])
    shares = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=seed).evaluate(study)
    return {key: float(share) for key, share in sorted(shares.items(), key=lambda item: -item[1])}


def _as_optuna(domain: Domain, tried: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The domain, widened to what was tried, since the recipe's own value may lie outside; and the values in it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        said = [_text(value) for value in tried]
        return CategoricalDistribution(sorted({*said, *(_text(value) for value in domain.choice)})), said
    if isinstance(domain, IntRange):
        return IntDistribution(min(*domain.int, *tried), max(*domain.int, *tried)), [*tried]
    is_log = isinstance(domain, LogUniform)
    low, high = domain.loguniform if isinstance(domain, LogUniform) else domain.uniform
    return FloatDistribution(min(low, *tried), max(high, *tried), log=is_log), [float(value) for value in tried]


def _text(value: Any) -> str:
    """Any choice as text, since Optuna knows plain values only."""
    return json.dumps(value, sort_keys=True)
