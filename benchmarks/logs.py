"""A behaviour log of any length with the skew of real ones, as Parquet or CSV files of a million rows.

    python benchmarks/logs.py FOLDER --rows 1000000 [--format csv] [--seed 0]

Users and items are drawn from Zipf-Mandelbrot laws: with 40 events a user on average, the heaviest has thousands and
the lightest a handful. People meet the same popular items again, and some clicks are doubled. About one row in a
thousand cannot be used. Files follow each other in time, as a shop writes them, so that everybody's events lie in all
of them. A part depends on the seed, its number and the length of the log alone. It knows no ingest.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray

__all__ = ["ROWS_PER_PART", "LogFormat", "Size", "size_of", "write_log"]

LogFormat = Literal["parquet", "csv"]
ROWS_PER_PART = 1_000_000
ROWS_PER_USER = 40
ROWS_PER_ITEM = 50
SPREAD = 1000
"""The lightest user or item is drawn about so many times less often than the heaviest."""
FIRST_SECOND = 1_700_000_000
SECONDS_PER_PART = 86_400
LATE_SECONDS = 600
"""Rows are written up to so long after they happened, hence out of order."""
DOUBLE_CLICKS = 0.08
BAD_ROWS = 0.001
SCATTER = 2_654_435_761
"""A prime that puts ids into an order that says nothing about how often they occur."""


@dataclass(frozen=True)
class Size:
    """How many of everything; users and items grow with the rows, so that the work a row takes stays the same."""

    rows: int
    users: int
    items: int


def size_of(rows: int) -> Size:
    """The size of a log of so many rows."""
    return Size(rows, max(10, rows // ROWS_PER_USER), max(10, rows // ROWS_PER_ITEM))


def write_log(
    folder: Path, rows: int, *, file_format: LogFormat = "parquet", seed: int = 0, rows_per_part: int = ROWS_PER_PART
) -> list[Path]:
    """The files of the log, `part-00000.parquet` and so on, in the order of time; those that are there are kept.

    Columns: user_id, item_id text; timestamp int64 unix seconds; value float32, 1 to 5.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, start in enumerate(range(0, rows, rows_per_part)):
        file = folder / f"part-{number:05}.{file_format}"
        if not file.exists():
            part = _part(size_of(rows), number, min(rows_per_part, rows - start), seed)
            _write(part, file)
        files.append(file)
    return files


def _part(size: Size, number: int, rows: int, seed: int) -> pl.DataFrame:
    generator = np.random.default_rng((seed, size.rows, number))
    users, items = _zipf(generator, size.users, rows), _zipf(generator, size.items, rows)
    seconds = np.sort(generator.integers(0, SECONDS_PER_PART, rows)) - generator.integers(0, LATE_SECONDS, rows)
    doubled = np.flatnonzero(generator.random(rows) < DOUBLE_CLICKS)
    doubled = doubled[doubled > 0]
    users[doubled], items[doubled] = users[doubled - 1], items[doubled - 1]
    frame = pl.DataFrame({
        "user_id": _ids("u", users, size.users),
        "item_id": _ids("sku-", items, size.items),
        "timestamp": FIRST_SECOND + number * SECONDS_PER_PART + seconds,
        "value": generator.integers(1, 6, rows).astype(np.float32),
    })
    return _spoil(frame, generator)


def _zipf(generator: Generator, count: int, draws: int) -> NDArray[np.int64]:
    """Ranks below `count`, rank r with a probability of about 1 / (r + count / SPREAD)."""
    offset = count / SPREAD
    drawn = offset * ((count + offset) / offset) ** generator.random(draws) - offset
    return np.minimum(drawn.astype(np.int64), count - 1)


def _ids(prefix: str, ranks: NDArray[np.int64], count: int) -> pl.Series:
    return prefix + pl.Series(ranks * SCATTER % count).cast(pl.String)


def _spoil(frame: pl.DataFrame, generator: Generator) -> pl.DataFrame:
    """One in a thousand rows lacks an id or a time, or has a time that cannot be or a value that is no number."""
    kind = pl.Series(np.where(generator.random(len(frame)) < BAD_ROWS, generator.integers(0, 5, len(frame)), -1))
    spoilt = {
        "user_id": pl.when(kind != 0).then("user_id"),
        "item_id": pl.when(kind != 1).then("item_id"),
        "timestamp": pl.when(kind == 2).then(pl.lit(-1)).when(kind != 3).then("timestamp"),
        "value": pl.when(kind == 4).then(pl.lit(np.nan, pl.Float32)).otherwise("value"),
    }
    return frame.with_columns(**spoilt)


def _write(part: pl.DataFrame, file: Path) -> None:
    staged = file.with_name(f".{file.name}")
    if file.suffix == ".csv":
        part.write_csv(staged)
    else:
        part.write_parquet(staged)
    staged.replace(file)


def main() -> None:
    """Write a log and say where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    files = write_log(arguments.folder, arguments.rows, file_format=arguments.format, seed=arguments.seed)
    print(f"{arguments.rows:,} rows in {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
