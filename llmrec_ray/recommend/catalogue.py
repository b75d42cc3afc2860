"""A Dataset and the changes to its items -> what is known of users and items by their outside ids, without vectors.

An added item has the row after the last one. A removed item keeps its row, so that histories that hold it stay what
they were; only nobody is shown it, and its id may be given again, to a new row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from llmrec_ray.changes import AttributeValue, Changes, NewItem
from llmrec_ray.data import Dataset
from llmrec_ray.errors import RequestError
from llmrec_ray.text import clean_text
from llmrec_ray.types import Columns, Histories, IntArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["Catalogue", "grown_attributes", "hidden_rows"]

NOT_SUPPORTED, NOT_FOUND, CONFLICT = "not_supported", "not_found", "conflict"
KINDS: tuple[tuple[Callable[[pl.DataType], bool], tuple[type, ...], str], ...] = (
    (lambda dtype: dtype == pl.String, (str,), "text"),
    (lambda dtype: dtype.is_integer(), (int,), "a whole number"),
    (lambda dtype: dtype.is_float(), (int, float), "a number"),
)
"""For each kind of column what its values may be, and how that is called."""


class Catalogue:
    """users, items: ids in row order. titles: one per item row. attributes: one row per item row.

    histories: [U] of everybody. removed: rows of items that were removed.
    """

    def __init__(
        self, users: Vocabulary, items: Vocabulary, titles: Sequence[str], attributes: pl.DataFrame,
        histories: Histories,
    ) -> None:
        self.users, self.items, self.titles, self.attributes = users, items, titles, attributes
        self.removed: frozenset[int] = frozenset()
        self.histories = histories

    @classmethod
    def of(cls, dataset: Dataset) -> Catalogue:
        """With every event of the Dataset in the histories."""
        return cls(
            dataset.users, dataset.items, dataset.item_titles, dataset.item_attributes, dataset.histories("test")
        )

    def changed(self, changes: Changes) -> Catalogue:
        """This one, of a Release as it was published, after changes to its items; it shares what stays."""
        if not changes.version:
            return self
        items = self.items.followed_by([item.item_id for item in changes.added])
        titles = [*self.titles, *(_title(item) for item in changes.added)]
        attributes = grown_attributes(self.attributes, changes)
        grown = Catalogue(self.users, items, titles, attributes, _moved(self, items, changes))
        grown.removed = frozenset(hidden_rows(self.items, changes).tolist())
        return grown

    def history(self, user_row: int) -> IntArray:
        """Item rows of a known user's past, oldest first."""
        return self.histories[user_row]

    def item_counts(self) -> IntArray:
        """[N] int64, how many histories each item occurs in."""
        return np.bincount(self.histories.item_rows, minlength=len(self.items))

    def shown(self, item_id: str) -> int:
        """Row of an item that may be shown, -1 when it is unknown or was removed."""
        row = self.items.row(item_id)
        return -1 if row in self.removed else row

    def check_additions(self, items: Sequence[NewItem], *, has_encoder: bool) -> None:
        """Raises RequestError for items that cannot be added, naming the first offending field."""
        if not has_encoder:
            raise RequestError(
                "This release has no text encoder, and a new item is recommended by its text: train with item texts.",
                field="items", code=NOT_SUPPORTED,
            )
        _check_distinct([item.item_id for item in items], "items.{}.item_id")
        for place, item in enumerate(items):
            if self.shown(item.item_id) >= 0:
                raise RequestError(
                    f"There is an item {item.item_id!r} already: remove it first, or give the new one another id.",
                    field=f"items.{place}.item_id", code=CONFLICT,
                )
            if not clean_text(item.text):
                raise RequestError(
                    f"The text of item {item.item_id!r} is empty: say what it is; that decides whom it is shown to.",
                    field=f"items.{place}.text",
                )
            for name, value in item.attributes.items():
                self._check_attribute(name, value, f"items.{place}.attributes.{name}")

    def check_removals(self, item_ids: Sequence[str]) -> None:
        """Raises RequestError for ids that cannot be removed, naming the first offending field."""
        _check_distinct(item_ids, "item_ids.{}")
        for place, item_id in enumerate(item_ids):
            if self.shown(item_id) < 0:
                known = item_id in self.items
                message = f"The item {item_id!r} was removed already." if known else f"There is no item {item_id!r}."
                raise RequestError(message, field=f"item_ids.{place}", code=NOT_FOUND)

    def _check_attribute(self, name: str, value: AttributeValue, field: str) -> None:
        dtype = self.attributes.schema.get(name)
        if dtype is None:
            known = ", ".join(self.attributes.columns) or "none"
            raise RequestError(f"There is no item attribute {name!r}; there are: {known}.", field=field)
        fitting = [(kinds, wanted) for fits, kinds, wanted in KINDS if fits(dtype)]
        kinds, wanted = fitting[0] if fitting else ((), "left out: it cannot be set here")
        if not isinstance(value, kinds):
            raise RequestError(f"The attribute {name!r} is {value!r}, but it must be {wanted}.", field=field)
        [kept] = pl.Series([value], dtype=dtype, strict=False)
        if kept is None or kept in {math.inf, -math.inf}:
            raise RequestError(
                f"The attribute {name!r} is too large or too small for the catalogue ({dtype}): send another "
                "number, or leave it out.", field=field,
            )


def grown_attributes(attributes: pl.DataFrame, changes: Changes) -> pl.DataFrame:
    """Attributes of the N items of a Release -> those of N + M items, null where nothing is said.

    Of a catalogue with domains, an id that begins with one of them says it.
    """
    if not changes.added or not attributes.width:
        return attributes
    more = pl.DataFrame([
        pl.Series(name, [item.attributes.get(name) for item in changes.added], dtype=dtype, strict=False)
        for name, dtype in attributes.schema.items()
    ])
    if attributes.schema.get(Columns.DOMAIN) == pl.String:
        begins = pl.Series([item.item_id.partition(":")[0] for item in changes.added], dtype=pl.String)
        known = begins.is_in(attributes[Columns.DOMAIN].unique().implode())
        more = more.with_columns(pl.col(Columns.DOMAIN).fill_null(begins.set(~known, None)))
    return pl.concat([attributes, more], rechunk=False)


def hidden_rows(items: Vocabulary, changes: Changes) -> IntArray:
    """Sorted rows of removed items, for the items of the Release as it was published."""
    withdrawn = [len(items) + place for place in changes.withdrawn]
    return np.array(sorted([*items.known_rows(changes.removed).tolist(), *withdrawn]), np.int64)


def _moved(released: Catalogue, items: Vocabulary, changes: Changes) -> Histories:
    """Histories in which an item that was removed and added again has its new row."""
    if not changes.readded:
        return released.histories
    rows = np.arange(len(released.items), dtype=np.int64)
    again = sorted(changes.readded)
    rows[released.items.rows(again)] = items.rows(again)
    return replace(released.histories, item_rows=rows[released.histories.item_rows])


def _title(item: NewItem) -> str:
    return clean_text(item.title or "") or item.item_id


def _check_distinct(item_ids: Collection[str], field: str) -> None:
    seen: set[str] = set()
    for place, item_id in enumerate(item_ids):
        if item_id in seen:
            message = f"The item {item_id!r} is given twice: send it once."
            raise RequestError(message, field=field.format(place))
        seen.add(item_id)
