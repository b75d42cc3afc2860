"""Targets in groups: by the popularity of the item, by whether it was ever seen in train, by length of the history.

Groups are fixed before any system is scored, so that they are the same for all. This module does not know who
made the ranks.

- popularity: `head` are the most popular items that together hold a fifth of the train events, `tail` the least
  popular that hold a fifth, `mid` the rest (Celma and Cano 2008; Abdollahpouri et al. 2021). Items of equal
  popularity are in one group; where that makes an item both head and tail, it is head.
- warmth: `cold` targets have no train event, `warm` ones have; cold targets are also in the tail.
- history_length: events that the ranking may use, up to and including the bound.

Shapes: U = targets, N = items.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.evaluate.report import Segment
from llmrec_ray.metrics import bootstrap, hit_rate, ndcg_gains
from llmrec_ray.types import IntArray

__all__ = ["popularity_groups", "segment_figures", "segment_targets"]

Ranks: TypeAlias = NDArray[np.float64]
Marks: TypeAlias = NDArray[np.bool_]
GROUP_SHARE = 0.2
LENGTHS = (0, 4, 9, 19, 49, 99, 199)


def segment_targets(
    history_lengths: IntArray, target_rows: IntArray, popularity: IntArray
) -> dict[str, dict[str, Marks]]:
    """By what -> segment -> which targets are in it, [U] bool; every target is in one segment of each kind.

    history_lengths: [U]. target_rows: [U] item rows. popularity: [N] train events of every item.
    """
    groups = popularity_groups(popularity)[target_rows]
    counts = popularity[target_rows]
    lengths = np.searchsorted(LENGTHS, history_lengths)
    return {
        "popularity": {name: groups == name for name in ("head", "mid", "tail")},
        "warmth": {"warm": counts > 0, "cold": counts == 0},
        "history_length": {name: lengths == place for place, name in enumerate(_length_names())},
    }


def segment_figures(
    targets: Mapping[str, Mapping[str, Marks]], ranks: Mapping[str, Ranks], k: int
) -> dict[str, dict[str, Segment]]:
    """`hr@k`, `ndcg@k` and its 95 % interval `ndcg@k_low`, `ndcg@k_high` of every system on every segment.

    A segment without targets has 0 users and no figures. ranks: system -> [U].
    """
    return {
        by: {name: _figures(marks, ranks, k) for name, marks in segments.items()} for by, segments in targets.items()
    }


def popularity_groups(popularity: IntArray) -> NDArray[np.str_]:
    """`head`, `mid` or `tail` for each of N items."""
    _, places = np.unique(popularity, return_inverse=True)
    events = np.bincount(places, popularity)
    at_most = np.cumsum(events) / max(events.sum(), 1)
    above = 1 - at_most
    groups = np.where(at_most <= GROUP_SHARE, "tail", "mid")
    return np.where(above < GROUP_SHARE, "head", groups)[places]


def _length_names() -> list[str]:
    between = [str(high) if low + 1 == high else f"{low + 1}–{high}" for low, high in pairwise((-1, *LENGTHS))]
    return [*between, f"{LENGTHS[-1] + 1}+"]


def _figures(marks: Marks, ranks: Mapping[str, Ranks], k: int) -> Segment:
    users = int(marks.sum())
    if not users:
        return Segment(users=0)
    return Segment(users=users, systems={system: _metrics(each[marks], k) for system, each in ranks.items()})


def _metrics(ranks: Ranks, k: int) -> dict[str, float]:
    found = bootstrap(ndcg_gains(ranks, k))
    return {
        f"ndcg@{k}": found.mean, f"ndcg@{k}_low": found.low, f"ndcg@{k}_high": found.high,
        f"hr@{k}": hit_rate(ranks, k),
    }
