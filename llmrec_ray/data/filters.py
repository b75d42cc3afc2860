"""Valid events -> the events worth keeping, with a count for every filter; no row leaves uncounted."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from llmrec_ray.config import DataConfig
from llmrec_ray.data.parse import FILE_NUMBER
from llmrec_ray.data.records import RECORD
from llmrec_ray.types import Columns

__all__ = ["ORDER", "Filtered", "filter_events"]

ORDER = (Columns.TIMESTAMP, FILE_NUMBER, RECORD)


@dataclass(frozen=True)
class Filtered:
    """Kept events, and how many rows each filter dropped, in the order the filters ran."""

    events: pl.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)

    def keep(self, filter_name: str, condition: pl.Expr) -> Filtered:
        """Keep rows where the condition holds; the others are counted under the filter's name."""
        kept = self.events.filter(condition)
        lost = len(self.events) - len(kept)
        return Filtered(kept, {**self.dropped, filter_name: self.dropped.get(filter_name, 0) + lost})


def filter_events(events: pl.DataFrame, data: DataConfig) -> Filtered:
    """Drop low values, repeated pairs and then, to a fixpoint, rare users and rare items.

    Of a repeated (user, item) the first event stays: it is when the user really met the item, so that no
    later event can be held out as if it were news.
    """
    result = Filtered(events.sort(ORDER))
    if data.interactions[0].min_value is not None:
        result = result.keep("below_min_value", pl.col(Columns.VALUE) >= data.interactions[0].min_value)
    result = result.keep("repeated_pair", pl.struct(Columns.USER_ID, Columns.ITEM_ID).is_first_distinct())
    return _k_core(result, data.min_user_interactions, data.min_item_interactions)


def _k_core(result: Filtered, min_user: int, min_item: int) -> Filtered:
    while True:
        before = len(result.events)
        result = result.keep("rare_user", pl.len().over(Columns.USER_ID) >= min_user)
        result = result.keep("rare_item", pl.len().over(Columns.ITEM_ID) >= min_item)
        if len(result.events) == before:
            return result
