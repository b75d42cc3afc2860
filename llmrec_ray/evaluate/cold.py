"""Items that nobody has met in training (protocol C2): where each held-out (user, item) pair is ranked.

Each pair is ranked alone: the user's other items of held-out folds are no candidates. "fold" ranks it among the cold
items of its fold, "all" among all items without the user's history. The history is what `Dataset.cold_histories`
gives: for the test fold every event of an item that is not held out, whenever it happened. With a cold scale of 0 the
cold items of a pipeline are all tied, in the middle of the catalogue, and so is the target among them.

Shapes: B = users of the task, P = pairs, N = items, C = candidates that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmrec_ray.data import Dataset
from llmrec_ray.evaluate.protocol import group_by_user, held_out_items
from llmrec_ray.evaluate.systems import Ranked
from llmrec_ray.metrics import bootstrap, ndcg_gains
from llmrec_ray.types import FloatArray, Histories, IntArray

__all__ = ["ColdSystem", "ColdTask", "chance", "cold_figures"]

Ranks: TypeAlias = NDArray[np.float64]
ScoreItems: TypeAlias = Callable[[Histories, IntArray], Mapping[str, FloatArray]]
NO_OPINION = np.finfo(np.float32).min
MOST_CELLS = 50_000


@dataclass(frozen=True)
class ColdTask:
    """The pairs of a held-out fold, by user.

    histories: what is known of the B users who have a pair. pairs: their items of the fold. held_out: their items of
    any held-out fold. fold: [C] int64, the items of the fold.
    """

    histories: Histories
    pairs: Histories
    held_out: Histories
    fold: IntArray
    n_items: int

    @classmethod
    def of(cls, dataset: Dataset, split: Literal["validation", "test"] = "test") -> Self:
        """The pairs that `data.split: cold_items` held out for a split; none under another split."""
        owners, items = dataset.cold_pairs(split)
        users, n_users = np.unique(owners), len(dataset.users)
        return cls(
            dataset.cold_histories(split).select(users), group_by_user(owners, items, n_users).select(users),
            held_out_items(dataset).select(users), np.unique(items), len(dataset.items),
        )

    def __len__(self) -> int:
        return len(self.histories)

    @property
    def users(self) -> IntArray:
        """User row of every pair, [P] int64."""
        return np.repeat(self.pairs.user_rows, self.pairs.lengths)

    @property
    def n_candidates(self) -> IntArray:
        """Items of the fold that each pair's item is ranked among, itself included, [P] int64."""
        own = np.array([len(np.intersect1d(items, self.fold)) for items in self.held_out], np.int64)
        return np.repeat(len(self.fold) - own + 1, self.pairs.lengths)

    def piece(self, start: int, stop: int) -> ColdTask:
        """The same task for the users at these places."""
        part = slice(start, stop)
        return ColdTask(
            self.histories.select(part), self.pairs.select(part), self.held_out.select(part), self.fold, self.n_items
        )


@dataclass(frozen=True)
class ColdSystem:
    """Ranks every pair by each score that `score_items` gives for item rows [B, C], among the fold or all items."""

    score_items: ScoreItems
    among: Literal["fold", "all"]
    prefix: str = ""

    def rank(self, task: ColdTask) -> Iterator[tuple[str, Ranked]]:
        """One ranking [P] per score, named with the prefix."""
        rows = task.fold if self.among == "fold" else np.arange(task.n_items)
        columns = np.full(task.n_items, -1, np.int64)
        columns[rows] = np.arange(len(rows))
        for name, raw in self._scores(task.histories, rows).items():
            known = np.where(np.isnan(raw), NO_OPINION, raw)
            ranks = [
                _pair_ranks(own, columns[pairs], _columns(columns, history, held_out))
                for own, pairs, history, held_out in zip(
                    known, task.pairs, task.histories, task.held_out, strict=True
                )
            ]
            yield self.prefix + name, Ranked(np.concatenate([*ranks, np.empty(0)]))

    def _scores(self, histories: Histories, rows: IntArray) -> dict[str, FloatArray]:
        """Name -> scores of all rows [B, C], a few at a time: scoring gathers a vector per user and row."""
        width = max(1, min(len(rows), MOST_CELLS))
        height = max(1, MOST_CELLS // width)
        users = [histories.select(slice(start, start + height)) for start in range(0, len(histories), height)]
        parts = [rows[start : start + width] for start in range(0, len(rows), width)]
        blocks = [[self.score_items(some, np.tile(part, (len(some), 1))) for part in parts] for some in users]
        return {
            name: np.concatenate([np.concatenate([block[name] for block in row], axis=1) for row in blocks])
            for name in blocks[0][0]
        }


def cold_figures(ranks: Ranks, ks: Sequence[int], users: IntArray | None = None) -> dict[str, float]:
    """`hr@k` and `ndcg@k`, means over pairs, each with `_low` and `_high`: 95 % of a bootstrap over users.

    users: whose each rank [P] is, when somebody has several.
    """
    gains = {f"hr@{k}": (ranks <= k).astype(np.float64) for k in ks} | {f"ndcg@{k}": ndcg_gains(ranks, k) for k in ks}
    figures: dict[str, float] = {}
    for name, values in gains.items():
        spread = bootstrap(values, users)
        figures |= {name: spread.mean, f"{name}_low": spread.low, f"{name}_high": spread.high}
    return figures


def chance(n_candidates: IntArray, ks: Sequence[int]) -> dict[str, float]:
    """What ranking at random is expected to reach, given candidates per pair [P]."""
    sizes, counts = np.unique(n_candidates, return_counts=True)
    gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(max(ks)) + 2.0))])
    expected: dict[str, float] = {}
    for k in ks:
        within = np.minimum(sizes, k)
        expected |= {
            f"hr@{k}": float(np.average(within / sizes, weights=counts)),
            f"ndcg@{k}": float(np.average(gains[within] / sizes, weights=counts)),
        }
    return expected


def _columns(columns: IntArray, *items: IntArray) -> IntArray:
    """Columns of the items that are scored at all."""
    found = columns[np.concatenate(items)]
    return found[found >= 0]


def _pair_ranks(scores: FloatArray, targets: IntArray, barred: IntArray) -> Ranks:
    """Rank of each target column among the scores [C] that are not barred: 1 + higher + half the ties."""
    others = np.sort(np.delete(scores, np.unique(barred)))
    own = scores[targets]
    higher = len(others) - np.searchsorted(others, own, "right")
    ties = len(others) - higher - np.searchsorted(others, own, "left")
    return np.asarray(1.0 + higher + 0.5 * ties, np.float64)
