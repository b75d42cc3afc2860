"""Records of trials -> one table, a row per trial and epoch, as `results.parquet` keeps it.

Columns, in this order: what is known of the trial, its settings by dotted key, what is known of the epoch.

    trial, status, reason, retried, started_at, trial_s, training_s
    train.learning_rate, fusion.mode, …     typed by their domain; with pbt, as they were in that epoch
    epoch, value, is_best, taken_from, …    then every other metric that trials reported, such as loss and ndcg@10

`value` is the maximised metric where it is a number, `is_best` marks one row per trial, of its best value, and
`taken_from` is the trial whose weights an epoch of pbt began with. A trial that ended before its first epoch has one
row, whose `epoch` is null. Does not know Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from llmrec_ray.config import Choice, Domain, IntRange, LogUniform, Uniform
from llmrec_ray.tune.records import TrialRecord

__all__ = ["results_table"]

TRIAL_COLUMNS: dict[str, Any] = {
    "trial": pl.Int64, "status": pl.String, "reason": pl.String, "retried": pl.String, "started_at": pl.String,
    "trial_s": pl.Float64, "training_s": pl.Float64,
}
EPOCH_COLUMNS: dict[str, Any] = {
    "epoch": pl.Int64, "value": pl.Float64, "is_best": pl.Boolean, "taken_from": pl.Int64,
}


def results_table(records: Sequence[TrialRecord], space: Mapping[str, Domain], metric: str) -> pl.DataFrame:
    """The table of the module's docstring, by trial and epoch. metric: key of an epoch's metrics that is `value`."""
    settings = _settings_types(records, space)
    metrics = _metric_types(records)
    types = TRIAL_COLUMNS | settings | EPOCH_COLUMNS | metrics
    rows = [row for record in sorted(records, key=lambda record: record.number) for row in _rows(record, metric)]
    columns = {name: [_fitting(row.get(name), kind) for row in rows] for name, kind in types.items()}
    return pl.DataFrame(columns, schema=types)


def _rows(record: TrialRecord, metric: str) -> list[dict[str, Any]]:
    trial = {
        "trial": record.number, "status": record.status, "reason": record.reason, "retried": record.retried,
        "started_at": record.started_at, "trial_s": record.seconds, "training_s": record.training_s,
    }
    if not record.epochs:
        return [trial | record.settings | {"is_best": False}]
    values = [_number(entry.get(metric)) for entry in record.epochs]
    best = max((value for value in values if value is not None), default=None)
    first_best = None if best is None else values.index(best)
    donors = {part.after_epoch + 1: part.taken_from for part in record.parts}
    return [
        {**entry, **trial, **record.settings_at(entry["epoch"]), "value": values[place],
         "is_best": place == first_best, "taken_from": donors.get(entry["epoch"])}
        for place, entry in enumerate(record.epochs)
    ]


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _settings_types(records: Sequence[TrialRecord], space: Mapping[str, Domain]) -> dict[str, Any]:
    """Of the space, then of whatever else trials were given."""
    tried: dict[str, list[Any]] = {key: [] for key in space}
    for record in records:
        for settings in (record.settings, *(part.settings for part in record.parts)):
            for key, value in settings.items():
                tried.setdefault(key, []).append(value)
    return {key: _domain_type(space.get(key), values) for key, values in tried.items()}


def _domain_type(domain: Domain | None, tried: Iterable[Any]) -> Any:
    if isinstance(domain, (LogUniform, Uniform)):
        return pl.Float64
    if isinstance(domain, IntRange):
        return pl.Int64
    return _common_type([*domain.choice, *tried] if isinstance(domain, Choice) else tried)


def _metric_types(records: Sequence[TrialRecord]) -> dict[str, Any]:
    reported: dict[str, list[Any]] = {}
    for record in records:
        for entry in record.epochs:
            for name, value in entry.items():
                reported.setdefault(name, []).append(value)
    known = {*EPOCH_COLUMNS, *TRIAL_COLUMNS}
    return {name: _common_type(values) for name, values in reported.items() if name not in known}


def _common_type(values: Iterable[Any]) -> Any:
    """The narrowest type that holds all of them; text, as JSON, when there is none."""
    given = [value for value in values if value is not None]
    kinds = {type(value) for value in given}
    if kinds == {bool}:
        return pl.Boolean
    if kinds and kinds <= {int, float}:
        return pl.Int64 if kinds == {int} else pl.Float64
    if kinds == {list} and all(_is_curve(value) for value in given):
        return pl.List(pl.List(pl.Float64))
    return pl.String


def _is_curve(value: list[Any]) -> bool:
    """[[share, value], …]"""
    return all(isinstance(point, list) and all(type(part) in {int, float} for part in point) for point in value)


def _fitting(value: Any, kind: Any) -> Any:
    if kind == pl.String and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if kind == pl.Float64 and value is not None:
        return float(value)
    if kind == pl.List(pl.List(pl.Float64)) and value is not None:
        return [[float(part) for part in point] for point in value]
    return value
