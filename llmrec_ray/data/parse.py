"""The records of one file -> typed, validated rows and a quarantine with reason codes.

This is the work done inside a block: it needs one file and its section of the recipe, nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import polars as pl

from llmrec_ray.config import DataConfig, LogConfig, TableConfig
from llmrec_ray.data.records import raw_records, read_records
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.errors import DataError
from llmrec_ray.text import TextTemplate
from llmrec_ray.types import Columns

__all__ = ["QUARANTINE_SCHEMA", "ParsedFile", "parse_file"]

NUMBER = "file_number"
QUARANTINE_SCHEMA = {
    "table": pl.String(), Columns.FILE: pl.String(), Columns.POSITION: pl.Int64(), Columns.REASON: pl.String(),
    Columns.RAW: pl.String(),
}  # fmt: skip
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
LATEST = "2200-01-01"


@dataclass(frozen=True)
class ParsedFile:
    """One file after validation: rows = good rows + quarantined rows."""

    source: SourceFile
    sha256: str
    good: pl.DataFrame
    quarantine: pl.DataFrame

    @property
    def rows(self) -> int:
        """Records read."""
        return len(self.good) + len(self.quarantine)


def parse_file(source: SourceFile, data: DataConfig) -> ParsedFile:
    """Read and validate one file. Raises MissingInputError and DataError naming the file.

    Good rows of the log: file_number, position int64, user_id, item_id, timestamp datetime[us, UTC], value float32.
    Good rows of a table: file_number, position, the id column under its name, and every column its text, title
    and attributes need.
    """
    payload = source.read()
    config = _section(source, data)
    columns = _log_columns(config) if isinstance(config, LogConfig) else _table_columns(config)
    frame, malformed = read_records(payload, config.format, columns, source.name)
    _refuse_nested(frame, source.name)
    checked = _check_log(frame, config) if isinstance(config, LogConfig) else _check_table(frame, config)
    bad = pl.concat([
        pl.DataFrame({Columns.POSITION: malformed}, schema={Columns.POSITION: pl.Int64})
        .with_columns(pl.lit("malformed").alias(Columns.REASON)),
        checked.filter(pl.col(Columns.REASON).is_not_null()).select(Columns.POSITION, Columns.REASON),
    ]).sort(Columns.POSITION)
    quarantine = bad.with_columns(
        pl.lit(source.table).alias("table"), pl.lit(source.name).alias(Columns.FILE),
        pl.Series(Columns.RAW, raw_records(payload, config.format, bad[Columns.POSITION].to_list()), dtype=pl.String),
    ).select(pl.col(name).cast(dtype) for name, dtype in QUARANTINE_SCHEMA.items())
    good = checked.filter(pl.col(Columns.REASON).is_null()).drop(Columns.REASON)
    return ParsedFile(
        source, hashlib.sha256(payload).hexdigest(),
        good.select(pl.lit(source.number, dtype=pl.Int64).alias(NUMBER), pl.all()), quarantine,
    )


def _section(source: SourceFile, data: DataConfig) -> LogConfig | TableConfig:
    config = {"interactions": data.interactions, "items": data.items, "users": data.users}[source.table]
    assert config is not None, f"a file of {source.table}, which the recipe does not describe. This is a bug."
    return config


def _log_columns(log: LogConfig) -> list[str]:
    names = log.columns
    return [names.user_id, names.item_id, names.timestamp, *([names.value] if names.value else [])]


def _table_columns(table: TableConfig) -> list[str]:
    title = [table.title] if table.title else []
    return [table.id, *title, *TextTemplate(table.template).fields, *table.attributes]


def _refuse_nested(frame: pl.DataFrame, name: str) -> None:
    for column, dtype in frame.schema.items():
        if dtype.is_nested() or dtype == pl.Object:
            raise DataError(f"The column {column!r} of {name} holds {dtype}, not one value a row: flatten it first.")


def _check_log(frame: pl.DataFrame, log: LogConfig) -> pl.DataFrame:
    names = log.columns
    typed = frame.select(
        Columns.POSITION,
        _id(names.user_id).alias(Columns.USER_ID),
        _id(names.item_id).alias(Columns.ITEM_ID),
        _timestamp(names.timestamp, frame.schema[names.timestamp], log.timestamp_unit).alias(Columns.TIMESTAMP),
        _value(names.value).alias(Columns.VALUE),
    )
    moment = pl.col(Columns.TIMESTAMP)
    reason = (
        pl.when(pl.col(Columns.USER_ID).is_null()).then(pl.lit("missing_user_id"))
        .when(pl.col(Columns.ITEM_ID).is_null()).then(pl.lit("missing_item_id"))
        .when(moment.is_null()).then(pl.lit("bad_timestamp"))
        .when((moment < 0) | (moment >= _microseconds(LATEST))).then(pl.lit("timestamp_out_of_range"))
        .when(~pl.col(Columns.VALUE).is_finite().fill_null(False)).then(pl.lit("bad_value"))
    )
    return typed.with_columns(
        reason.alias(Columns.REASON), moment.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )


def _check_table(frame: pl.DataFrame, table: TableConfig) -> pl.DataFrame:
    return frame.with_columns(
        _id(table.id),
        pl.when(_id(table.id).is_null()).then(pl.lit("missing_id")).alias(Columns.REASON),
    )


def _id(column: str) -> pl.Expr:
    """Ids are text without white space around; nothing else is an id."""
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text).alias(column)


def _value(column: str | None) -> pl.Expr:
    return pl.lit(1.0, dtype=pl.Float32) if column is None else _number(column).cast(pl.Float32)


def _number(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)


def _timestamp(column: str, dtype: pl.DataType, unit: str) -> pl.Expr:
    """Microseconds since 1970 UTC, int64; null where there is no time. A typed time needs no unit."""
    if dtype.is_temporal():
        return pl.col(column).cast(pl.Datetime("us")).dt.epoch("us")
    if unit == "iso8601":
        return _iso8601(pl.col(column).cast(pl.String)).dt.epoch("us")
    text = pl.col(column).cast(pl.String).str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    limit = 2**62 // MICROSECONDS[unit]
    exact = pl.when(whole.abs() < limit).then(whole * MICROSECONDS[unit])
    rounded = (_number(column) * MICROSECONDS[unit]).round()
    return pl.coalesce(exact, pl.when(rounded.is_finite()).then(rounded.clip(-(2.0**62), 2.0**62)).cast(pl.Int64))


def _iso8601(text: pl.Expr) -> pl.Expr:
    """Date, date and time, with or without offset; without one it is UTC."""
    plain = text.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)[ t]", "${1}T").str.replace(r"[zZ]$", "+00:00")
    zoned = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z")
    naive = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
    return pl.coalesce(
        *(plain.str.to_datetime(f, time_unit="us", time_zone="UTC", strict=False).dt.replace_time_zone(None)
          for f in zoned),
        *(plain.str.to_datetime(f, time_unit="us", strict=False) for f in naive),
        plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
    )


def _microseconds(date: str) -> pl.Expr:
    return pl.lit(date).str.to_date().cast(pl.Datetime("us")).dt.epoch("us")
