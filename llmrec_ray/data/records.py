"""The bytes of one file -> records as columns, each with its number, and the records nobody can read.

Polars reads the whole file; only a file it refuses is read again record by record. This module knows CSV,
TSV, JSON lines and Parquet, and not what the columns mean. Records count from 1; the header is none of them,
and blank ones are no rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import polars as pl

from llmrec_ray.config import FileFormat
from llmrec_ray.data.pieces import Piece, open_parquet
from llmrec_ray.errors import DataError, MissingInputError

__all__ = ["RECORD", "Records", "read_piece"]

RECORD = "__record__"
SEPARATORS = {"csv": ",", "tsv": "\t"}
MAX_RECORD_LINES = 100


@dataclass(frozen=True)
class Records:
    """Some consecutive records, numbered from 1.

    frame: RECORD (int64) and the wanted columns; unreadable: RECORD, reason and raw text of those that nobody can read.
    """

    frame: pl.DataFrame
    unreadable: pl.DataFrame
    show: Callable[[Sequence[int]], list[str]]

    def raw(self, numbers: pl.Series) -> list[str]:
        """The records of `frame` with these numbers as the file has them; rows of Parquet as JSON."""
        return self.show(numbers.to_list()) if len(numbers) else []


def read_piece(piece: Piece, columns: Sequence[str], limit: int | None = None) -> Iterator[Records]:
    """The wanted columns of a piece, block by block; text formats give String columns, Parquet the types it has.

    limit: so many records of the piece's beginning are enough. Raises MissingInputError naming file and column when a
    column is not there, DataError when the file is not of this format at all.
    """
    source = piece.source
    in_path = {name: value for name, value in source.partitions.items() if name in columns}
    wanted = [column for column in dict.fromkeys(columns) if column not in in_path]
    with source.open_stream() as stream:
        stream.read(piece.start) if not source.is_compressed else b""
        payload = stream.read() if source.is_compressed else stream.read(piece.stop - piece.start)
    if source.config.format == "parquet":
        with source.open_stream() as stream:
            payload = stream.read()
    whole = _read_records(payload, source.config.format, wanted, source.name)
    groups = (0, None) if source.config.format != "parquet" else _group_rows(piece)
    numbers = sorted([*whole.frame[RECORD], *whole.unreadable])
    dense = {number: place for place, number in enumerate(numbers, 1)}
    back = {place: number for number, place in dense.items()}
    frame = whole.frame.with_columns(pl.col(RECORD).replace_strict(dense, return_dtype=pl.Int64))
    unreadable = pl.DataFrame(
        [(dense[n], "malformed", t) for n, t in sorted(whole.unreadable.items())],
        schema={RECORD: pl.Int64, "reason": pl.String, "raw": pl.String}, orient="row",
    )
    frame = frame.slice(*groups).with_columns(pl.lit(value, pl.String).alias(name) for name, value in in_path.items())
    first = groups[0]
    yield Records(
        frame.with_columns(pl.col(RECORD) - first), unreadable,
        lambda wanted_numbers: whole.raw([back[number + first] for number in wanted_numbers]),
    )


def _group_rows(piece: Piece) -> tuple[int, int]:
    metadata = open_parquet(piece.source).metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return sum(rows[: piece.start]), sum(rows[piece.start : piece.stop])


@dataclass(frozen=True)
class _WholeFile:
    """frame: RECORD (int64) and the wanted columns; unreadable: record number -> the text that stands there.

    source shows any record of `frame` as it was.
    """

    frame: pl.DataFrame
    unreadable: dict[int, str]
    source: _Frame | _JsonLines | _Texts

    def raw(self, numbers: Sequence[int]) -> list[str]:
        """The records with these numbers: the fields, the JSON line, or the Parquet row as JSON."""
        return self.source.show(numbers) if numbers else []


def _read_records(payload: bytes, file_format: FileFormat, columns: Sequence[str], name: str) -> _WholeFile:
    """Read the wanted columns of one file; text formats give String columns, Parquet the types it has.

    Raises MissingInputError naming file and column when a column is not there, DataError when the file is not
    of this format at all.
    """
    wanted = list(dict.fromkeys(columns))
    if file_format == "parquet":
        return _read_parquet(payload, wanted, name)
    if file_format == "jsonl":
        return _read_json(payload, wanted, name)
    return _read_delimited(payload, SEPARATORS[file_format], wanted, name)


@dataclass(frozen=True)
class _Frame:
    frame: pl.DataFrame
    separator: str | None = None

    def show(self, numbers: Sequence[int]) -> list[str]:
        rows = self.frame[[number - 1 for number in numbers]].iter_rows(named=True)
        if self.separator is None:
            return [json.dumps(row, default=str, ensure_ascii=False) for row in rows]
        return [self.separator.join(field or "" for field in row.values()) for row in rows]


@dataclass(frozen=True)
class _JsonLines:
    payload: bytes

    def show(self, numbers: Sequence[int]) -> list[str]:
        lines = dict(_json_lines(self.payload))
        return [_text(lines[number]) for number in numbers]


@dataclass(frozen=True)
class _Texts:
    texts: dict[int, str]

    def show(self, numbers: Sequence[int]) -> list[str]:
        return [self.texts[number] for number in numbers]


def _read_parquet(payload: bytes, wanted: list[str], name: str) -> _WholeFile:
    try:
        known = list(pl.read_parquet_schema(io.BytesIO(payload)))
        _require(wanted, known, name)
        frame = pl.read_parquet(payload, columns=wanted).select(wanted)
    except pl.exceptions.ComputeError as error:
        reason = str(error).strip().splitlines()[0]
        message = f"{name} is not a Parquet file ({reason}): correct `format`, or restore the file."
        raise DataError(message) from None
    return _WholeFile(_numbered(frame), {}, _Frame(frame))


def _read_json(payload: bytes, wanted: list[str], name: str) -> _WholeFile:
    unreadable: dict[int, str] = {}
    try:
        schema = dict.fromkeys(wanted, pl.String)
        frame = _numbered(pl.read_ndjson(payload, schema=schema))
    except pl.exceptions.PolarsError:
        rows = []
        for number, line in _json_lines(payload):
            fields = _json_fields(line, wanted)
            if fields is None:
                unreadable[number] = _text(line)
            else:
                rows.append([number, *fields])
        frame = _from_rows(rows, wanted)
    for column in wanted if len(frame) else ():
        if frame[column].null_count() == len(frame):
            raise MissingInputError(
                f"No record of {name} has a field {column!r}: correct the recipe's columns."
            )
    return _WholeFile(frame, unreadable, _JsonLines(payload))


def _json_lines(payload: bytes) -> Iterator[tuple[int, bytes]]:
    return enumerate((line for line in payload.split(b"\n") if line.strip()), start=1)


def _json_fields(line: bytes, wanted: list[str]) -> list[str | None] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return [_json_text(record.get(column)) for column in wanted] if isinstance(record, dict) else None


def _json_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_delimited(payload: bytes, separator: str, wanted: list[str], name: str) -> _WholeFile:
    header, _ = next(_delimited_records(payload, separator), (None, ""))
    if not header:
        raise DataError(f"{name} has no readable header: its first line must name the columns.")
    _require(wanted, header, name)
    try:
        frame = pl.read_csv(payload, separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError:
        return _read_delimited_slowly(payload, separator, header, wanted)
    filled = frame.select(pl.any_horizontal(pl.all() != "").fill_null(False)).to_series()
    values = (pl.when(pl.col(column) != "").then(column).alias(column) for column in wanted)
    return _WholeFile(_numbered(frame).filter(filled).select(RECORD, *values), {}, _Frame(frame, separator))


def _read_delimited_slowly(payload: bytes, separator: str, header: list[str], wanted: list[str]) -> _WholeFile:
    chosen = [header.index(column) for column in wanted]
    rows, texts, unreadable = [], {}, {}
    for number, (fields, text) in islice(enumerate(_delimited_records(payload, separator)), 1, None):
        if fields is None or len(fields) > len(header):
            unreadable[number] = text
        elif any(fields):
            padded = [field or None for field in fields] + [None] * (len(header) - len(fields))
            rows.append([number, *(padded[i] for i in chosen)])
            texts[number] = text
    return _WholeFile(_from_rows(rows, wanted), unreadable, _Texts(texts))


def _delimited_records(payload: bytes, separator: str) -> Iterator[tuple[list[str] | None, str]]:
    """Fields (None when unreadable) and text of each record, header first.

    A quoted field may span lines; a quote that never closes spoils only the line it stands on.
    """
    lines = payload.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    start = 0
    while start < len(lines):
        fields, used = _delimited_record(lines, start, separator)
        yield fields, _text(b"\n".join(lines[start : start + used]))
        start += used


def _delimited_record(lines: list[bytes], start: int, separator: str) -> tuple[list[str] | None, int]:
    text = ""
    for used in range(1, min(MAX_RECORD_LINES, len(lines) - start) + 1):
        try:
            text += lines[start + used - 1].decode()
            return next(csv.reader([text], delimiter=separator, strict=True), []), used
        except UnicodeDecodeError:
            return None, 1
        except csv.Error as error:
            if "unexpected end" not in str(error):
                return None, 1
            text += "\n"
    return None, 1


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_row_index(RECORD, offset=1).with_columns(pl.col(RECORD).cast(pl.Int64))


def _from_rows(rows: list[list[Any]], wanted: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={RECORD: pl.Int64, **dict.fromkeys(wanted, pl.String)}, orient="row")


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _require(wanted: list[str], known: Sequence[str], name: str) -> None:
    for column in wanted:
        if column not in known:
            raise MissingInputError(
                f"{name} has no column {column!r}, only {', '.join(known)}: correct the recipe's columns."
            )
