"""Filters of a request -> the item rows that pass, through an inverted index over the items' attributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.recommend.messages import AttributeValue, Filters
from llmrec_ray.types import IntArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["ItemFilter"]

Mask = NDArray[np.bool_]


class ItemFilter:
    """Knows every item's id and attributes."""

    def __init__(self, items: Vocabulary, attributes: pl.DataFrame) -> None:
        self._items = items
        self._rows = {name: _rows_by_value(attributes[name]) for name in attributes.columns}

    def passing(self, filters: Filters) -> Mask:
        """[N] True where an item passes every filter. Attribute names must have been checked."""
        passing = np.ones(len(self._items), np.bool_)
        for name, wanted in filters.attributes.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            passing &= self._mask(self._having(name, values))
        if filters.allow is not None:
            passing &= self._mask(self._items.known_rows(filters.allow))
        passing[self._items.known_rows(filters.deny)] = False
        return passing

    def _having(self, name: str, values: Iterable[AttributeValue]) -> IntArray:
        rows = [self._rows[name].get(_spelling(value), np.empty(0, np.int64)) for value in values]
        return np.concatenate([*rows, np.empty(0, np.int64)])

    def _mask(self, rows: IntArray) -> Mask:
        mask = np.zeros(len(self._items), np.bool_)
        mask[rows] = True
        return mask


def _rows_by_value(column: pl.Series) -> dict[str, IntArray]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, value in enumerate(column):
        if value is not None:
            spelling = _spelling(value)
            for key in {spelling, *(spelling.split() if isinstance(value, str) else ())}:
                rows[key].append(row)
    return {key: np.array(found, np.int64) for key, found in rows.items()}


def _spelling(value: object) -> str:
    """1995 and 1995.0 and "1995" are the same value, whichever type a file or a request gave it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
