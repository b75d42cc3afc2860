"""Popular items that a request may see: what is answered when nothing can be retrieved. Holds counts and no vectors.

Shapes: B requests, N items, K = longest list asked for.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from llmrec_ray.recommend.batch import Ranked, RequestBatch
from llmrec_ray.recommend.catalogue import Catalogue
from llmrec_ray.recommend.filters import ItemFilter
from llmrec_ray.types import IntArray

__all__ = ["PopularItems"]


class PopularItems:
    """All items by the number of people who have them in their history, without those that were removed."""

    def __init__(self, catalogue: Catalogue) -> None:
        n_items = len(catalogue.items)
        counts = catalogue.item_counts()
        order = np.lexsort((np.arange(n_items), -counts))
        self._order = order[~np.isin(order, list(catalogue.removed))]
        self._scores = counts.astype(np.float32)
        self._filter = ItemFilter(catalogue.items, catalogue.attributes)

    def rank(self, batch: RequestBatch) -> Ranked:
        """The k most popular of the items that pass a request's filters, scored by how many people have them."""
        start = perf_counter()
        width = int(batch.k.max(initial=0))
        rows = np.full((len(batch), width), -1, np.int64)
        for place in range(len(batch)):
            found = self._allowed(batch, place)[: batch.k[place]]
            rows[place, : len(found)] = found
        scores = np.where(rows >= 0, self._scores[np.maximum(rows, 0)], -np.inf).astype(np.float32)
        explained = np.flatnonzero(batch.explain)
        return Ranked(
            item_rows=rows, scores=scores, explained=explained,
            shares={"popularity": np.where(rows >= 0, scores, 0.0).astype(np.float32)[explained]},
            sources={"popularity": (rows >= 0)[explained]},
            timings_ms={"popular": (perf_counter() - start) * 1000},
        )

    def _allowed(self, batch: RequestBatch, place: int) -> IntArray:
        """Rows in order of popularity; as few as suffice are looked at where nothing is filtered."""
        seen = batch.histories.select(np.array([place])).item_rows if batch.exclude_seen[place] else np.empty(0, int)
        filters = batch.filters[place]
        if filters.is_empty:
            head = self._order[: int(batch.k[place]) + len(seen)]
            return head[~np.isin(head, seen)]
        allowed = self._filter.passing(filters)
        allowed[seen] = False
        return self._order[allowed[self._order]]
