"""The parts of a Dataset's interactions -> how popular each item was when, and which items the same people met.

Both are made from the train split alone, so that nothing held out is told. Each part is counted apart and the counts
are added; neither parts nor ranges of items can change the result.

    part --> popularity of the part --> merged                          item_row, period_start, events
    part --> pairs, one Arrow file, one record batch per range of items
             pairs of one range, of all parts --> the top companions    item_row, other_row, count
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from llmrec_ray.types import Columns, IntArray

__all__ = ["COOCCURRENCE", "cut_pairs", "merge_pairs", "merge_popularity", "part_popularity", "write_pairs"]

DAY_US = 86_400_000_000
PERIOD, EVENTS = "period_start", "events"
OTHER, COUNT, PAIR = "other_row", "count", "pair"
PAIRS_AT_ONCE = 4_000_000
CELLS = 1 << 25
HALF = 1 << 32
MASK = HALF - 1
Types = dict[str, "pl.DataType | type[pl.DataType]"]
COOCCURRENCE: Types = {Columns.ITEM_ROW: pl.Int64, OTHER: pl.Int64, COUNT: pl.Int64}
POPULARITY: Types = {Columns.ITEM_ROW: pl.Int64, PERIOD: pl.Datetime("us", "UTC"), EVENTS: pl.Int64}


def part_popularity(part: pl.DataFrame, days: float) -> pl.DataFrame:
    """Train events per item and period in a part (item_row, timestamp, split): item_row int64, period_start datetime
    (UTC), events int64, sorted. Periods are `days` long, the first begins with 1970; those without events are missing.
    """
    length = round(days * DAY_US)
    train = part.filter(pl.col(Columns.SPLIT) == "train")
    items: IntArray = train[Columns.ITEM_ROW].to_numpy()
    periods: IntArray = train[Columns.TIMESTAMP].dt.epoch("us").to_numpy() // length
    first, span = (int(periods.min()), int(np.ptp(periods)) + 1) if len(periods) else (0, 1)
    found, counts = np.unique(items * span + (periods - first), return_counts=True)  # faster than two columns
    columns = {Columns.ITEM_ROW: found // span, PERIOD: (found % span + first) * length, EVENTS: counts}
    return pl.DataFrame(columns).cast({PERIOD: pl.Datetime("us", "UTC")})


def merge_popularity(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """What `part_popularity` gives for all the parts together, counted in arrays of items and periods of no more than
    CELLS each."""
    parts = [frame for frame in frames if len(frame)]
    if not parts:
        return pl.DataFrame(schema=POPULARITY)
    periods = pl.concat([part[PERIOD].unique() for part in parts]).unique().sort()
    n_items = max(int(part[Columns.ITEM_ROW][-1]) for part in parts) + 1
    step = max(1, CELLS // len(periods))
    return pl.concat([_add_up(parts, periods, first, min(first + step, n_items)) for first in range(0, n_items, step)])


def cut_pairs(events_per_item: IntArray, within: int) -> list[int]:
    """The first item row of each range of items, [R], ascending from 0, so that no range has many more pairs than the
    others and a range fits into memory; from the events of each item, [n_items], in all parts."""
    pairs = np.cumsum(events_per_item) * 2 * within
    numbers = np.maximum(pairs - 1, 0) // PAIRS_AT_ONCE
    return [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()]


def write_pairs(part: pl.DataFrame, within: int, starts: Sequence[int], folder: Path, name: str) -> None:
    """Count how many people of a part met two items within so many steps of their train history.

    part: user_row, item_row, split, sorted; whole histories. starts: first item row of each range, see cut_pairs.
    Writes `<name>-<number>.arrow` into `folder`, a record batch per range: pair uint64, item_row in its upper half and
    other_row in the lower, count uint32; every pair in both directions.
    """
    train = part.filter(pl.col(Columns.SPLIT) == "train")
    users, items = train[Columns.USER_ROW].to_numpy(), train[Columns.ITEM_ROW].to_numpy().astype(np.uint64)
    steps_at_once = max(1, PAIRS_AT_ONCE // max(1, 2 * len(items)))
    for number, first in enumerate(range(1, within + 1, steps_at_once)):
        steps = range(first, min(first + steps_at_once, within + 1))
        met, counts = np.unique(np.concatenate(list(_pairs(users, items, steps))), return_counts=True)
        _write_ranges(met, counts.astype(np.uint32), starts, folder / f"{name}-{number:03}.arrow")


def merge_pairs(number: int, folder: Path, top: int) -> pl.DataFrame:
    """The `top` companions of each item of one range, those that most people met near it, out of all the parts' files
    in `folder`: item_row, other_row, count int64, sorted by item, then from the most frequent, equals by row."""
    found = pl.concat([_read_range(path, number) for path in sorted(folder.glob("*.arrow"))])
    pairs = _sum_runs(found.cast({COUNT: pl.UInt64}).sort(PAIR), COUNT)
    order = pl.col(PAIR) // HALF * HALF + (MASK - pl.col(COUNT))  # by item, then from the most frequent
    ordered = pairs.sort(order, maintain_order=True)
    rows = ordered.select((pl.col(PAIR) // HALF).alias(Columns.ITEM_ROW), (pl.col(PAIR) & MASK).alias(OTHER), COUNT)
    item = pl.col(Columns.ITEM_ROW)
    return rows.filter((item != item.shift(top)).fill_null(True)).cast(pl.Int64)


def _add_up(parts: Sequence[pl.DataFrame], periods: pl.Series, first: int, stop: int) -> pl.DataFrame:
    """The popularity of the items from `first` up to `stop`."""
    cells = np.zeros((stop - first) * len(periods), np.int64)
    for part in parts:
        rows = part[Columns.ITEM_ROW]
        begin, end = rows.search_sorted(first), rows.search_sorted(stop)
        inside = part[begin:end]
        places = (inside[Columns.ITEM_ROW].to_numpy() - first) * len(periods)
        cells[places + periods.search_sorted(inside[PERIOD]).to_numpy()] += inside[EVENTS].to_numpy()
    found = np.flatnonzero(cells)
    return pl.DataFrame({
        Columns.ITEM_ROW: first + found // len(periods), PERIOD: periods.gather(found % len(periods)),
        EVENTS: cells[found],
    }, schema=POPULARITY)


def _sum_runs(ordered: pl.DataFrame, column: str) -> pl.DataFrame:
    """One row for each run of rows that are alike but for this column, with its sum."""
    changes = [pl.col(name) != pl.col(name).shift() for name in ordered.columns if name != column]
    begins = ordered.select(pl.any_horizontal(changes).fill_null(True).arg_true()).to_series()
    if not len(begins):
        return ordered
    sums = np.add.reduceat(ordered[column].to_numpy(), begins.to_numpy())
    return ordered[begins].with_columns(pl.Series(column, sums))


def _pairs(users: IntArray, items: NDArray[np.uint64], steps: Iterable[int]) -> Iterator[NDArray[np.uint64]]:
    """The pairs of events of one user that are so many steps apart, in both directions."""
    for step in steps:
        same = (users[step:] == users[:-step]) & (items[step:] != items[:-step])
        earlier, later = items[:-step][same], items[step:][same]
        yield (earlier << np.uint64(32)) | later
        yield (later << np.uint64(32)) | earlier


def _write_ranges(pairs: NDArray[np.uint64], counts: NDArray[np.uint32], starts: Sequence[int], path: Path) -> None:
    edges = np.searchsorted(pairs, np.array(starts, np.uint64) << np.uint64(32))
    schema = pa.schema([(PAIR, pa.uint64()), (COUNT, pa.uint32())])
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
        for begin, end in zip(edges, [*edges[1:], len(pairs)], strict=True):
            columns = [pa.array(pairs[begin:end]), pa.array(counts[begin:end])]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _read_range(path: Path, number: int) -> pl.DataFrame:
    with pa.OSFile(str(path)) as file:
        return pl.DataFrame(pl.from_arrow(pa.ipc.open_file(file).get_batch(number)))
