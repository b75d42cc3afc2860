"""The bytes of one file -> records as columns with their positions, and which records cannot be read.

Polars reads the whole file; only a file it refuses is read again record by record. This module knows CSV, TSV,
JSON lines and Parquet, and not what the columns mean. Positions count records from 1; the header line and the
blank lines of JSON files do not count.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import polars as pl

from llmrec_ray.config.schema import FileFormat
from llmrec_ray.errors import DataError, MissingInputError
from llmrec_ray.types import Columns

__all__ = ["raw_records", "read_records"]

SEPARATORS = {"csv": ",", "tsv": "\t"}
MAX_RECORD_LINES = 100


def read_records(
    payload: bytes, file_format: FileFormat, columns: Sequence[str], name: str
) -> tuple[pl.DataFrame, list[int]]:
    """Read the wanted columns of one file: a frame with `position` and them, and the positions of unreadable records.

    Text formats give String columns, Parquet the types it has. Raises MissingInputError naming file and column
    when a column is not there, DataError when the file is not of this format at all.
    """
    wanted = list(dict.fromkeys(columns))
    if file_format == "parquet":
        return _read_parquet(payload, wanted, name), []
    if file_format == "jsonl":
        return _read_json(payload, wanted, name)
    return _read_delimited(payload, SEPARATORS[file_format], wanted, name)


def raw_records(payload: bytes, file_format: FileFormat, positions: Sequence[int]) -> list[str]:
    """The records at these positions as text: the delimited line, the JSON line, or the Parquet row as JSON."""
    if not positions:
        return []
    if file_format == "parquet":
        frame = pl.read_parquet(payload)
        return [json.dumps(frame.row(p - 1, named=True), default=str, ensure_ascii=False) for p in positions]
    if file_format == "jsonl":
        found = dict(_json_lines(payload))
    else:
        wanted = set(positions)
        records = enumerate(_delimited_records(payload, SEPARATORS[file_format]))
        found = {position: raw for position, (_, raw) in records if position in wanted}
    return [found[position] for position in positions]


def _read_parquet(payload: bytes, wanted: list[str], name: str) -> pl.DataFrame:
    try:
        known = list(pl.read_parquet_schema(io.BytesIO(payload)))
    except pl.exceptions.ComputeError as error:
        raise DataError(f"{name} is not a Parquet file ({_first_line(error)}): correct `format` or the file.") from None
    _require(wanted, known, name)
    return _with_position(pl.read_parquet(payload, columns=wanted).select(wanted))


def _read_json(payload: bytes, wanted: list[str], name: str) -> tuple[pl.DataFrame, list[int]]:
    schema = dict.fromkeys(wanted, pl.String())
    malformed: list[int] = []
    try:
        frame = _with_position(pl.read_ndjson(payload, schema=schema)) if payload.strip() else None
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        rows = [(position, _json_fields(line, wanted)) for position, line in _json_lines(payload)]
        malformed = [position for position, fields in rows if fields is None]
        good = [(position, *fields) for position, fields in rows if fields is not None]
        frame = pl.DataFrame(good, schema={Columns.POSITION: pl.Int64, **schema}, orient="row")
    if frame is None:
        frame = _with_position(pl.DataFrame(schema=schema))
    for column in wanted if len(frame) else ():
        if frame[column].null_count() == len(frame):
            raise MissingInputError(f"No record of {name} has the field {column!r}: correct the recipe's column names.")
    return frame, malformed


def _json_lines(payload: bytes) -> Iterator[tuple[int, str]]:
    lines = (line for line in payload.decode("utf-8", errors="replace").split("\n") if line.strip())
    return enumerate(lines, start=1)


def _json_fields(line: str, wanted: list[str]) -> list[str | None] | None:
    try:
        record = json.loads(line, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return None
    return [_json_text(record.get(column)) for column in wanted] if isinstance(record, dict) else None


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_delimited(
    payload: bytes, separator: str, wanted: list[str], name: str
) -> tuple[pl.DataFrame, list[int]]:
    header = next(_delimited_records(payload, separator), None)
    if header is None or header[0] is None:
        raise DataError(f"{name} has no readable header line: the first line must name the columns.")
    _require(wanted, header[0], name)
    try:
        frame = _with_position(pl.read_csv(payload, separator=separator, infer_schema=False))
        return frame.filter(~pl.all_horizontal(pl.col(header[0]).is_null())).select(Columns.POSITION, *wanted), []
    except pl.exceptions.PolarsError:
        return _read_delimited_slowly(payload, separator, header[0], wanted)


def _read_delimited_slowly(
    payload: bytes, separator: str, header: list[str], wanted: list[str]
) -> tuple[pl.DataFrame, list[int]]:
    rows: list[list[Any]] = []
    malformed: list[int] = []
    chosen = [header.index(column) for column in wanted]
    for position, (fields, _) in islice(enumerate(_delimited_records(payload, separator)), 1, None):
        if fields is None or len(fields) > len(header):
            malformed.append(position)
        elif fields:
            padded = [field or None for field in fields] + [None] * (len(header) - len(fields))
            rows.append([position, *(padded[i] for i in chosen)])
    schema = {Columns.POSITION: pl.Int64(), **dict.fromkeys(wanted, pl.String())}
    return pl.DataFrame(rows, schema=schema, orient="row"), malformed


def _delimited_records(payload: bytes, separator: str) -> Iterator[tuple[list[str] | None, str]]:
    """Fields (None when unreadable) and text of each record, header first.

    A quoted field may span lines; a quote that never closes spoils only the line it stands on.
    """
    lines = payload.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    start = 0
    while start < len(lines):
        fields, used = _delimited_record(lines, start, separator)
        yield fields, b"\n".join(lines[start : start + used]).decode("utf-8", errors="replace").rstrip("\r")
        start += used


def _delimited_record(lines: list[bytes], start: int, separator: str) -> tuple[list[str] | None, int]:
    text = ""
    for used, line in enumerate(lines[start : start + MAX_RECORD_LINES], start=1):
        try:
            text += line.decode("utf-8")
            return next(csv.reader([text], delimiter=separator, strict=True), []), used
        except UnicodeDecodeError:
            return None, 1
        except csv.Error as error:
            if "unexpected end" not in str(error):
                return None, 1
            text += "\n"
    return None, 1


def _with_position(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_row_index(Columns.POSITION, offset=1).with_columns(pl.col(Columns.POSITION).cast(pl.Int64))


def _require(wanted: list[str], known: Sequence[str], name: str) -> None:
    for column in wanted:
        if column not in known:
            raise MissingInputError(
                f"{name} has no column {column!r}: its columns are {', '.join(known)}; correct the recipe."
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
