"""The interactions of a Dataset from which a person was taken -> its tables of popularity and companions, anew.

Counted part by part as in an ingest, so that nothing in them is the person's alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec_ray.data.aggregates import cut_pairs, merge_pairs, merge_popularity, part_popularity, write_pairs
from llmrec_ray.data.files import write_parquet
from llmrec_ray.types import Columns, IntArray

__all__ = ["is_counted", "recount"]

POPULARITY, COMPANIONS = "popularity.parquet", "cooccurrence"


def is_counted(name: str) -> bool:
    """Whether a file of a Dataset is one of those that `recount` writes."""
    return name == POPULARITY or name.startswith(f"{COMPANIONS}/")


def recount(folder: Path, data: dict[str, Any], n_items: int) -> None:
    """Write the tables of a Dataset that has its interactions in `folder`. data: its config."""
    parts = sorted((folder / "interactions").glob("*.parquet"))
    popularity = merge_popularity(part_popularity(pl.read_parquet(part), data["popularity_days"]) for part in parts)
    write_parquet(popularity, folder / POPULARITY)
    if data["cooccurrence"] is not None:
        _write_companions(folder, parts, n_items, **data["cooccurrence"])


def _write_companions(folder: Path, parts: list[Path], n_items: int, within: int, top: int) -> None:
    starts = cut_pairs(_events_per_item(parts, n_items), within)
    (folder / COMPANIONS).mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as pairs:
        for part in parts:
            write_pairs(pl.read_parquet(part), within, starts, Path(pairs), part.stem)
        for number in range(len(starts)):
            write_parquet(merge_pairs(number, Path(pairs), top), folder / COMPANIONS / f"part-{number:05}.parquet")


def _events_per_item(parts: list[Path], n_items: int) -> IntArray:
    counts = np.zeros(n_items, np.int64)
    for part in parts:
        counts += np.bincount(pl.read_parquet(part, columns=[Columns.ITEM_ROW])[Columns.ITEM_ROW], minlength=n_items)
    return counts
