"""Some consecutive records of a file as columns, each with its number, and the records nobody can read.

Numbers count from 1 within the block; neither the header nor blank lines are records. What columns mean is not known
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from llmrec_ray.types import Columns

__all__ = ["RECORD", "UNREADABLE_SCHEMA", "Records", "unreadable_frame"]

RECORD: Final = "__record__"
UNREADABLE_SCHEMA: Final = {RECORD: pl.Int64, Columns.REASON: pl.String, Columns.RAW: pl.String}


@dataclass(frozen=True)
class Records:
    """frame: RECORD (int64, ascending) and the wanted columns; unreadable: RECORD, reason and raw text of the others.

    show: numbers of records -> these as the file has them, see `raw`.
    """

    frame: pl.DataFrame
    unreadable: pl.DataFrame
    show: Callable[[Sequence[int]], list[str]]

    def raw(self, numbers: pl.Series) -> list[str]:
        """The records of `frame` with these numbers as the file has them; rows of Parquet as JSON."""
        return self.show(numbers.to_list()) if len(numbers) else []


def unreadable_frame(rows: Sequence[tuple[int, str, str]] = ()) -> pl.DataFrame:
    """Records nobody can read: number, reason and raw text of each."""
    return pl.DataFrame(list(rows), schema=UNREADABLE_SCHEMA, orient="row")
