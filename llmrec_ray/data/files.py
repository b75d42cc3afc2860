"""A frame -> a Parquet file whose bytes follow from its rows alone.

Polars writes what lies in memory apart as row groups of their own, and where that is depends on the cores of a machine.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

__all__ = ["write_parquet"]


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write the rows, however many threads made them, as the same bytes."""
    frame.rechunk().write_parquet(path)
