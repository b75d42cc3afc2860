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
    ids = pl.concat([pl.Series(ID, [], dtype=pl.String), *(run.alias(ID) for run in runs)])
    rows_before = pl.int_range(len(earlier), eager=True)
    known = pl.DataFrame({ID: earlier, ROW: rows_before}, schema={ID: pl.String, ROW: pl.Int64})
    found = ids.to_frame().join(known, on=ID, how="left", maintain_order="left")[ROW]
    new = found.is_null()
    rows = found.fill_null(0).to_numpy().copy()
    rows[new.to_numpy()] = np.arange(len(known), len(known) + int(new.sum()))
    ends = np.cumsum([len(run) for run in runs])
    of_runs = [rows[end - len(run) : end] for run, end in zip(runs, ends, strict=True)]
    return pl.concat([known[ID], ids.filter(new)]), of_runs
