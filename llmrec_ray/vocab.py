"""Two-way mapping between the outside world's ids (strings) and dense rows.

The same object is used in training and in serving; conversion happens once at each border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from llmrec_ray.errors import CorruptArtifactError
from llmrec_ray.types import IntArray

__all__ = ["Vocabulary"]

UNKNOWN = -1


class Vocabulary:
    """Ids in row order. Rows are append-only: `extended` keeps every old row."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = tuple(ids)
        self._rows = {id_: row for row, id_ in enumerate(self._ids)}
        assert len(self._rows) == len(self._ids), "duplicate ids in a vocabulary. This is a bug."

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._rows

    def row(self, id_: str) -> int:
        """Row of an id, -1 when unknown."""
        return self._rows.get(id_, UNKNOWN)

    def rows(self, ids: Iterable[str]) -> IntArray:
        """Rows of many ids, int64, -1 where unknown."""
        return np.array([self._rows.get(id_, UNKNOWN) for id_ in ids], dtype=np.int64)

    def known_rows(self, ids: Iterable[str]) -> IntArray:
        """Rows of the ids that are known, in order; unknown ones are left out."""
        rows = [row for id_ in ids if (row := self.row(id_)) != UNKNOWN]
        return np.array(rows, dtype=np.int64)

    def id(self, row: int) -> str:
        """Id of a row; raises IndexError outside `0 <= row < len(self)`."""
        if row < 0:
            raise IndexError(row)
        return self._ids[row]

    def ids(self, rows: Iterable[int]) -> list[str]:
        """Ids of many rows."""
        return [self.id(int(row)) for row in rows]

    def extended(self, ids: Iterable[str]) -> Vocabulary:
        """A vocabulary with unseen ids appended in sorted order; every old id keeps its row."""
        return Vocabulary((*self._ids, *sorted(set(ids) - self._rows.keys())))

    def followed_by(self, ids: Sequence[str]) -> Vocabulary:
        """A vocabulary with rows for these ids after its own, in this order; it shares the old ones.

        Of an id that comes again the newest row counts, and every row keeps its id.
        """
        return _Followed(self, ids)

    def save(self, path: Path) -> None:
        """Write one Parquet file with the columns `row` and `id`."""
        pl.DataFrame(
            {"row": np.arange(len(self), dtype=np.int64), "id": pl.Series(self._ids, dtype=pl.String)}
        ).write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote. Raises CorruptArtifactError when rows are not 0, 1, 2, …"""
        frame = pl.read_parquet(path)
        if frame["row"].to_list() != list(range(len(frame))) or frame["id"].n_unique() != len(frame):
            raise CorruptArtifactError(
                f"{path} is not a vocabulary: rows must be 0, 1, 2, … and ids distinct."
            )
        return cls(frame["id"])


class _Followed(Vocabulary):
    """Knows the later ids itself, and asks another vocabulary for the earlier ones."""

    def __init__(self, first: Vocabulary, later: Sequence[str]) -> None:
        super().__init__(())
        self._first, self._later = first, tuple(later)
        self._later_rows = {id_: len(first) + place for place, id_ in enumerate(self._later)}

    def __len__(self) -> int:
        return len(self._first) + len(self._later)

    def __iter__(self) -> Iterator[str]:
        return chain(self._first, self._later)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._later_rows or id_ in self._first

    def row(self, id_: str) -> int:
        row = self._later_rows.get(id_)
        return self._first.row(id_) if row is None else row

    def rows(self, ids: Iterable[str]) -> IntArray:
        return np.array([self.row(id_) for id_ in ids], dtype=np.int64)

    def id(self, row: int) -> str:
        return self._first.id(row) if row < len(self._first) else self._later[row - len(self._first)]

    def extended(self, ids: Iterable[str]) -> Vocabulary:
        return Vocabulary(self).extended(ids)

    def save(self, path: Path) -> None:
        Vocabulary(self).save(path)
