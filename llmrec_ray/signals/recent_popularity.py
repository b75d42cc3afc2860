"""Recent popularity baseline: from events and their times to one score for everybody.

An event counts exp(-age / decay_days), its age measured from the newest event that training knows. It does not know
when a request is made, so it ranks as of the end of the train split for everybody.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from llmrec_ray.signals.popularity import Popularity
from llmrec_ray.types import Histories, IntArray

__all__ = ["RecentPopularity"]

DAY_S = 86_400.0


class RecentPopularity(Popularity):
    """The `recent_popularity` baseline: log(1 + decayed events).

    times: [E] int64 unix seconds of the events that `fit` is given, in their order.
    """

    name: ClassVar[str] = "recent_popularity"

    def __init__(self, times: IntArray, decay_days: float = 7.0) -> None:
        super().__init__()
        self.times = times
        self.decay_days = decay_days

    def fit(self, train: Histories, n_items: int) -> Self:
        """Count the events of each item."""
        ages_days = (self.times.max(initial=0) - self.times) / DAY_S
        counts = np.bincount(train.item_rows, np.exp(-ages_days / self.decay_days), minlength=n_items)
        self.log_counts = np.log1p(counts).astype(np.float32)
        return self
