"""Logs -> everything of a Dataset that follows from events: ids in row order, parts of interactions, counts.

    fragments of Logs --> encoded ranges     windows, repeats, sessions, robots, rare users, one range of users each
    encoded ranges <--> k-core               rounds that exchange how many events each item lost
    encoded ranges --> parts                 rows for ids, splits

No step holds all events; what one process holds are ids and counts.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial, reduce
from pathlib import Path

import numpy as np
import polars as pl

from llmrec_ray.config import DataConfig
from llmrec_ray.data.aggregates import cut_pairs, merge_pairs, merge_popularity, part_popularity, write_pairs
from llmrec_ray.data.encoded import EncodedRange, encode_range, finish_range, found_items, peel_range
from llmrec_ray.data.files import write_parquet
from llmrec_ray.data.kcore import ItemCounts
from llmrec_ray.data.log import LoggedEvents, common_splitters
from llmrec_ray.data.parts import FIRST, NumberedRange, PartPlan, part_events, plan_parts
from llmrec_ray.data.ranges import read_fragment, write_fragment
from llmrec_ray.data.rows import ID, number_ids
from llmrec_ray.data.splits import SplitCounts, SplitPlan, TimeCuts, count_times, plan_splits
from llmrec_ray.data.spread import Spread
from llmrec_ray.types import Columns, IntArray

__all__ = ["Assembled", "assemble"]

ITEM_RANGES = 16
ITEMS = "items.arrow"


@dataclass(frozen=True)
class Assembled:
    """Files of parts and tables in `folder`, ids in row order, and rows dropped by filter.

    items: ids with events or a row of an earlier Dataset. mentioned: ids of all items that the Logs speak of.
    """

    folder: Path
    users: pl.Series
    items: pl.Series
    mentioned: pl.Series
    kept: int
    dropped: dict[str, int]


def assemble(
    logs: Sequence[LoggedEvents], data: DataConfig, scratch: Path, spread: Spread,
    *, earlier_users: pl.Series, earlier_items: pl.Series,
) -> Assembled:
    """Make the events' part of a Dataset from Logs; ids of an earlier Dataset keep their rows.

    kept is 0, and there are no files, when the filters leave nothing. Raises DataError when the split does not fit.
    """
    ranges = _encode(logs, data, scratch, spread)
    filters = list(dict.fromkeys(name for encoded in ranges for name in encoded.dropped))
    dropped = {name: sum(encoded.dropped.get(name, 0) for encoded in ranges) for name in filters}
    mentioned = _merge_items(ranges)
    core = _k_core(ranges, mentioned, data, scratch, spread)
    ranges = core.ranges
    dropped |= {"rare_user": dropped.get("rare_user", 0) + core.rare_user, "rare_item": core.rare_item}
    found = mentioned[ID].filter(pl.Series(core.counts > 0))
    items, [rows] = number_ids([found], earlier_items)
    item_rows = np.full(len(mentioned), -1, np.int64)
    item_rows[core.counts > 0] = rows
    np.save(scratch / "item_rows.npy", item_rows)
    users, events_per_user, numbered = _number_users(ranges, earlier_users, scratch, spread)
    kept = int(events_per_user.sum())
    folder = scratch / "made"
    if kept:
        cuts = _time_cuts(ranges, kept, data, spread)
        splits = plan_splits(data, items.to_list() if data.split == "cold_items" else (), cuts)
        starts = _item_starts(core.counts, item_rows, len(items), data)
        writer = _Writer(splits, data, scratch / "item_rows.npy", starts, folder, scratch)
        _write(plan_parts(events_per_user, numbered), writer, spread)
    return Assembled(folder, users, items, mentioned[ID], kept, dropped)


def _item_starts(counts: IntArray, item_rows: IntArray, n_items: int, data: DataConfig) -> list[int]:
    """Where the items are cut into ranges for counting pairs."""
    if data.cooccurrence is None:
        return []
    per_row = np.zeros(n_items, np.int64)
    per_row[item_rows[item_rows >= 0]] = counts[item_rows >= 0]
    return cut_pairs(per_row, data.cooccurrence.within)


def _encode(logs: Sequence[LoggedEvents], data: DataConfig, scratch: Path, spread: Spread) -> list[EncodedRange]:
    splitters = common_splitters(logs, spread)
    cut = [_cut_at(log, splitters, scratch / f"cut-{number}", spread) for number, log in enumerate(logs)]
    fragments = list(itertools.chain.from_iterable(cut))
    newest = max((log.newest for log in logs if log.newest is not None), default=None)
    folder = scratch / "ranges"
    folder.mkdir()
    encode = partial(encode_range, fragments=fragments, folder=folder, data=data, newest=newest)
    return spread.map(encode, range(len(splitters) + 1) if fragments else [], "sort")


def _cut_at(log: LoggedEvents, splitters: Sequence[str], folder: Path, spread: Spread) -> list[Path]:
    """The Log's fragments, cut anew when its ranges are others."""
    if log.splitters == list(splitters):
        return log.fragments
    folder.mkdir()
    return spread.map(partial(_cut_fragment, splitters=splitters, folder=folder), log.fragments, "cut")


def _cut_fragment(path: Path, splitters: Sequence[str], folder: Path) -> Path:
    events = read_fragment(path)
    write_fragment(events, splitters, folder / path.name)
    return folder / path.name


