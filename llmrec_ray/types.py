"""Shared nouns: column names, user histories as arrays, and candidates on their way to a ranking.

Shapes: B = users (or requests) in a batch, C = candidates per user, E = events in all histories together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Candidates",
    "Columns",
    "FloatArray",
    "Histories",
    "IntArray",
    "SplitName",
]

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float32]
SplitName: TypeAlias = Literal["train", "validation", "test"]


class Columns:
    """Names of the columns of every table this project writes."""

    USER_ID: Final = "user_id"
    ITEM_ID: Final = "item_id"
    USER_ROW: Final = "user_row"
    ITEM_ROW: Final = "item_row"
    TIMESTAMP: Final = "timestamp"
    VALUE: Final = "value"
    EVENT: Final = "event"
    EVENT_ID: Final = "event_id"
    SESSION: Final = "session"
    DOMAIN: Final = "domain"
    SPLIT: Final = "split"
    TEXT: Final = "text"
    TITLE: Final = "title"
    FILE: Final = "file"
    POSITION: Final = "position"
    REASON: Final = "reason"
    RAW: Final = "raw"


@dataclass(frozen=True)
class Histories:
    """The past of B users, oldest event first, as one flat array and offsets (compressed sparse rows).

    user_rows: [B] int64, -1 for a person who is not in the vocabulary.
    indptr: [B + 1] int64; the events of user b are `indptr[b]:indptr[b + 1]`.
    item_rows: [E] int64, always valid rows (unknown items are left out before this point).
    asked_at: [B] int64 unix seconds of the moment that comes after each past and is asked about, -1 where it is not
    known; None when nobody's is.
    """

    user_rows: IntArray
    indptr: IntArray
    item_rows: IntArray
    asked_at: IntArray | None = None

    @classmethod
    def from_lists(
        cls, histories: Iterable[Sequence[int] | IntArray], user_rows: Sequence[int] | None = None,
        asked_at: IntArray | None = None,
    ) -> Histories:
        """Build from one sequence of item rows per user; without `user_rows` everybody is unknown (-1)."""
        lists = [np.asarray(history, dtype=np.int64) for history in histories]
        lengths = np.array([len(history) for history in lists], dtype=np.int64)
        rows = np.full(len(lists), -1) if user_rows is None else np.asarray(user_rows)
        return cls(
            user_rows=rows.astype(np.int64),
            indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            item_rows=np.concatenate([*lists, np.empty(0, np.int64)]),
            asked_at=asked_at,
        )

    def __len__(self) -> int:
        return len(self.user_rows)

    def __getitem__(self, position: int) -> IntArray:
        """Item rows of the user at `position`, oldest first."""
        return self.item_rows[self.indptr[position] : self.indptr[position + 1]]

    def __iter__(self) -> Iterator[IntArray]:
        return (self[position] for position in range(len(self)))

    @property
    def lengths(self) -> IntArray:
        """Events per user, [B] int64."""
        return np.diff(self.indptr)

    def select(self, positions: IntArray | slice) -> Histories:
        """The histories at these positions, in this order; costs as much as these alone, however many there are."""
        chosen = np.arange(*positions.indices(len(self))) if isinstance(positions, slice) else positions
        asked_at = None if self.asked_at is None else self.asked_at[chosen]
        return Histories.from_lists([self[int(p)] for p in chosen], self.user_rows[chosen].tolist(), asked_at)

    def last(self, n: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """The newest `n` items per user, right-aligned: rows [B, n] int64 (0 where empty) and mask [B, n]."""
        positions = self.indptr[1:, None] - np.arange(n, 0, -1)[None, :]
        mask = positions >= self.indptr[:-1, None]
        if not self.item_rows.size:
            return np.zeros(positions.shape, np.int64), mask
        return np.where(mask, self.item_rows[np.where(mask, positions, 0)], 0), mask


@dataclass(frozen=True)
class Candidates:
    """What the sources propose for B users, with every signal's raw score kept apart until the reranker.

    item_rows: [B, C] int64, -1 where a user has fewer than C candidates; no row twice for one user.
    scores: signal name -> [B, C] float32 raw scores that came along, NaN where the signal has none for the pair; under
    `cold` the blended scores of items without a train event.
    sources: source name -> [B, C] bool, True where that source proposed the item.
    """

    item_rows: IntArray
    scores: dict[str, FloatArray]
    sources: dict[str, NDArray[np.bool_]]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[B, C] True where there is a candidate."""
        return self.item_rows >= 0
