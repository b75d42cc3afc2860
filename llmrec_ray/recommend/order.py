"""Candidates in the Retriever's own order: what is shown when nobody can rerank them."""

from __future__ import annotations

import numpy as np

from llmrec_ray.ranking import top_k
from llmrec_ray.recommend.batch import Ranked, RequestBatch, Retrieved

__all__ = ["retriever_order"]


def retriever_order(batch: RequestBatch, retrieved: Retrieved) -> Ranked:
    """The k candidates that come first by what the sources said of them, ties to the lower row.

    No signal has scored them, so there are no shares; the scores only order one list.
    """
    candidates = retrieved.candidates
    places, scores = top_k(retrieved.order, int(batch.k.max(initial=0)))
    places = np.where(np.arange(places.shape[1]) >= batch.k[:, None], -1, places)
    shown, taken = places >= 0, np.maximum(places, 0)
    explained = np.flatnonzero(batch.explain)
    return Ranked(
        item_rows=np.where(shown, np.take_along_axis(candidates.item_rows, taken, axis=1), -1),
        scores=np.where(shown, scores, -np.inf).astype(np.float32),
        shares={}, explained=explained,
        sources={
            name: np.asarray((np.take_along_axis(marks, taken, axis=1) & shown)[explained])
            for name, marks in candidates.sources.items()
        },
        timings_ms=retrieved.timings_ms, degraded=retrieved.degraded,
    )
