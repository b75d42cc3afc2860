"""Kept events -> the split that each belongs to, by the protocol that the recipe names.

    leave_one_out  a user's last event = test, the one before = validation, the rest = train
    cold_items     items of two hash folds are held out with all their events (cold_test, cold_validation); the other
                   events of each user are split as in leave_one_out, users with fewer than three only train
    global_time    two moments cut the whole log: train, then validation, then test

Pure functions over frames: they know neither files nor vocabularies. Events come sorted by user, then time, equal
times in the order of the log; that order decides between events of one moment.
"""

from __future__ import annotations

import hashlib

import polars as pl

from llmrec_ray.config import DataConfig
from llmrec_ray.config.data import COLD_FOLDS, COLD_VALIDATION_FOLD
from llmrec_ray.errors import DataError
from llmrec_ray.types import Columns

__all__ = ["SPLIT_TYPE", "assign_splits", "cold_items", "global_time", "item_fold", "leave_one_out"]

SPLIT_TYPE = pl.Enum(["train", "validation", "test", "cold_validation", "cold_test"])
LEAST_EVENTS = 3
ROUNDING = 1e-9


def assign_splits(events: pl.DataFrame, data: DataConfig) -> pl.DataFrame:
    """The events (user_row, item_id, timestamp and more, sorted) with a column `split`.

    Raises DataError when the split that `data` names does not fit the events.
    """
    if data.split == "cold_items":
        return cold_items(events, data.cold_fold)
    if data.split == "global_time":
        return global_time(events, *data.time_shares)
    return leave_one_out(events)


def leave_one_out(events: pl.DataFrame) -> pl.DataFrame:
    """Every user's last event = test, second last = validation (protocol P).

    Raises DataError when a user has fewer than three events.
    """
    fewest = min(events.group_by(Columns.USER_ROW).len()["len"].to_list(), default=0)
    if fewest < LEAST_EVENTS:
        raise DataError(
            f"A user has only {fewest} events, but data.split leave_one_out needs {LEAST_EVENTS} (train, validation, "
            f"test): raise data.min_user_interactions to {LEAST_EVENTS} or more."
        )
    return _last_two_held_out(events.with_columns(pl.lit(None, pl.String).alias(Columns.SPLIT)))


def cold_items(events: pl.DataFrame, fold: int) -> pl.DataFrame:
    """Hold out the items of `fold` (cold_test) and of the validation fold; the rest as in leave_one_out.

    Raises DataError when a fold has no event, or no user has three events of other items.
    """
    ids = events[Columns.ITEM_ID].unique().to_list()
    folds = {"cold_test": fold, "cold_validation": COLD_VALIDATION_FOLD}
    held_out = {split: [item_id for item_id in ids if item_fold(item_id) == number] for split, number in folds.items()}
    for split, items in held_out.items():
        if not items:
            raise DataError(
                f"None of the {len(ids)} items with events is in fold {folds[split]} of {COLD_FOLDS}, which data.split "
                f"cold_items holds out as {split}: choose another data.cold_fold, or give more items."
            )
    marks = [pl.when(pl.col(Columns.ITEM_ID).is_in(items)).then(pl.lit(split)) for split, items in held_out.items()]
    marked = _last_two_held_out(events.with_columns(pl.coalesce(*marks).alias(Columns.SPLIT)))
    if not (marked[Columns.SPLIT] == "test").any():
        raise DataError(
            f"No user has {LEAST_EVENTS} events of items outside the held-out folds, so data.split cold_items leaves "
            "no validation or test event: give longer histories."
        )
    return marked


def global_time(events: pl.DataFrame, validation: float, test: float) -> pl.DataFrame:
    """The newest share `test` of all events = test, the newest share `validation` of the others = validation.

    Events of one moment stay together, with the older split. Raises DataError when the timestamps leave a split
    without an event, or when nobody with an event in validation or test has an earlier one.
    """
    moments = events[Columns.TIMESTAMP].sort()
    ends = [moments[len(moments) - 1 - int(len(moments) * share + ROUNDING)] for share in (validation + test, test)]
    moment = pl.col(Columns.TIMESTAMP)
    newest = pl.when(moment > ends[1]).then(pl.lit("test")).when(moment > ends[0]).then(pl.lit("validation"))
    marked = events.with_columns(newest.otherwise(pl.lit("train")).cast(SPLIT_TYPE).alias(Columns.SPLIT))
    empty = [name for name in ("validation", "test") if not (marked[Columns.SPLIT] == name).any()]
    if empty:
        raise DataError(
            f"data.split global_time with data.time_shares {validation:g} and {test:g} leaves {' and '.join(empty)} "
            f"without an event: {len(events)} events have {moments.n_unique()} distinct timestamps. Give events with "
            "times, other data.time_shares, or set data.split to leave_one_out."
        )
    _check_earlier_events(marked)
    return marked


def item_fold(item_id: str) -> int:
    """The fold of an item, 0 to 9: the SHA-256 of its id, as a number, modulo ten."""
    return int(hashlib.sha256(item_id.encode()).hexdigest(), 16) % COLD_FOLDS


def _last_two_held_out(events: pl.DataFrame) -> pl.DataFrame:
    """Fill the splits that are null: leave one out per user who has three of them, train for the other users."""
    free = pl.col(Columns.SPLIT).is_null().cast(pl.Int64)
    count = free.sum().over(Columns.USER_ROW)
    age = pl.when(count >= LEAST_EVENTS).then(count - free.cum_sum().over(Columns.USER_ROW))
    held_out = pl.when(age == 0).then(pl.lit("test")).when(age == 1).then(pl.lit("validation"))
    split = pl.coalesce(Columns.SPLIT, held_out, pl.lit("train"))
    return events.with_columns(split.cast(SPLIT_TYPE).alias(Columns.SPLIT))


def _check_earlier_events(marked: pl.DataFrame) -> None:
    has = [(pl.col(Columns.SPLIT) == name).any().alias(name) for name in ("train", "validation", "test")]
    users = marked.group_by(Columns.USER_ROW).agg(has)
    for name, earlier in (("validation", ["train"]), ("test", ["train", "validation"])):
        asked = users.filter(name)
        if not len(asked.filter(pl.any_horizontal(earlier))):
            raise DataError(
                f"None of the {len(asked)} users with an event in {name} has an earlier one, so data.split global_time "
                "has nothing to predict from: give users with longer histories, or other data.time_shares."
            )
