"""Valid events -> the events worth keeping, with a count for every filter; no row leaves uncounted."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from llmrec_ray.config import DataConfig
from llmrec_ray.types import Columns

__all__ = ["Filtered", "filter_events"]

ORDER = (Columns.TIMESTAMP, "file_number", Columns.POSITION)


@dataclass(frozen=True)
class Filtered:
    """Kept events, and how many rows each filter dropped, in the order they ran."""

    events: pl.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)

    def keep(self, reason: str, condition: pl.Expr) -> Filtered:
        """Keep rows where the condition holds; the others are counted under `reason`."""
        kept = self.events.filter(condition)
        lost = len(self.events) - len(kept)
        return Filtered(kept, {**self.dropped, reason: self.dropped.get(reason, 0) + lost})


def filter_events(events: pl.DataFrame, data: DataConfig) -> Filtered:
    """Drop low values, repeated pairs and then, to a fixpoint, rare users and rare items.

    Of a repeated (user, item) the first event stays: it is when the user really met the item, so no later event can
    be held out as if it were news.
    """
    result = Filtered(events)
    if data.interactions.min_value is not None:
        result = result.keep("below_min_value", pl.col(Columns.VALUE) >= data.interactions.min_value)
    result = _without_repeats(result)
    return _k_core(result, data.min_user_interactions, data.min_item_interactions)


def _without_repeats(result: Filtered) -> Filtered:
    ordered = Filtered(result.events.sort(ORDER), result.dropped)
    return ordered.keep("repeated_pair", pl.struct(Columns.USER_ID, Columns.ITEM_ID).is_first_distinct())


def _k_core(result: Filtered, min_user: int, min_item: int) -> Filtered:
    while True:
        before = len(result.events)
        result = result.keep("rare_user", pl.len().over(Columns.USER_ID) >= min_user)
        result = result.keep("rare_item", pl.len().over(Columns.ITEM_ID) >= min_item)
        if len(result.events) == before:
            return result
