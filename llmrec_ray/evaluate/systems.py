"""From the users of a Task to where one system puts their targets: the served pipeline, and raw scores ranked alone.

Served lists rank what the pipeline would show: a target beyond the list shares the places after it. Raw scores rank
every candidate. An item about which a score has no opinion (NaN) stands below all others, and all-tied scores put the
target in the middle of its candidates.

Shapes: B = users of the task, N = items, S = sampled negatives, k = list length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.evaluate.protocol import Task
from llmrec_ray.metrics import ListSums, summarise
from llmrec_ray.ranking import list_ranks, mask_seen, target_ranks, top_k
from llmrec_ray.signals import Signal
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["Ranked", "Ranking", "RawScores", "Served", "System", "items_of", "of_signal"]

Ranks: TypeAlias = NDArray[np.float64]
ScoreAll: TypeAlias = Callable[[Histories], Mapping[str, FloatArray]]
ScoreItems: TypeAlias = Callable[[Histories, IntArray], Mapping[str, FloatArray]]


@dataclass(frozen=True)
class Ranked:
    """What one system made of a batch: ranks [B] float64, and its lists [B, k] of item rows, best first, -1 after
    them; no lists when candidates are sampled."""

    ranks: Ranks
    lists: IntArray | None = None


class System(Protocol):
    """Something that ranks targets; one pass over the users may give several rankings, by name."""

    def rank(self, task: Task) -> Iterator[tuple[str, Ranked]]:
        """Name and result, one after the other, so that no more than one is held."""


@dataclass(frozen=True)
class Ranking:
    """Where one system put all targets: ranks [U] float64, and by k the sums over its lists of that length."""

    ranks: Ranks
    sums: Mapping[int, ListSums]

    def metrics(self, task: Task, ks: Sequence[int], popularity: IntArray, n_users: int) -> dict[str, float]:
        """Every metric at every k, and `auc`; figures of the lists where there are any.

        popularity: [N] int64, train events of each item. n_users: users of train.
        """
        lists = [sums.figures(k, popularity, n_users) for k, sums in self.sums.items()]
        return summarise(self.ranks, ks, task.n_candidates) | {name: v for each in lists for name, v in each.items()}


@dataclass(frozen=True)
class Served:
    """The pipeline as it is served. recommend: lists [B, k] of `depth` rows. score_items: [B, C] fused scores."""

    name: str
    recommend: Callable[[Histories, int], IntArray]
    score_items: Callable[[Histories, IntArray], FloatArray]
    depth: int

    def rank(self, task: Task) -> Iterator[tuple[str, Ranked]]:
        """One ranking."""
        if task.negatives is not None:
            rows = _candidates(task)
            yield self.name, Ranked(_sampled_ranks(self.score_items(task.histories, rows), rows))
            return
        lists = self.recommend(task.histories, self.depth)
        if task.held_out is not None:
            lists = _without(lists, task.held_out, task.n_items)
        yield self.name, Ranked(list_ranks(lists, task.targets, task.n_candidates), lists)


@dataclass(frozen=True)
class RawScores:
    """Every score that `score_all` names, [B, N], ranked alone; lists of `k`. score_items: the same for some items."""

    score_all: ScoreAll
    score_items: ScoreItems
    k: int
    prefix: str = ""

    def rank(self, task: Task) -> Iterator[tuple[str, Ranked]]:
        """One ranking per score, named with the prefix."""
        if task.negatives is not None:
            rows = _candidates(task)
            for name, scores in self.score_items(task.histories, rows).items():
                yield self.prefix + name, Ranked(_sampled_ranks(scores, rows))
            return
        for name, raw in self.score_all(task.histories).items():
            allowed = mask_seen(raw, task.histories)
            if task.held_out is not None:
                allowed = mask_seen(allowed, task.held_out)
            yield self.prefix + name, Ranked(target_ranks(allowed, task.targets), top_k(allowed, self.k)[0])


def of_signal(signal: Signal, name: str, k: int) -> RawScores:
    """One signal ranked alone, under a name."""
    return RawScores(_All(signal, name), items_of(signal, name), k)


def items_of(signal: Signal, name: str) -> ScoreItems:
    """What one signal gives for some items [B, C], under a name."""
    return _Items(signal, name)


@dataclass(frozen=True)
class _All:
    signal: Signal
    name: str

    def __call__(self, histories: Histories) -> dict[str, FloatArray]:
        return {self.name: self.signal.score(histories)}


@dataclass(frozen=True)
class _Items:
    signal: Signal
    name: str

    def __call__(self, histories: Histories, item_rows: IntArray) -> dict[str, FloatArray]:
        return {self.name: self.signal.score_items(histories, item_rows)}


def _candidates(task: Task) -> IntArray:
    assert task.negatives is not None, "sampled candidates of a task without any. This is a bug."
    return np.concatenate([task.targets[:, None], task.negatives], axis=1)


def _sampled_ranks(scores: FloatArray, rows: IntArray) -> Ranks:
    """Rank of the first of rows [B, 1 + S] by its scores."""
    return target_ranks(np.where(rows >= 0, scores, -np.inf).astype(np.float32), np.zeros(len(rows), np.int64))


def _without(lists: IntArray, barred: Histories, n_items: int) -> IntArray:
    """The lists [B, k] with barred rows taken out and what follows moved up."""
    owners = np.arange(len(lists))[:, None] * n_items
    cells = np.repeat(owners[:, 0], barred.lengths) + barred.item_rows
    gone = (lists < 0) | np.isin(owners + lists, cells)
    order = np.argsort(gone, axis=1, kind="stable")
    return np.take_along_axis(np.where(gone, -1, lists), order, axis=1)
