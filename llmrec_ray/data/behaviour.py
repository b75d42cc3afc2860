"""Histories and titles -> what people did, told in words beside what they say about themselves.

Shapes: U users. It does not know which split it is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from llmrec_ray.config import BehaviourConfig
from llmrec_ray.text import TextTemplate
from llmrec_ray.types import Histories, IntArray

__all__ = ["tell_behaviour"]


def tell_behaviour(
    histories: Histories, titles: Sequence[str | None], profiles: Sequence[str], config: BehaviourConfig,
    newest: IntArray | None = None,
) -> list[str]:
    """A text per history, [U]; "" for people who did nothing and say nothing.

    titles: one per item row, None for items that have none; these are not told. profiles: [U]. newest: how many items
    of each are told, [U] int64, by default `config.items` of everybody.
    """
    if newest is None:
        newest = np.full(len(histories), config.items)
    told = pl.DataFrame({
        "profile": pl.Series(profiles, dtype=pl.String),
        "history": _titles_told(histories, titles, newest, config),
    })
    return TextTemplate(config.template).fill_frame(told).to_list()


def _titles_told(
    histories: Histories, titles: Sequence[str | None], newest: IntArray, config: BehaviourConfig
) -> pl.Series:
    """The titles of everybody's newest items as one text, the newest first; null where there are none."""
    person = np.repeat(np.arange(len(histories)), histories.lengths)
    items_left = histories.indptr[person + 1] - np.arange(len(person))
    is_told = items_left <= newest[person]
    told = pl.DataFrame({
        "person": person[is_told],
        "title": pl.Series(titles, dtype=pl.String).gather(histories.item_rows[is_told]),
    })
    lists = told.reverse().drop_nulls().group_by("person").agg(pl.col("title").str.join(config.separator))
    everybody = pl.DataFrame({"person": np.arange(len(histories))})
    return everybody.join(lists, on="person", how="left", maintain_order="left")["title"]
