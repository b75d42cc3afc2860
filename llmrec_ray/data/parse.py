"""One file -> typed, validated rows and a quarantine with reason codes.

This is the work done inside a block: it needs one file and the recipe's data section, nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from llmrec_ray.config import LogConfig, TableConfig
from llmrec_ray.data.records import RECORD, Records, read_records
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.errors import DataError
from llmrec_ray.text import TextTemplate
from llmrec_ray.types import Columns

__all__ = ["FILE_NUMBER", "ParsedFile", "natural_types", "parse_file"]

FILE_NUMBER = "__file__"
REASON = "__reason__"
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
TIME_LIMIT_US = 7_258_118_400_000_000  # 2200-01-01: beyond it the unit is wrong
QUARANTINE_SCHEMA = {
    "table": pl.String, Columns.FILE: pl.String, Columns.POSITION: pl.Int64, Columns.REASON: pl.String,
    Columns.RAW: pl.String,
}


@dataclass(frozen=True)
class ParsedFile:
    """One file after validation: rows read = good rows + quarantined rows.

    good: FILE_NUMBER, RECORD, then for the log user_id, item_id, timestamp datetime[us, UTC], value float32;
    for a table its id as text and every column that text, title and attributes need. quarantine: table, file,
    position (the record's number), reason, raw.
    """

    source: SourceFile
    sha256: str
    good: pl.DataFrame
    quarantine: pl.DataFrame

    @property
    def rows(self) -> int:
        """Records read."""
        return len(self.good) + len(self.quarantine)


def parse_file(source: SourceFile) -> ParsedFile:
    """Read and validate one file. Raises MissingInputError and DataError naming the file."""
    payload = source.read()
    config = source.config
    records = read_records(payload, config.format, _columns(config), source.name)
    _refuse_nested(records.frame.schema, source.name)
    checked = (
        _check_log(records.frame, config)
        if isinstance(config, LogConfig)
        else _check_table(records.frame, config)
    )
    good = checked.filter(pl.col(REASON).is_null()).drop(REASON)
    return ParsedFile(
        source=source,
        sha256=hashlib.sha256(payload).hexdigest(),
        good=good.select(pl.lit(source.number, dtype=pl.Int64).alias(FILE_NUMBER), pl.all()),
        quarantine=_quarantine(source, records, checked.filter(pl.col(REASON).is_not_null())),
    )


def natural_types(frame: pl.DataFrame, id_column: str) -> pl.DataFrame:
    """Every column as a number, a truth value or text, so that files that differ can stand under each other.

    Columns of nothing but whole numbers become int64, be they text ("1995", not "05201") or floats beside a
    gap.
    """
    return frame.with_columns(_natural_type(frame[name]) for name in frame.columns if name != id_column)


def _natural_type(column: pl.Series) -> pl.Series:
    if column.dtype.is_integer() or column.dtype == pl.Boolean:
        return column
    is_float = column.dtype.is_float()
    column = column.fill_nan(None) if is_float else column.cast(pl.String, strict=False)
    numbers = column.cast(pl.Int64, strict=False)
    back = numbers.cast(column.dtype)
    return numbers if back.eq_missing(column).all() and numbers.null_count() < len(numbers) else column


def _columns(config: LogConfig | TableConfig) -> list[str]:
    if isinstance(config, LogConfig):
        names = config.columns
        return [names.user_id, names.item_id, names.timestamp, *([names.value] if names.value else [])]
    title = [config.title] if config.title else []
    return [config.id, *title, *TextTemplate(config.template).fields, *config.attributes]


def _refuse_nested(schema: Mapping[str, pl.DataType], name: str) -> None:
    for column, dtype in schema.items():
        if dtype.is_nested() or dtype == pl.Object:
            raise DataError(
                f"The column {column!r} of {name} holds {dtype}, not one value a row: flatten it first."
            )


def _check_log(frame: pl.DataFrame, log: LogConfig) -> pl.DataFrame:
    names = log.columns
    typed = frame.select(
        RECORD,
        _id(names.user_id, frame.schema).alias(Columns.USER_ID),
        _id(names.item_id, frame.schema).alias(Columns.ITEM_ID),
        _time_us(names.timestamp, frame.schema, log.timestamp_unit).alias(Columns.TIMESTAMP),
        _value(names.value).alias(Columns.VALUE),
    )
    moment = pl.col(Columns.TIMESTAMP)
    reason = _first_reason({
        "missing_user_id": pl.col(Columns.USER_ID).is_null(),
        "missing_item_id": pl.col(Columns.ITEM_ID).is_null(),
        "bad_timestamp": moment.is_null(),
        "timestamp_out_of_range": (moment < 0) | (moment >= TIME_LIMIT_US),
        "bad_value": ~pl.col(Columns.VALUE).is_finite().fill_null(False),
    })
    return typed.with_columns(reason, moment.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))


def _check_table(frame: pl.DataFrame, table: TableConfig) -> pl.DataFrame:
    identified = frame.with_columns(_id(table.id, frame.schema))
    reason = _first_reason({"missing_id": pl.col(table.id).is_null()})
    return natural_types(identified, table.id).with_columns(reason)


def _first_reason(conditions: Mapping[str, pl.Expr]) -> pl.Expr:
    return pl.coalesce(
        pl.when(condition).then(pl.lit(reason)) for reason, condition in conditions.items()
    ).alias(REASON)


def _id(column: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """Ids are text without white space around. Whole floats (integers that met a gap in pandas) lose their
    ".0".
    """
    text = pl.col(column).cast(pl.String, strict=False).str.strip_chars()
    if schema[column].is_float():
        text = text.str.replace(r"^(-?\d+)\.0$", "${1}").replace("NaN", None)
    return pl.when(text != "").then(text).alias(column)


def _value(column: str | None) -> pl.Expr:
    return pl.lit(1.0, dtype=pl.Float32) if column is None else _number(column).cast(pl.Float32)


def _number(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)


def _time_us(column: str, schema: Mapping[str, pl.DataType], unit: str) -> pl.Expr:
    """Microseconds since 1970 UTC, int64; null where there is no time. A typed time carries its own unit."""
    dtype = schema[column]
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return pl.col(column).cast(pl.Datetime("us")).dt.epoch("us")
    if unit == "iso8601":
        return _iso8601(pl.col(column).cast(pl.String)).dt.epoch("us")
    whole = pl.col(column).cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False)
    rounded = (_number(column) * MICROSECONDS[unit]).round()
    inside = rounded.is_between(-TIME_LIMIT_US, TIME_LIMIT_US)
    return pl.coalesce(
        pl.when(whole.is_between(0, TIME_LIMIT_US // MICROSECONDS[unit])).then(whole * MICROSECONDS[unit]),
        pl.when(inside).then(rounded).cast(pl.Int64, strict=False),
        pl.when(rounded.is_not_nan()).then(pl.lit(TIME_LIMIT_US)),
    )


def _iso8601(text: pl.Expr) -> pl.Expr:
    """Date, or date and time with or without offset; without one it is UTC."""
    plain = (
        text.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)[ t]", "${1}T").str.replace(r"[zZ]$", "+00:00")
    )
    with_offset = [
        plain.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False).dt.replace_time_zone(None)
        for form in ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z")
    ]
    without = [
        plain.str.to_datetime(form, time_unit="us", strict=False)
        for form in ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
    ]
    date = plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    return pl.coalesce(*with_offset, *without, date)


def _quarantine(source: SourceFile, records: Records, bad: pl.DataFrame) -> pl.DataFrame:
    numbers = bad[RECORD].to_list()
    rows = list(zip(numbers, bad[REASON].to_list(), records.raw(numbers), strict=True))
    rows += [(number, "malformed", text) for number, text in records.unreadable.items()]
    return pl.DataFrame(
        [(source.table, source.name, *row) for row in sorted(rows)], schema=QUARANTINE_SCHEMA, orient="row"
    )
