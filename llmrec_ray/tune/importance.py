"""Records of trials -> how much each setting mattered, by functional ANOVA over a random forest (Hutter et al. 2014).

The forest learns to predict a trial's value from its settings; a setting's share is the part of the variance of those
predictions, over the whole space, that it explains alone. Trials that were trained unequally long are compared at the
last epoch that all reached, or the share of a setting would be that of having been stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform
from llmrec_ray.tune.records import TrialRecord, values_of

__all__ = ["Importance", "parameter_importance"]

Array: TypeAlias = NDArray[np.float64]

FEWEST_TRIALS, PER_SETTING = 8, 2
TREES = 100
POOR_FIT = 0.2
SAME = 1e-12


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


@dataclass(frozen=True)
class _Setting:
    """A setting as a forest sees it. matrix: [R, columns], one column from 0 to 1 for a number, one per choice."""

    key: str
    matrix: Array
    is_choice: bool

    @staticmethod
    def of(key: str, domain: Domain, tried: Sequence[Any]) -> _Setting:
        """From its domain, widened to what was tried: the recipe's own value may lie outside."""
        if isinstance(domain, Choice):
            said = np.array([_text(value) for value in tried])
            options = sorted({*said.tolist(), *(_text(value) for value in domain.choice)})
            return _Setting(key, np.stack([said == option for option in options], axis=1).astype(np.float64), True)
        ends, scale = _ends(domain)
        places = np.array([scale(value) for value in (*ends, *tried)])
        low, high = float(places.min()), float(places.max())
        return _Setting(key, ((places[2:] - low) / (high - low))[:, None], False)

    def cells(self, lows: Array, highs: Array) -> tuple[Array, Array]:
        """Which cells leaves [L, columns] cover, [L, C] of 0 and 1, and the widths [C] of cells, sum 1."""
        if self.is_choice:
            options = np.eye(self.matrix.shape[1])
            covers = ((lows[:, None] < options) & (options <= highs[:, None])).all(axis=2)
            return np.asarray(covers, np.float64), np.full(len(options), 1 / len(options))
        edges = np.unique(np.clip(np.concatenate([[0.0, 1.0], lows[:, 0], highs[:, 0]]), 0.0, 1.0))
        middles = (edges[1:] + edges[:-1]) / 2
        return np.asarray((lows < middles) & (middles <= highs), np.float64), np.diff(edges)


def parameter_importance(
    records: Sequence[TrialRecord], space: Mapping[str, Domain], metric: str, *, seed: int = 0
) -> Importance:
    """Shares of the settings of `space`, the same for the same records and seed."""
    scored = [record for record in records if record.status != "failed" and values_of(record, metric)]
    columns = {key: [_placed(domain, record.settings.get(key)) for record in scored] for key, domain in space.items()}
    varied = {key: column for key, column in columns.items() if len({_text(value) for value in column}) > 1}
    fewest = max(FEWEST_TRIALS, PER_SETTING * len(varied))
    if len(scored) < fewest:
        return Importance({}, f"{len(scored)} trial{'s' * (len(scored) != 1)} with a value cannot tell which setting "
                              f"mattered: that takes at least {fewest}.")
    epoch = _common_epoch(scored)
    values = np.array([_value_by(record, metric, epoch) for record in scored])
    if not varied or np.ptp(values) < SAME:
        return Importance({}, "All trials came out alike, so no setting made a difference.")
    settings = [_Setting.of(key, space[key], column) for key, column in varied.items()]
    forest = _trained_forest(settings, values, seed)
    fit = float(forest.oob_score_)
    return Importance(_shares(forest, settings), _trust(fit, len(scored)), epoch, len(scored), fit)


def _placed(domain: Domain, value: Any) -> Any:
    """A recipe's own 0 counts as the lower end of orders of magnitude, a number that a trial left empty, as one without
    effect beside its other settings, as the middle of its range."""
    if isinstance(domain, LogUniform):
        low, high = domain.loguniform
        return math.sqrt(low * high) if value is None else max(value, low) if value <= 0 else value
    if value is None and not isinstance(domain, Choice):
        return sum(_ends(domain)[0]) / 2
    return value


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


def _trained_forest(settings: Sequence[_Setting], values: Array, seed: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    matrix = np.column_stack([setting.matrix for setting in settings])
    return RandomForestRegressor(n_estimators=TREES, oob_score=True, random_state=seed, n_jobs=1).fit(matrix, values)


def _shares(forest: Any, settings: Sequence[_Setting]) -> dict[str, float]:
    """Mean over the trees of V_s / V; trees that predict the same everywhere say nothing."""
    by_tree = [shares for tree in forest.estimators_ if (shares := _shares_of(tree.tree_, settings)) is not None]
    means = np.mean(by_tree, axis=0) if by_tree else np.zeros(len(settings))
    named = zip((setting.key for setting in settings), means.tolist(), strict=True)
    return dict(sorted(named, key=lambda item: -item[1]))


def _shares_of(tree: Any, settings: Sequence[_Setting]) -> Array | None:
    """[S] the variance of a tree's predictions that each setting explains alone, over all of it.

    A tree is constant on its L leaves. Of each setting, `inside` [L, C] says which of C cells of the setting a leaf
    covers, `widths` [C] how much of the space they are; a leaf's volume is the product over settings of what it covers.
    """
    lows, highs, predicted = _leaves(tree, sum(setting.matrix.shape[1] for setting in settings))
    cells, first = [], 0
    for setting in settings:
        last = first + setting.matrix.shape[1]
        cells.append(setting.cells(lows[:, first:last], highs[:, first:last]))
        first = last
    covered = np.stack([inside @ widths for inside, widths in cells])
    volumes = covered.prod(axis=0)
    mean = volumes @ predicted
    variance = volumes @ predicted**2 - mean**2
    if variance < SAME:
        return None
    alone = np.zeros(len(settings))
    for place, (inside, widths) in enumerate(cells):
        marginal = (predicted * volumes / covered[place]) @ inside
        alone[place] = widths @ marginal**2 - mean**2
    return np.asarray(np.clip(alone / variance, 0.0, 1.0), np.float64)


def _leaves(tree: Any, n_columns: int) -> tuple[Array, Array, Array]:
    """Each leaf's box, lows and highs [L, columns], above the one and at most the other; and its prediction [L]."""
    found: list[tuple[Array, Array, float]] = []
    waiting = [(0, np.full(n_columns, -np.inf), np.full(n_columns, np.inf))]
    while waiting:
        node, low, high = waiting.pop()
        if tree.children_left[node] < 0:
            found.append((low, high, float(tree.value[node, 0, 0])))
            continue
        column, threshold = tree.feature[node], tree.threshold[node]
        left_high, right_low = high.copy(), low.copy()
        left_high[column] = right_low[column] = threshold
        waiting += [(tree.children_left[node], low, left_high), (tree.children_right[node], right_low, high)]
    lows, highs, predicted = zip(*found, strict=True)
    return np.stack(lows), np.stack(highs), np.array(predicted)


def _ends(domain: Domain) -> tuple[tuple[float, float], Callable[[float], float]]:
    if isinstance(domain, LogUniform):
        return domain.loguniform, math.log
    assert not isinstance(domain, Choice), "ends of a choice. This is a bug."
    return (domain.int if isinstance(domain, IntRange) else domain.uniform), float


def _text(value: Any) -> str:
    """Any choice as text, so that lists and mappings can be told apart too."""
    return json.dumps(value, sort_keys=True)
