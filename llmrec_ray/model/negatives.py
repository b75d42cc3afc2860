"""Which items a step is told are wrong answers: drawn on the host, the same for every worker of a step.

Items that never occur in train are never drawn: they would only be pushed down. A sampler knows no scores, no users
and no training; `log_q` is what `losses.corrected` needs. Shapes: N items of the catalogue, S negatives of a step.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from llmrec_ray.config import TrainConfig
from llmrec_ray.errors import ConfigError
from llmrec_ray.types import FloatArray, IntArray

__all__ = ["MOST_FULL_ITEMS", "Everything", "InBatch", "NegativeSampler", "Popular", "Uniform", "make_sampler"]

MOST_FULL_ITEMS = 20_000
"""Items up to which `full_softmax` compares each target with all of them."""


class NegativeSampler(Protocol):
    """Draws the negatives that all targets of a step share."""

    @property
    def reads_targets(self) -> bool:
        """Whether `draw` needs the targets of the whole step."""

    def draw(self, generator: np.random.Generator, n: int, targets: IntArray) -> IntArray:
        """[S] int64 item rows in random order, S at most `n` where the sampler heeds it.

        targets: item rows of all targets of the step, over all workers; empty unless `reads_targets`.
        """

    @property
    def log_q(self) -> FloatArray | None:
        """[N] float32 log of the probability of each item in one draw; None when all are equally likely."""


class Uniform:
    """Distinct items, each as likely."""

    reads_targets = False
    log_q = None

    def __init__(self, item_counts: IntArray) -> None:
        self._items = np.flatnonzero(item_counts)

    def draw(self, generator: np.random.Generator, n: int, targets: IntArray) -> IntArray:
        """At most all items of train."""
        return generator.choice(self._items, size=min(n, len(self._items)), replace=False)


class Everything(Uniform):
    """All items of train, in random order: for the full softmax.

    Raises ConfigError when there are too many.
    """

    def __init__(self, item_counts: IntArray) -> None:
        super().__init__(item_counts)
        if len(self._items) > MOST_FULL_ITEMS:
            raise ConfigError(
                f"train.loss full_softmax compares every target with all {len(self._items):,} items of train, and "
                f"more than {MOST_FULL_ITEMS:,} take too long: set train.loss to sampled_softmax."
            )

    def draw(self, generator: np.random.Generator, n: int, targets: IntArray) -> IntArray:
        """All; `n` is not heeded."""
        return generator.permutation(self._items)


class Popular:
    """Items drawn with replacement in proportion to their count in train to the power `power`; 0 is uniform."""

    reads_targets = False

    def __init__(self, item_counts: IntArray, power: float) -> None:
        weights = np.where(item_counts > 0, item_counts.astype(np.float64) ** power, 0.0)
        self._shares = weights / weights.sum()
        self._up_to = np.cumsum(self._shares)

    @property
    def log_q(self) -> FloatArray:
        """-inf is not among them: items that are never drawn have the least of the others, which no one reads."""
        least = self._shares[self._shares > 0].min()
        log_q: FloatArray = np.log(np.maximum(self._shares, least)).astype(np.float32)
        return log_q

    def draw(self, generator: np.random.Generator, n: int, targets: IntArray) -> IntArray:
        """An item may come twice, as the correction expects."""
        rows: IntArray = np.searchsorted(self._up_to, generator.random(n) * self._up_to[-1], side="right")
        return rows


class InBatch(Popular):
    """Targets of the step itself, over all workers: as popular as the log, at no cost for vectors (Yi et al. 2019)."""

    reads_targets = True

    def __init__(self, item_counts: IntArray) -> None:
        super().__init__(item_counts, 1.0)

    def draw(self, generator: np.random.Generator, n: int, targets: IntArray) -> IntArray:
        """At most all targets; a popular one comes as often as it is asked for."""
        return generator.choice(targets, size=min(n, len(targets)), replace=False)


def make_sampler(config: TrainConfig, item_counts: IntArray) -> NegativeSampler:
    """The sampler of a recipe for items that occur item_counts [N] times in train; `mined` adds to uniform ones.

    Raises ConfigError for a full softmax over too many items.
    """
    if config.loss == "full_softmax":
        return Everything(item_counts)
    if config.negative_sampling == "popularity":
        return Popular(item_counts, config.popularity_power)
    return InBatch(item_counts) if config.negative_sampling == "in_batch" else Uniform(item_counts)