def _merge_items(ranges: Sequence[EncodedRange]) -> pl.DataFrame:
    """All items that the ranges mention: id, count int64 of events so far; sorted by id."""
    merged = pl.DataFrame(schema={ID: pl.String, "count": pl.Int64})
    for start in range(0, len(ranges), ITEM_RANGES):
        found = [found_items(encoded) for encoded in ranges[start : start + ITEM_RANGES]]
        merged = pl.concat([merged, *found]).group_by(ID).agg(pl.col("count").sum())
    return merged.sort(ID)


@dataclass(frozen=True)
class _Core:
    ranges: list[EncodedRange]
    counts: IntArray
    rare_user: int
    rare_item: int


def _k_core(
    ranges: list[EncodedRange], mentioned: pl.DataFrame, data: DataConfig, scratch: Path, spread: Spread
) -> _Core:
    ids, dead_items = scratch / ITEMS, scratch / "dead.npy"
    mentioned.select(ID).write_ipc(ids)
    counts = ItemCounts(mentioned["count"].to_numpy().copy(), data.min_item_interactions)
    rare_user = rare_item = 0
    peel = partial(peel_range, items=ids, dead=dead_items, min_user_events=data.min_user_interactions)
    while (dead := counts.newly_rare()).any():
        np.save(dead_items, dead)
        for lost in spread.map(peel, ranges, "k-core"):
            rare_user, rare_item = rare_user + lost.rare_user, rare_item + lost.rare_item
            counts.lost(lost.items, lost.counts)
        ranges = [encoded.peeled for encoded in ranges]
        counts.counts[dead] = 0
    return _Core(ranges, counts.counts, rare_user, rare_item)


def _number_users(
    ranges: Sequence[EncodedRange], earlier: pl.Series, scratch: Path, spread: Spread
) -> tuple[pl.Series, IntArray, list[NumberedRange]]:
    """Ids in row order, events per row, and the ranges with the rows of their users."""
    counts = spread.map(partial(finish_range, items=scratch / ITEMS), ranges, "count")
    runs = [encoded.users.filter(pl.Series(count > 0)) for encoded, count in zip(ranges, counts, strict=True)]
    users, rows = number_ids(runs, earlier)
    events_per_user = np.zeros(len(users), np.int64)
    numbered = []
    for encoded, count, row in zip(ranges, counts, rows, strict=True):
        user_rows = np.full(len(count), -1, np.int64)
        user_rows[count > 0] = row
        events_per_user[row] = count[count > 0]
        np.save(encoded.folder / "user_rows.npy", user_rows)
        if len(row):
            numbered.append(NumberedRange(encoded, encoded.folder / "user_rows.npy", int(row.min()), int(row.max())))
    return users, events_per_user, numbered


def _time_cuts(
    ranges: Sequence[EncodedRange], kept: int, data: DataConfig, spread: Spread
) -> tuple[datetime, datetime] | None:
    """The moments that cut `global_time`, exact, from histograms of the ranges."""
    if data.split != "global_time":
        return None
    cuts = TimeCuts(kept, *data.time_shares)
    while not cuts.done:
        for counts in spread.map(partial(_times, edges=cuts.edges()), ranges, "times"):
            cuts.add(counts)
    return cuts.cuts


def _times(encoded: EncodedRange, edges: IntArray) -> IntArray:
    moments = encoded.events[Columns.TIMESTAMP].to_physical().to_numpy()
    return count_times(moments[encoded.alive], edges)


@dataclass(frozen=True)
class _Writer:
    """Writes one part of the interactions, and what is added up over parts."""

    splits: SplitPlan
    data: DataConfig
    item_rows: Path
    item_starts: list[int]
    folder: Path
    scratch: Path

    def __call__(self, plan: PartPlan) -> SplitCounts:
        marked = self.splits.mark(part_events(plan, self.item_rows))
        name = f"part-{plan.number:05}"
        ordered = marked.select(*FIRST, Columns.SPLIT, pl.exclude(*FIRST, Columns.SPLIT))
        write_parquet(ordered, self.folder / "interactions" / f"{name}.parquet")
        part_popularity(marked, self.data.popularity_days).write_ipc(self.scratch / "popularity" / f"{name}.arrow")
        if self.data.cooccurrence is not None:
            write_pairs(marked, self.data.cooccurrence.within, self.item_starts, self.scratch / "pairs", name)
        return self.splits.count(marked)


def _write(plans: Sequence[PartPlan], writer: _Writer, spread: Spread) -> None:
    (writer.folder / "interactions").mkdir(parents=True)
    for folder in ("popularity", "pairs"):
        (writer.scratch / folder).mkdir()
    counts = spread.map(writer, plans, "write")
    writer.splits.check(reduce(operator.add, counts))
    popularity = (pl.read_ipc(path) for path in sorted((writer.scratch / "popularity").iterdir()))
    write_parquet(merge_popularity(popularity), writer.folder / "popularity.parquet")
    if writer.data.cooccurrence is not None:
        (writer.folder / "cooccurrence").mkdir()
        spread.map(_Merger(writer), range(len(writer.item_starts)), "pairs")


@dataclass(frozen=True)
class _Merger:
    """Writes the companions of one range of items."""

    writer: _Writer

    def __call__(self, number: int) -> None:
        assert self.writer.data.cooccurrence is not None
        pairs = merge_pairs(number, self.writer.scratch / "pairs", self.writer.data.cooccurrence.top)
        write_parquet(pairs, self.writer.folder / "cooccurrence" / f"part-{number:05}.parquet")
