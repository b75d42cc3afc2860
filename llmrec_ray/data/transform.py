"""All events of some users, in the order of the log -> the events worth keeping, sorted by user and time, and a count
for every filter; no row leaves uncounted.

It knows neither files nor other users, so it gives the same for any users that are transformed together. Of two events
of one moment the one that the log has first is the earlier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.config import DataConfig
from llmrec_ray.config.data import Repeats, TimeWindow
from llmrec_ray.data.robots import robot_users
from llmrec_ray.data.sessions import session_ordinals
from llmrec_ray.types import Columns, IntArray

__all__ = ["Transformed", "transform"]


@dataclass(frozen=True)
class Transformed:
    """Kept events, and how many rows each filter dropped, in the order the filters ran."""

    events: pl.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)

    def keep(self, filter_name: str, condition: pl.Series | pl.Expr) -> Transformed:
        """Keep rows where the condition holds; the others are counted under the filter's name."""
        kept = self.events.filter(condition)
        return Transformed(kept, {**self.dropped, filter_name: len(self.events) - len(kept)})


def transform(events: pl.DataFrame, data: DataConfig, newest: datetime | None) -> Transformed:
    """Apply what `data` asks for, in this order, and nothing else.

        outside_window  events before or after data.window
        repeated_event  an event id that its user had before in the log
        robot_user      all events of the users that data.robots names
        (sessions       numbered while all events of a person are there)
        repeated_pair   several events of a user with an item become one
        old_event       all but a user's newest events

    events: user_id and item_id as text or as numbers that are ordered like it, timestamp, value, and event, event_id,
    session and others where there are any. newest: the newest event of the whole log, for `window.days`.
    The answer has the same columns, sorted by user_id, then time, and where the recipe has sessions their number
    within the user, Int32 from 0; numbers of sessions of which no event is kept are missing.
    """
    done = _in_window(Transformed(events), data.window, newest)
    if _has_event_ids(data):
        done = done.keep("repeated_event", _first_of_its_id(done.events))
    done = Transformed(_in_order(done.events), done.dropped)
    if data.robots.model_dump(exclude_none=True):
        users = _user_numbers(done.events)
        robots = robot_users(users, _pairs(done.events), _moments(done.events), data.robots)
        done = done.keep("robot_user", pl.Series(~robots[users]))
    if _has_sessions(data):
        done = Transformed(_with_sessions(done.events, data.session_gap_s), done.dropped)
    done = _one_per_pair(done, data.repeats)
    if data.window.max_events_per_user is not None:
        done = done.keep("old_event", _among_newest(done.events, data.window.max_events_per_user))
    return done


def _in_window(done: Transformed, window: TimeWindow, newest: datetime | None) -> Transformed:
    since, until = window.since, window.until
    if window.days is not None and newest is not None:
        last = newest if until is None else min(newest, until)
        oldest = last - timedelta(days=window.days)
        since = oldest if since is None else max(since, oldest)
    if since is None and until is None:
        return done
    moment = pl.col(Columns.TIMESTAMP)
    return done.keep("outside_window", pl.all_horizontal(
        pl.lit(True) if since is None else moment >= since, pl.lit(True) if until is None else moment < until
    ))


def _has_event_ids(data: DataConfig) -> bool:
    return bool(data.feedback) or any(log.columns.event_id is not None for log in data.interactions)


def _has_sessions(data: DataConfig) -> bool:
    return data.session_gap_s is not None or any(log.columns.session is not None for log in data.interactions)


def _first_of_its_id(events: pl.DataFrame) -> pl.Series:
    if Columns.EVENT_ID not in events.columns:
        return pl.repeat(True, len(events), eager=True)
    first = pl.struct(Columns.USER_ID, Columns.EVENT_ID).is_first_distinct()
    return events.select(pl.col(Columns.EVENT_ID).is_null() | first).to_series()


def _in_order(events: pl.DataFrame) -> pl.DataFrame:
    """Two sorts of numbers cost a third of one by two columns."""
    by_time = _stable_order(events[Columns.TIMESTAMP].to_physical())
    by_user = _stable_order(_numbers(events[Columns.USER_ID]).gather(by_time))
    return events[by_time.gather(by_user)]


def _stable_order(numbers: pl.Series) -> pl.Series:
    return numbers.to_frame("number").select(pl.arg_sort_by("number", maintain_order=True)).to_series()


def _numbers(ids: pl.Series) -> pl.Series:
    """Numbers in the order of the ids, fit for 32 bits where they are text."""
    return ids if ids.dtype.is_integer() else ids.cast(pl.Enum(ids.unique().sort())).to_physical()


def _user_numbers(events: pl.DataFrame) -> IntArray:
    """The place of each event's user among those of the frame, [E]; events are sorted."""
    return events[Columns.USER_ID].rle_id().cast(pl.Int64).to_numpy()


def _pairs(events: pl.DataFrame) -> pl.Series:
    """One number per (user, item), uint64; the user's place is in its upper half."""
    users = events[Columns.USER_ID].rle_id().cast(pl.UInt64)
    return users * 2**32 + _numbers(events[Columns.ITEM_ID]).cast(pl.UInt64)


def _moments(events: pl.DataFrame) -> IntArray:
    return events[Columns.TIMESTAMP].dt.epoch("us").to_numpy()


def _with_sessions(events: pl.DataFrame, gap_s: float | None) -> pl.DataFrame:
    named = events[Columns.SESSION] if Columns.SESSION in events.columns else None
    ordinals = session_ordinals(_user_numbers(events), _moments(events), named, gap_s)
    return events.with_columns(ordinals.alias(Columns.SESSION))


def _one_per_pair(done: Transformed, repeats: Repeats) -> Transformed:
    pairs = _pairs(done.events)
    kept = pairs.is_last_distinct() if repeats == "last" else pairs.is_first_distinct()
    result = done.keep("repeated_pair", kept)
    if repeats in ("first", "last") or len(result.events) == len(done.events):
        return result
    values = _pair_values(pairs, done.events[Columns.VALUE].to_numpy(), repeats)
    return Transformed(result.events.with_columns(pl.Series(Columns.VALUE, values, pl.Float32)), result.dropped)


def _pair_values(pairs: pl.Series, values: NDArray[np.float32], repeats: Repeats) -> NDArray[np.floating[Any]]:
    """The sum or the greatest value of each pair, in the order of the pairs' first events.

    Values are added one after another in the order of the events, so that the sum does not depend on what else is in
    the frame.
    """
    order = _stable_order(pairs).to_numpy()
    ordered = pairs.to_numpy()[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if repeats == "max":
        totals = np.maximum.reduceat(values[order], starts)
    else:
        groups = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
        totals = np.bincount(groups, weights=values[order])
    return totals[np.argsort(order[starts])]


def _among_newest(events: pl.DataFrame, most: int) -> pl.Series:
    user = events[Columns.USER_ID]
    return (user != user.shift(-most)).fill_null(True)
