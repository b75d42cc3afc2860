"""What ingest makes of a log, by hand: one program in Polars, one in pandas, for logs that fit into memory.

    python benchmarks/by_hand.py polars|pandas LOG_FOLDER OUT_FOLDER

Both validate, quarantine, keep the first of repeated pairs, drop rare users and items to the fixpoint, number what is
left in the order of the ids, hold out each user's last two events, and write Parquet: `interactions`, `users`, `items`,
`quarantine`, and the counts as JSON. They are written as somebody would who knows the library; ids become numbers
as early as possible, and rows are sorted once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["LEAST_EVENTS", "in_pandas", "in_polars"]

LEAST_EVENTS = 5
"""k-core: users and items with fewer events are dropped."""
LATEST_SECOND = 7_258_118_400
SPLITS = ("train", "validation", "test")
REASONS = ("missing_user_id", "missing_item_id", "bad_timestamp", "timestamp_out_of_range", "bad_value")


def in_polars(log: Path, out: Path) -> None:
    """LOG/*.parquet -> the result in OUT."""
    import polars as pl

    checks = (
        pl.col("user_id").is_null(), pl.col("item_id").is_null(), pl.col("timestamp").is_null(),
        ~pl.col("timestamp").is_between(0, LATEST_SECOND, closed="left"), ~pl.col("value").is_finite(),
    )
    reason = pl.coalesce(pl.when(check).then(pl.lit(name)) for check, name in zip(checks, REASONS, strict=True))
    scans = [
        pl.scan_parquet(file, row_index_name="position").with_columns(pl.lit(file.name).alias("file"), reason=reason)
        for file in sorted(log.glob("*.parquet"))
    ]
    bad = pl.concat(scan.filter(pl.col("reason").is_not_null()) for scan in scans).collect()
    raw = pl.struct("user_id", "item_id", "timestamp", "value").struct.json_encode().alias("raw")
    bad.select("file", pl.col("position").cast(pl.Int64) + 1, "reason", raw).write_parquet(out / "quarantine.parquet")
    good = pl.concat(
        scan.filter(pl.col("reason").is_null()).select("user_id", "item_id", "timestamp", "value") for scan in scans
    ).collect()
    ids = {name: good[f"{name}_id"].unique().sort() for name in ("user", "item")}
    events = good.select(
        *(pl.col(f"{name}_id").cast(pl.Enum(ids[name])).to_physical().alias(name) for name in ids), "timestamp", "value"
    )
    del good
    rows_read = len(events) + len(bad)
    events, dropped = _filtered_by_polars(events)
    for name in ids:
        left = events.select(pl.col(name).unique().sort())[name]
        rows = pl.int_range(len(left), eager=True)
        pl.DataFrame({"row": rows, "id": ids[name].gather(left)}).write_parquet(out / f"{name}s.parquet")
        row_of = pl.zeros(len(ids[name]), pl.Int64, eager=True).scatter(left, rows)
        events = events.with_columns(row_of.gather(events[name]).alias(f"{name}_row"))
    user = pl.col("user_row")
    split = (
        pl.when(user.shift(-1).ne_missing(user)).then(pl.lit("test"))
        .when(user.shift(-2).ne_missing(user)).then(pl.lit("validation")).otherwise(pl.lit("train"))
    )
    moment = (pl.col("timestamp") * 1_000_000).cast(pl.Datetime("us", "UTC"))
    events = events.select("user_row", "item_row", moment, "value", split.cast(pl.Enum(SPLITS)).alias("split"))
    events.write_parquet(out / "interactions.parquet")
    _write_counts(out, rows_read, len(events), len(bad), dropped)


def _filtered_by_polars(events: Any) -> tuple[Any, dict[str, int]]:
    """Events (user, item, timestamp, value) that stay, by user and time, and how many each filter dropped."""
    import polars as pl

    rows = len(events)
    events = events.sort("timestamp", maintain_order=True).sort("user", maintain_order=True)
    events = events.filter(pl.col("item").is_first_distinct().over("user"))
    dropped = {"repeated_pair": rows - len(events), "rare_user": 0, "rare_item": 0}
    before = -1
    while before != len(events):
        before = len(events)
        for name, column in (("rare_user", "user"), ("rare_item", "item")):
            kept = events.filter(pl.len().over(column) >= LEAST_EVENTS)
            dropped[name] += len(events) - len(kept)
            events = kept
    return events, dropped


def in_pandas(log: Path, out: Path) -> None:
    """LOG/*.parquet -> the result in OUT."""
    import numpy as np
    import pandas as pd

    parts = []
    for file in sorted(log.glob("*.parquet")):
        part = pd.read_parquet(file)
        parts.append(part.assign(file=file.name, position=np.arange(1, len(part) + 1)))
    frame = pd.concat(parts, ignore_index=True).astype({"file": "category"})
    del parts
    checks = [
        frame.user_id.isna(), frame.item_id.isna(), frame.timestamp.isna(),
        (frame.timestamp < 0) | (frame.timestamp >= LATEST_SECOND), ~np.isfinite(frame.value),
    ]
    is_bad = np.logical_or.reduce(checks)
    bad = frame[is_bad]
    reason = np.select([check[is_bad] for check in checks], REASONS, "")
    raw = bad[["user_id", "item_id", "timestamp", "value"]].apply(lambda row: row.to_json(), axis=1)
    bad[["file", "position"]].assign(reason=reason, raw=raw).to_parquet(out / "quarantine.parquet", index=False)

    rows_read = len(frame)
    events = frame.loc[~is_bad, ["user_id", "item_id", "timestamp", "value"]]
    del frame, checks
    events = events.astype({"user_id": "category", "item_id": "category", "timestamp": "int64"})
    ids = {name: events[f"{name}_id"].cat.categories for name in ("user", "item")}
    events = events.assign(user=events.user_id.cat.codes, item=events.item_id.cat.codes)
    events = events.drop(columns=["user_id", "item_id"])
    events, dropped = _filtered_by_pandas(events)
    for name in ids:
        left = np.sort(events[name].unique())
        named = pd.DataFrame({"row": np.arange(len(left)), "id": ids[name][left]})
        named.to_parquet(out / f"{name}s.parquet", index=False)
        events = events.assign(**{f"{name}_row": np.searchsorted(left, events[name])})
    from_end = events.groupby("user_row").cumcount(ascending=False)
    split = pd.Categorical.from_codes(2 - np.minimum(from_end, 2), SPLITS)
    events = events[["user_row", "item_row", "timestamp", "value"]].assign(
        timestamp=pd.to_datetime(events.timestamp, unit="s", utc=True).astype("datetime64[us, UTC]"), split=split
    )
    events.to_parquet(out / "interactions.parquet", index=False)
    _write_counts(out, rows_read, len(events), len(bad), dropped)


def _filtered_by_pandas(events: Any) -> tuple[Any, dict[str, int]]:
    """Events (user, item, timestamp, value) that stay, by user and time, and how many each filter dropped."""
    rows = len(events)
    events = events.sort_values(["user", "timestamp"], kind="stable").drop_duplicates(["user", "item"])
    dropped = {"repeated_pair": rows - len(events), "rare_user": 0, "rare_item": 0}
    before = -1
    while before != len(events):
        before = len(events)
        for name, column in (("rare_user", "user"), ("rare_item", "item")):
            kept = events[events.groupby(column)[column].transform("size") >= LEAST_EVENTS]
            dropped[name] += len(events) - len(kept)
            events = kept
    return events, dropped


def _write_counts(out: Path, rows_read: int, rows_kept: int, quarantined: int, dropped: dict[str, int]) -> None:
    counts: dict[str, Any] = {
        "rows_read": rows_read, "rows_kept": rows_kept, "rows_quarantined": quarantined,
        "rows_dropped_by_filter": dropped,
    }
    (out / "counts.json").write_text(json.dumps(counts))


def main() -> None:
    """Run one program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", choices=("polars", "pandas"))
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    {"polars": in_polars, "pandas": in_pandas}[arguments.program](arguments.log, arguments.out)


if __name__ == "__main__":
    main()
