"""Ranked rows -> the items of answers as plain values, with ids and titles, and why for those who asked.

Plain lists and dictionaries, since a message object per item would cost more than ranking it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llmrec_ray.recommend.batch import Ranked
from llmrec_ray.types import FloatArray
from llmrec_ray.vocab import Vocabulary

__all__ = ["listed"]

DECIMALS = 6
"""Of scores and shares: what is left out is below the precision of float32 sums."""

Item = dict[str, Any]


def listed(ranked: Ranked, items: Vocabulary, titles: Sequence[str]) -> list[list[Item]]:
    """The fields of a `RecommendedItem` for every item of B requests, best first."""
    lists = [
        [
            {"item_id": items.id(row), "title": titles[row], "score": score}
            for row, score in zip(rows, scores, strict=True) if row >= 0
        ]
        for rows, scores in zip(ranked.item_rows.tolist(), _rounded(ranked.scores), strict=True)
    ]
    for place, position in enumerate(ranked.explained.tolist()):
        for item, why in zip(lists[position], _reasons(ranked, place, items, titles), strict=False):
            item.update(why)
    return lists


def _reasons(ranked: Ranked, place: int, items: Vocabulary, titles: Sequence[str]) -> Iterator[Item]:
    """`sources` of each item of one explained request, and `shares` and `because` where a Reranker has made them."""
    shares = {name: _rounded(share[place]) for name, share in ranked.shares.items()}
    sources = {name: marks[place].tolist() for name, marks in ranked.sources.items()}
    because = _because(ranked, place, items, titles)
    for column in range(ranked.item_rows.shape[1]):
        item: Item = {"sources": [name for name, marks in sources.items() if marks[column]]}
        if shares:
            item["shares"] = {name: share[column] for name, share in shares.items()}
        if because:
            item["because"] = because[column]
        yield item


def _because(ranked: Ranked, place: int, items: Vocabulary, titles: Sequence[str]) -> list[list[Item]]:
    if ranked.because is None:
        return []
    nearest, similarities = ranked.because.item_rows[place].tolist(), _rounded(ranked.because.similarities[place])
    return [
        [
            {"item_id": items.id(row), "title": titles[row], "similarity": similarity}
            for row, similarity in zip(*found, strict=True) if row >= 0
        ]
        for found in zip(nearest, similarities, strict=True)
    ]


def _rounded(values: FloatArray) -> list[Any]:
    rounded: list[Any] = np.round(values.astype(np.float64), DECIMALS).tolist()
    return rounded
