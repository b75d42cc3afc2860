"""Encoded ranges and rows for their ids -> the Parquet parts of a Dataset's interactions, in order of user rows.

A part begins with the user whose first event is the first at or after a multiple of PART_ROWS; so parts depend on the
events alone, and no user's history is cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from llmrec_ray.data.encoded import EncodedRange
from llmrec_ray.types import Columns, IntArray

__all__ = ["FIRST", "PART_ROWS", "NumberedRange", "PartPlan", "part_events", "plan_parts"]

PART_ROWS = 1_000_000
FIRST = (Columns.USER_ROW, Columns.ITEM_ROW, Columns.TIMESTAMP, Columns.VALUE)


@dataclass(frozen=True)
class NumberedRange:
    """A range, and the file with the row of each of its users ([U] int64, -1 for those without an event)."""

    encoded: EncodedRange
    user_rows: Path
    first: int
    last: int


@dataclass(frozen=True)
class PartPlan:
    """The users `start` to `stop` (exclusive) make part `number`, out of these ranges."""

    number: int
    start: int
    stop: int
    ranges: tuple[NumberedRange, ...]


def plan_parts(events_per_user: IntArray, ranges: Sequence[NumberedRange]) -> list[PartPlan]:
    """Cut users, [U] events by row, into parts; every user is in one, and there is at least one part."""
    begins = np.cumsum(events_per_user) - events_per_user
    numbers = begins // PART_ROWS
    starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(events_per_user)]]).tolist()
    return [
        PartPlan(number, start, stop, tuple(r for r in ranges if r.first < stop and r.last >= start))
        for number, (start, stop) in enumerate(itertools.pairwise(starts))
    ]


def part_events(plan: PartPlan, item_rows: Path) -> pl.DataFrame:
    """The events of a part: user_row, item_row int64, timestamp, value, …, sorted by user row, then time.

    `item_rows` holds the row of each place among the items of all ranges.
    """
    rows = np.load(item_rows)
    frames = [_of_range(numbered, plan, rows) for numbered in plan.ranges]
    events = pl.concat(frames, how="diagonal")
    return events.sort(Columns.USER_ROW, maintain_order=True).select(*FIRST, pl.exclude(FIRST))


def _of_range(numbered: NumberedRange, plan: PartPlan, item_rows: IntArray) -> pl.DataFrame:
    encoded = numbered.encoded
    user_rows = np.load(numbered.user_rows)
    inside = (user_rows >= plan.start) & (user_rows < plan.stop)
    events = encoded.events
    chosen = events.filter(encoded.alive & inside[events[Columns.USER_ROW].to_numpy()])
    return chosen.with_columns(
        pl.Series(Columns.USER_ROW, user_rows[chosen[Columns.USER_ROW].to_numpy()], pl.Int64),
        pl.Series(Columns.ITEM_ROW, item_rows[encoded.places[chosen[Columns.ITEM_ROW].to_numpy()]], pl.Int64),
    )
