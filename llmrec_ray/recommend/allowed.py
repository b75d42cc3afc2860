"""Which items each request may be shown: nothing removed, nothing seen unless wanted, and what passes its filters.

What was seen is kept as a sorted list; only a request that filters pays for a mask over the catalogue.
Shapes: B requests, R of them, N items, C items per request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.recommend.batch import RequestBatch
from llmrec_ray.recommend.filters import ItemFilter
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["Allowed", "Columns", "Mask"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """Which items the columns of an array [B, C] stand for. rows: [C]; places: [N] column of an item, or -1."""

    rows: IntArray
    places: IntArray

    @classmethod
    def of(cls, rows: IntArray, n_items: int) -> Self:
        """Columns for these rows."""
        places = np.full(n_items, -1, np.int64)
        places[rows] = np.arange(len(rows))
        return cls(rows, places)


@dataclass(frozen=True)
class Allowed:
    """hidden: [N] True for items that nobody is shown. seen: sorted request · N + row of what only this request hides.
    masks: request -> [N] True for what it may be shown, of those with filters. counts: [B] items that may be shown."""

    hidden: Mask
    seen: IntArray
    masks: dict[int, Mask]
    counts: IntArray

    @classmethod
    def of(cls, batch: RequestBatch, item_filter: ItemFilter, hidden: Mask) -> Self:
        """For a batch of requests whose filters have been checked."""
        rows, n_items = batch.histories.item_rows, len(hidden)
        owners = np.repeat(np.arange(len(batch)), batch.histories.lengths)
        counts = batch.exclude_seen[owners] & ~hidden[rows]
        seen = np.unique(owners[counts] * n_items + rows[counts])
        starts = np.searchsorted(seen, np.arange(len(batch) + 1) * n_items)
        shown = n_items - np.count_nonzero(hidden) - np.diff(starts)
        masks = {}
        for request, filters in enumerate(batch.filters):
            if not filters.is_empty:
                mask = item_filter.passing(filters) & ~hidden
                mask[seen[starts[request] : starts[request + 1]] - request * n_items] = False
                masks[request], shown[request] = mask, np.count_nonzero(mask)
        return cls(hidden, seen, masks, shown)

    @property
    def n_items(self) -> int:
        """N."""
        return len(self.hidden)

    def passes(self, requests: IntArray, rows: IntArray) -> Mask:
        """[R, C] True where a request of `requests` [R] may be shown the item rows [R, C]; False for row -1."""
        items = np.maximum(rows, 0)
        passing = (rows >= 0) & ~self.hidden[items]
        if len(self.seen):
            keys = requests[:, None] * self.n_items + items
            places = np.minimum(np.searchsorted(self.seen, keys), len(self.seen) - 1)
            passing &= self.seen[places] != keys
        for place, request in enumerate(requests.tolist()):
            if request in self.masks:
                passing[place] &= self.masks[request][items[place]]
        return np.asarray(passing)

    def rows(self, request: int) -> IntArray:
        """All rows that one request may be shown, ascending."""
        if request in self.masks:
            return np.flatnonzero(self.masks[request])
        mask = ~self.hidden
        mask[self.seen_by(request)] = False
        return np.flatnonzero(mask)

    def seen_by(self, request: int) -> IntArray:
        """Rows that this request hides because they were seen."""
        start, end = np.searchsorted(self.seen, [request * self.n_items, (request + 1) * self.n_items])
        return self.seen[start:end] - request * self.n_items

    def hide(self, scores: FloatArray, columns: Columns | None = None) -> FloatArray:
        """Scores [B, C] with -inf for what may not be shown, changed in place where they can be.

        columns: the items that they are of; None = the whole catalogue in order.
        """
        hidden = np.require(scores, np.float32, ["W", "O"])
        owners, seen = self.seen // self.n_items, self.seen % self.n_items
        places = seen if columns is None else columns.places[seen]
        hidden[owners[places >= 0], places[places >= 0]] = -np.inf
        hidden[:, np.flatnonzero(self.hidden if columns is None else self.hidden[columns.rows])] = -np.inf
        for request, mask in self.masks.items():
            hidden[request, ~(mask if columns is None else mask[columns.rows])] = -np.inf
        return np.asarray(hidden)
