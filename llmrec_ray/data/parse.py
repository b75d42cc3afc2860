"""A piece of a file -> typed, validated rows, a quarantine with reason codes, and counts of what was left out by rule.

This is the work done inside a task: it needs one piece, nothing else, and never holds more than a block of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import polars as pl

from llmrec_ray.config import LogConfig, TableConfig
from llmrec_ray.data.pieces import Piece
from llmrec_ray.data.readers import read_piece
from llmrec_ray.data.records import RECORD, Records
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.data.table_columns import file_columns, named_columns
from llmrec_ray.data.times import TIME_LIMIT_US, microseconds
from llmrec_ray.errors import DataError
from llmrec_ray.types import Columns

__all__ = ["QUARANTINE_SCHEMA", "ParsedBlock", "parse_piece", "sample_users"]

BETWEEN_VALUES = ", "
SAMPLE_BYTES_A_RECORD = 64
REASON = "__reason__"
FILTER = "__filter__"
FILTERS = ("other_event", "below_min_value")
QUARANTINE_SCHEMA = {
    "table": pl.String, Columns.FILE: pl.String, Columns.POSITION: pl.Int64, Columns.REASON: pl.String,
    Columns.RAW: pl.String,
}


@dataclass(frozen=True)
class ParsedBlock:
    """Some consecutive records after validation: rows == len(good) + len(quarantine) + sum of dropped.

    good, in the order of records: for a log user_id, item_id, timestamp datetime[us, UTC], value float32 and, as text,
    event, event_id, session and context columns as far as the section names them; for a table its id as text and
    every column that text, title and attributes need, of the file's own types. quarantine: table, file, position (the
    record's number, 1 for the block's first), reason, raw. dropped: other_event (a kind that does not count),
    below_min_value.
    """

    rows: int
    good: pl.DataFrame
    quarantine: pl.DataFrame
    dropped: dict[str, int]


def parse_piece(piece: Piece) -> Iterator[ParsedBlock]:
    """Read and validate one piece, block by block. Raises MissingInputError and DataError naming the file."""
    source = piece.source
    optional, is_table = _optional(source.config), isinstance(source.config, TableConfig)
    for records in read_piece(piece, _columns(source.config), optional=optional, join_lists=is_table):
        if is_table:
            records = replace(records, frame=_with_joined_lists(records.frame))
        _refuse_nested(records.frame.schema, source.name)
        yield _parsed(source, records)


def sample_users(piece: Piece, n: int = 4096) -> pl.Series:
    """User ids of up to `n` records where the piece begins, as text; bad records are passed over.

    Raises MissingInputError and DataError when the file cannot be read at all.
    """
    column = _log(piece.source).columns.user_id
    records = next(read_piece(piece, [column], block_bytes=n * SAMPLE_BYTES_A_RECORD, block_rows=n), None)
    if records is None:
        return pl.Series(Columns.USER_ID, [], dtype=pl.String)
    frame = records.frame.head(n)
    return frame.select(_id(column, frame.schema).alias(Columns.USER_ID)).to_series().drop_nulls()


def _log(source: SourceFile) -> LogConfig:
    assert isinstance(source.config, LogConfig), f"{source.name} is a table. This is a bug."
    return source.config


def _columns(config: LogConfig | TableConfig) -> list[str]:
    if isinstance(config, TableConfig):
        return file_columns(config)
    names = config.columns
    optional = (names.value, names.event, names.event_id, names.session, *names.context)
    return list(dict.fromkeys([names.user_id, names.item_id, names.timestamp, *filter(None, optional)]))


def _optional(config: LogConfig | TableConfig) -> tuple[str, ...]:
    has_default = isinstance(config, LogConfig) and config.missing_value is not None and config.columns.value
    return (has_default,) if has_default else ()


def _with_joined_lists(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists of single values become these as text; other nested columns stay as they are."""
    lists = [
        name for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.List | pl.Array) and not dtype.inner.is_nested() and dtype.inner != pl.Object
    ]
    joined = (pl.col(name).cast(pl.List(pl.String)).list.drop_nulls().list.join(BETWEEN_VALUES) for name in lists)
    return frame.with_columns(pl.when(text != "").then(text) for text in joined)


def _refuse_nested(schema: Mapping[str, pl.DataType], name: str) -> None:
    for column, dtype in schema.items():
        if dtype.is_nested() or dtype == pl.Object:
            raise DataError(f"The column {column!r} of {name} holds {dtype}, not one value a row: flatten it first.")


def _parsed(source: SourceFile, records: Records) -> ParsedBlock:
    frame, config = records.frame, source.config
    checked = (
        _check_log(frame, config, source.name) if isinstance(config, LogConfig)
        else _check_table(frame, config, with_domain=source.table == "items")
    )
    is_good = checked.select(pl.all_horizontal(pl.col(REASON, FILTER).is_null())).to_series()
    good = checked if is_good.all() else checked.filter(is_good)
    bad = checked.filter(pl.col(FILTER).is_null() & pl.col(REASON).is_not_null())
    dropped = checked[FILTER].drop_nulls().value_counts()
    return ParsedBlock(
        rows=len(frame) + len(records.unreadable),
        good=good.drop(RECORD, REASON, FILTER),
        quarantine=_quarantine(source, records, bad),
        dropped=dict(sorted(dropped.iter_rows(), key=lambda row: FILTERS.index(row[0]))),
    )


