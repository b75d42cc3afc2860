"""The events of each range of users -> its k-core: every user and every item that stays has enough events that stay.

Users of a range are whole, items are not: ranges exchange how many events each item lost, and nothing else. Peeling in
rounds (Seidman 1983) reaches the one fixpoint whatever the ranges; the counts by filter are those of rounds that drop
rare users first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.types import IntArray

__all__ = ["ItemCounts", "drop_items", "drop_rare_users"]

Mask = NDArray[np.bool_]
Rows = NDArray[np.integer[Any]]


def drop_rare_users(users: Rows, alive: Mask, n_users: int, min_events: int) -> Mask:
    """Which of the events that are alive remain when users with fewer than `min_events` of them go, [E] bool."""
    counts = np.bincount(users[alive], minlength=n_users)
    return alive & (counts >= min_events)[users]


def drop_items(items: Rows, alive: Mask, dead: Mask) -> Mask:
    """Which events remain when the items marked in `dead` go, [E] bool."""
    return alive & ~dead[items]


@dataclass
class ItemCounts:
    """Events of every item that are alive, over all ranges, [N] int64."""

    counts: IntArray
    min_events: int
    _dead: Mask = field(init=False)

    def __post_init__(self) -> None:
        self._dead = self.counts == 0

    def newly_rare(self) -> Mask:
        """Items that have become rare since the last call and still have events, [N] bool; they are dead from now."""
        rare = (self.counts < self.min_events) & ~self._dead
        self._dead |= rare
        return rare & (self.counts > 0)

    def lost(self, items: IntArray, counts: IntArray) -> None:
        """Take off the events that a range dropped: distinct items and how many of each."""
        self.counts[items] -= counts
