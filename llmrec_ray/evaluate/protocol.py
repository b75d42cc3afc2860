"""Protocol P: from scores or served lists to the rank of each user's held-out test item.

Every event is a positive. A user's last event is the test item, the one before it the validation item, the
rest is train. Models learn from train only; at test time the validation item is the newest of the history.
The test item is ranked among all items that occur anywhere, without the user's train and validation items;
its rank is 1 + number scored higher + half the ties.

Shapes: U = users, B = users in a batch, N = items, k = list length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.data import Dataset
from llmrec_ray.metrics import coverage, summarise
from llmrec_ray.ranking import list_ranks, mask_seen, target_ranks, top_k
from llmrec_ray.signals import Signal
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["PROTOCOL", "Ranking", "Task", "rank_lists", "rank_scores", "rank_signal"]

PROTOCOL = (
    "P: last event of each user held out for test, ranked among all items without the user's earlier ones; "
    "fit on train, history includes the validation item"
)


@dataclass(frozen=True)
class Task:
    """What is to be ranked: histories of U users through validation, and their test items [U]."""

    histories: Histories
    targets: IntArray
    n_items: int

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The test split of a Dataset."""
        return cls(dataset.histories("validation"), dataset.targets("test"), len(dataset.items))

    @property
    def n_candidates(self) -> IntArray:
        """Items that a user's test item is ranked among, itself included, [U] int64."""
        return np.array([self.n_items - len(np.unique(history)) for history in self.histories], np.int64)

    def batches(self, size: int) -> Iterator[Task]:
        """The same task in pieces of at most `size` users."""
        for start in range(0, len(self.targets), size):
            piece = slice(start, start + size)
            yield Task(self.histories.select(piece), self.targets[piece], self.n_items)


@dataclass(frozen=True)
class Ranking:
    """Where one system put the test items: ranks [U] float64, and its lists of item rows [U, k]."""

    ranks: NDArray[np.float64]
    lists: IntArray

    def metrics(self, task: Task, ks: Sequence[int]) -> dict[str, float]:
        """Every metric at every k, `auc`, and the share of the catalogue that the lists cover."""
        covered = {f"coverage@{k}": coverage(self.lists[:, :k], task.n_items) for k in ks}
        return summarise(self.ranks, ks, task.n_candidates) | covered


def rank_scores(
    batches: Iterator[Task], score: Callable[[Histories], Mapping[str, FloatArray]], k: int
) -> dict[str, Ranking]:
    """Full-catalogue ranking by each raw score [B, N] that `score` gives, by name; lists of k."""
    pieces: dict[str, list[Ranking]] = {}
    for batch in batches:
        for name, raw in score(batch.histories).items():
            unseen = mask_seen(raw, batch.histories)
            ranking = Ranking(target_ranks(unseen, batch.targets), top_k(unseen, k)[0])
            pieces.setdefault(name, []).append(ranking)
    return {name: _joined(rankings) for name, rankings in pieces.items()}


def rank_signal(batches: Iterator[Task], signal: Signal, k: int) -> Ranking:
    """Full-catalogue ranking by one signal."""
    return rank_scores(batches, lambda histories: {signal.name: signal.score(histories)}, k)[signal.name]


def rank_lists(
    batches: Iterator[Task], recommend: Callable[[Histories, int], IntArray], depth: int
) -> Ranking:
    """Ranking by served lists of `depth` rows; a target beyond shares the places after the list."""
    rankings = []
    for batch in batches:
        lists = recommend(batch.histories, depth)
        rankings.append(Ranking(list_ranks(lists, batch.targets, batch.n_candidates), lists))
    return _joined(rankings)


def _joined(rankings: Sequence[Ranking]) -> Ranking:
    return Ranking(
        np.concatenate([ranking.ranks for ranking in rankings]),
        np.concatenate([ranking.lists for ranking in rankings]),
    )
