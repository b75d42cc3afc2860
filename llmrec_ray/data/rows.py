"""Ids found in sorted runs -> rows: those of an earlier Dataset keep theirs, the others follow in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from llmrec_ray.types import IntArray

__all__ = ["ID", "number_ids"]

ID, ROW = "id", "row"


def number_ids(runs: Sequence[pl.Series], earlier: pl.Series) -> tuple[pl.Series, list[IntArray]]:
    """All ids in row order, and the rows of each run, int64.

    runs: ids, distinct and sorted, all of a run before all of the next. earlier: ids that have the rows 0, 1, 2, …
    already; they keep them whether they are found or not.
    """
    rows_before = pl.int_range(len(earlier), eager=True)
    known = pl.DataFrame({ID: earlier, ROW: rows_before}, schema={ID: pl.String, ROW: pl.Int64})
    ids, rows = [known[ID]], []
    next_row = len(known)
    for run in runs:
        if len(known):
            found = pl.DataFrame({ID: run}).join(known, on=ID, how="left", maintain_order="left")[ROW]
        else:
            found = pl.repeat(None, len(run), dtype=pl.Int64, eager=True)
        new = found.is_null().to_numpy()
        numbers = found.fill_null(0).to_numpy().copy()
        numbers[new] = np.arange(next_row, next_row + int(new.sum()))
        next_row += int(new.sum())
        ids.append(run.filter(pl.Series(new)))
        rows.append(numbers)
    return pl.concat([series.alias(ID) for series in ids]), rows