def _check_log(frame: pl.DataFrame, log: LogConfig, name: str) -> pl.DataFrame:
    names, schema = log.columns, frame.schema
    item = _id(names.item_id, schema)
    texts = {Columns.EVENT: names.event, Columns.EVENT_ID: names.event_id, Columns.SESSION: names.session}
    typed = frame.select(
        RECORD,
        _id(names.user_id, schema).alias(Columns.USER_ID),
        (item if log.domain is None else f"{log.domain}:" + item).alias(Columns.ITEM_ID),
        _moments(frame[names.timestamp], log, name).alias(Columns.TIMESTAMP),
        _value(log, schema).alias(Columns.VALUE),
        *(_id(column, schema).alias(to) for to, column in texts.items() if column),
        *(_id(column, schema).alias(column) for column in dict.fromkeys(names.context)),
    )
    moment, value = pl.col(Columns.TIMESTAMP), pl.col(Columns.VALUE)
    reason = _first({
        "missing_user_id": pl.col(Columns.USER_ID).is_null(),
        "missing_item_id": pl.col(Columns.ITEM_ID).is_null(),
        "bad_timestamp": moment.is_null(),
        "timestamp_out_of_range": (moment < 0) | (moment >= TIME_LIMIT_US),
        **({"missing_event": pl.col(Columns.EVENT).is_null()} if log.event_weights else {}),
        "bad_value": ~value.is_finite().fill_null(False),
    })
    outside = _first({
        **({"other_event": ~pl.col(Columns.EVENT).is_in(list(log.event_weights))} if log.event_weights else {}),
        **({"below_min_value": reason.is_null() & (value < log.min_value)} if log.min_value is not None else {}),
    })
    return typed.with_columns(
        reason.alias(REASON), outside.alias(FILTER), moment.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
    )


def _check_table(frame: pl.DataFrame, table: TableConfig, *, with_domain: bool) -> pl.DataFrame:
    named = _plain(named_columns(frame, table))
    found = _id(table.id, named.schema)
    prefixed = f"{table.domain}:" + found if with_domain and table.domain is not None else found
    reason = pl.when(pl.col(table.id).is_null()).then(pl.lit("missing_id")).alias(REASON)
    return named.with_columns(prefixed.alias(table.id)).with_columns(reason, pl.lit(None, pl.String).alias(FILTER))


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Numbers, truth values and text stay; all else becomes text, so that files can stand under each other."""
    others = [
        name for name, dtype in frame.schema.items()
        if not (dtype.is_integer() or dtype.is_float() or dtype in {pl.Boolean, pl.String})
    ]
    return frame.with_columns(pl.col(others).cast(pl.String, strict=False)) if others else frame


def _first(conditions: Mapping[str, pl.Expr]) -> pl.Expr:
    """The name of the first condition that is true, null where none is; numbers cost a thirtieth of texts."""
    names = pl.Enum(list(conditions))
    named = [pl.when(condition).then(pl.lit(name, names)) for name, condition in conditions.items()]
    return pl.coalesce(named) if named else pl.lit(None, pl.String)


def _id(column: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """Ids are text without white space around. Whole floats (integers that met a gap in pandas) lose their ".0"."""
    dtype = schema[column]
    text = pl.col(column).cast(pl.String, strict=False)
    if dtype.is_integer():
        return text
    if dtype.is_float():
        text = text.str.replace(r"^(-?\d+)\.0$", "${1}").replace("NaN", None)
    return text.str.strip_chars().replace("", None).alias(column)


def _moments(column: pl.Series, log: LogConfig, name: str) -> pl.Series:
    try:
        return microseconds(column, log.timestamp_unit, log.timestamp_format, log.timezone)
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        form, setting = log.timestamp_format, "timestamp_format"
        if form is None:  # a zone that Python knows and Polars does not
            form, setting = log.timezone, "timezone"
        raise DataError(f"The timestamps of {name} cannot be read as {form!r} ({reason}): correct {setting}.") from None


def _value(log: LogConfig, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """The value, or 1.0 without one, times what an event of this kind is worth."""
    value = pl.lit(1.0)
    if (column := log.columns.value) is not None:
        value = _number(column, schema)
        if log.missing_value is not None:
            value = pl.when(_id(column, schema).is_null()).then(pl.lit(log.missing_value)).otherwise(value)
    if log.event_weights:
        kinds, weights = list(log.event_weights), list(log.event_weights.values())
        kind = _id(log.columns.event or "", schema)
        value = value * kind.replace_strict(kinds, weights, default=None, return_dtype=pl.Float64)
    return value.cast(pl.Float32)


def _number(column: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    if schema[column].is_numeric():
        return pl.col(column).cast(pl.Float64)
    return pl.col(column).cast(pl.String, strict=False).str.strip_chars().cast(pl.Float64, strict=False)


def _quarantine(source: SourceFile, records: Records, bad: pl.DataFrame) -> pl.DataFrame:
    numbers = bad[RECORD]
    rows = pl.DataFrame({
        Columns.POSITION: numbers, Columns.REASON: bad[REASON], Columns.RAW: records.raw(numbers),
    }, schema={Columns.POSITION: pl.Int64, Columns.REASON: pl.String, Columns.RAW: pl.String})
    unreadable = records.unreadable.rename({RECORD: Columns.POSITION})
    where = (pl.lit(source.table, pl.String).alias("table"), pl.lit(source.name, pl.String).alias(Columns.FILE))
    both = pl.concat([rows, unreadable.select(rows.columns)]).sort(Columns.POSITION)
    return both.select(*where, pl.all())
