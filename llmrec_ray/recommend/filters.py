"""Filters of a request -> the item rows that pass, through an inverted index over the items' attributes.

An attribute is indexed when somebody first filters by it. Shapes: N items.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llmrec_ray.errors import RequestError
from llmrec_ray.recommend.messages import AttributeValue, Filters, Range
from llmrec_ray.types import IntArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["ItemFilter", "check_filters"]

Mask = NDArray[np.bool_]


def check_filters(filters: Filters, attributes: pl.DataFrame) -> None:
    """Raises RequestError for a filter by an attribute that items do not have, or a range of one without numbers."""
    for kind, names in (("attributes", filters.attributes), ("ranges", filters.ranges)):
        for name in names:
            if name not in attributes.columns:
                known = ", ".join(attributes.columns) or "none"
                raise RequestError(
                    f"There is no item attribute {name!r} to filter by; there are: {known}.",
                    field=f"filters.{kind}.{name}",
                )
    for name in filters.ranges:
        if not attributes.schema[name].is_numeric():
            numeric = ", ".join(other for other, dtype in attributes.schema.items() if dtype.is_numeric()) or "none"
            raise RequestError(
                f"The item attribute {name!r} has no numbers, so no range of it can be asked for; attributes with "
                f"numbers: {numeric}. Name values in filters.attributes instead.",
                field=f"filters.ranges.{name}",
            )


class ItemFilter:
    """Knows every item's id and attributes."""

    def __init__(self, items: Vocabulary, attributes: pl.DataFrame) -> None:
        self._items = items
        self._attributes = attributes
        self._rows: dict[str, Mapping[str, IntArray]] = {}
        self._numbers: dict[str, NDArray[np.float64]] = {}

    def passing(self, filters: Filters) -> Mask:
        """[N] True where an item passes every filter; a new array. The filters must have been checked."""
        passing = np.ones(len(self._items), np.bool_)
        for name, wanted in filters.attributes.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            passing &= self._mask(self._having(name, values))
        for name, bounds in filters.ranges.items():
            passing &= self._between(name, bounds)
        if filters.allow is not None:
            passing &= self._mask(self._items.known_rows(filters.allow))
        if filters.deny:
            passing[self._items.known_rows(filters.deny)] = False
        return passing

    def _having(self, name: str, values: Iterable[AttributeValue]) -> IntArray:
        if self._attributes.schema[name].is_numeric():
            return _rows_of_numbers(self._attributes[name], values)
        if name not in self._rows:
            self._rows[name] = _rows_by_value(self._attributes[name])
        rows = [self._rows[name].get(_spelling(value), np.empty(0, np.int64)) for value in values]
        return np.concatenate([*rows, np.empty(0, np.int64)])

    def _between(self, name: str, bounds: Range) -> Mask:
        if name not in self._numbers:
            self._numbers[name] = self._attributes[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        numbers = self._numbers[name]
        passing = ~np.isnan(numbers)
        if bounds.min is not None:
            passing &= numbers >= bounds.min
        if bounds.max is not None:
            passing &= numbers <= bounds.max
        return passing

    def _mask(self, rows: IntArray) -> Mask:
        mask = np.zeros(len(self._items), np.bool_)
        mask[rows] = True
        return mask


def _rows_of_numbers(column: pl.Series, values: Iterable[AttributeValue]) -> IntArray:
    """Numbers are compared with all, as there may be as many values as items: an index would take seconds to make."""
    numbers = [number for value in values if (number := _number(value)) is not None]
    if column.dtype.is_integer():
        numbers = [int(number) for number in numbers if float(number).is_integer()]
    wanted = pl.Series(numbers, dtype=column.dtype, strict=False)  # null where a number is none of this column
    return np.flatnonzero(column.is_in(wanted.drop_nulls().implode()).fill_null(False).to_numpy())


def _number(value: AttributeValue) -> int | float | None:
    if isinstance(value, bool):
        return None
    for read in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            number = read(value) if isinstance(value, str) else value
            return number if math.isfinite(number) else None
    return None


def _rows_by_value(column: pl.Series) -> dict[str, IntArray]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    known: dict[object, set[str]] = {}
    for row, value in enumerate(column.to_list()):
        if isinstance(value, list):
            keys = _keys(value)
        elif value in known:
            keys = known[value]
        else:
            keys = known[value] = _keys(value)
        for key in keys:
            rows[key].append(row)
    return {key: np.array(found, np.int64) for key, found in rows.items()}


def _keys(value: object) -> set[str]:
    """All that an item's value may be asked for as: whole, by one of its words, by one of a list, also of one that
    ingest has spelt out with commas."""
    if value is None:
        return set()
    if isinstance(value, list):
        return {key for element in value for key in _keys(element)}
    spelling = _spelling(value)
    if not isinstance(value, str):
        return {spelling}
    return {spelling, *spelling.split(", "), *(word.strip(",") for word in spelling.split())} - {""}


def _spelling(value: object) -> str:
    """1995, 1995.0 and "1995" are one value, whichever type a file or a request gave it; so are Drama and drama."""
    return (str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)).casefold()
