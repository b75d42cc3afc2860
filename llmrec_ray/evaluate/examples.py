"""A few users as a person would look at them: what they did, what they are shown and why, what they did next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from llmrec_ray.data import Dataset
from llmrec_ray.recommend import Pipeline
from llmrec_ray.recommend.batch import Ranked
from llmrec_ray.types import Histories, IntArray

__all__ = ["Example", "ExampleItem", "make_examples"]

Ranks: TypeAlias = NDArray[np.float64]
SHOWN_HISTORY = 8
HITS, MISSES = 3, 2


class ExampleItem(BaseModel):
    """One recommended item. shares: signal -> what it adds to the score. held_out: it is what the user did next."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    item_id: str
    title: str
    score: float
    shares: dict[str, float]
    sources: list[str]
    held_out: bool


class Example(BaseModel):
    """One user. history: titles of the newest events, oldest first; history_length counts all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    user_id: str
    history: list[str]
    history_length: int
    held_out: str
    rank: float
    items: list[ExampleItem]


def make_examples(
    dataset: Dataset, pipeline: Pipeline, histories: Histories, targets: IntArray, ranks: Ranks, k: int
) -> list[Example]:
    """Users whose held-out item is among the first k, and some whose is not, spread evenly over the ranks.

    histories: of U users, as the ranking read them. targets: [U] item rows. ranks: [U] by the served pipeline. The
    same input gives the same users.
    """
    positions = _spread(ranks, k)
    chosen = histories.select(positions)
    ranked = pipeline.rank_histories(chosen, k)
    return [
        _example(dataset, ranked, place, chosen[place], int(chosen.user_rows[place]), int(targets[position]),
                 float(ranks[position]))
        for place, position in enumerate(positions)
    ]


def _spread(ranks: Ranks, k: int) -> IntArray:
    order = np.argsort(ranks, kind="stable")
    hits, misses = order[ranks[order] <= k], order[ranks[order] > k]
    return np.concatenate([_evenly(hits, HITS), _evenly(misses, MISSES)]).astype(np.int64)


def _evenly(positions: IntArray, n: int) -> IntArray:
    """At most n of the positions, the middles of n equal parts."""
    n = min(n, len(positions))
    return positions[((np.arange(n) + 0.5) * len(positions) / max(n, 1)).astype(np.int64)]


def _example(
    dataset: Dataset, ranked: Ranked, place: int, history: IntArray, user_row: int, target: int, rank: float
) -> Example:
    titles = dataset.item_titles
    return Example(
        user_id=dataset.users.id(user_row),
        history=[titles[row] for row in history[-SHOWN_HISTORY:]],
        history_length=len(history),
        held_out=titles[target],
        rank=rank,
        items=[
            ExampleItem(
                item_id=dataset.items.id(int(row)), title=titles[row], score=float(ranked.scores[place, column]),
                shares=_at(ranked.shares, place, column),
                sources=[name for name, marks in ranked.sources.items() if marks[place, column]],
                held_out=int(row) == target,
            )
            for column, row in enumerate(ranked.item_rows[place]) if row >= 0
        ],
    )


def _at(shares: Mapping[str, NDArray[np.float32]], place: int, column: int) -> dict[str, float]:
    """Shares other than zero, rounded: signals that the policy does not weigh add nothing."""
    found = {name: round(float(share[place, column]), 4) for name, share in shares.items()}
    return {name: share for name, share in found.items() if share}
