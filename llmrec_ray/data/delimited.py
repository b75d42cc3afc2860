"""Blocks of CSV or TSV -> records as columns of text, and the records nobody can read.

Polars reads every line that is a whole record with as many fields as the header has; only others are read one by one. A
record is what `text_lines.read_record` says, so that it does not depend on how the text came in blocks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from llmrec_ray.data.layout import Layout
from llmrec_ray.data.records import RECORD, Records, unreadable_frame
from llmrec_ray.data.text_lines import is_broken, read_record, shown, split_lines
from llmrec_ray.types import IntArray

__all__ = ["read_delimited"]

STAND_INS = "\x1f\x1e\x1d\x1c\x01\x02\x03\x04\x05\x06\x0e\x0f\x10\x11\x12\x13"
LINE = "line"


def read_delimited(text: bytes, layout: Layout, wanted: Sequence[str]) -> Records:
    """The wanted columns of a block without header, all String, empty fields null."""
    if not _is_utf8(text):
        lines = split_lines(text)
        readable = pl.Series(["" if is_broken(line) else line for line in lines], dtype=pl.String)
        return _mixed(lines, readable, _is_whole(readable, layout, has_quotes=True), layout, wanted)
    readable = pl.scan_lines(io.BytesIO(text), name=LINE).collect()[LINE]
    whole = _is_whole(readable, layout, has_quotes=b'"' in text)
    if not whole.all():
        return _mixed(readable.to_list(), readable, whole, layout, wanted)
    frame = _fields(text, layout, wanted).with_row_index(RECORD, offset=1)
    return Records(
        frame.with_columns(pl.col(RECORD).cast(pl.Int64)), unreadable_frame(),
        lambda numbers: readable[[number - 1 for number in numbers]].to_list(),
    )


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_whole(lines: pl.Series, layout: Layout, *, has_quotes: bool) -> pl.Series:
    """Which lines are one record each, with a field for every column."""
    if layout.quotes and has_quotes:
        whole = lines.str.contains(layout.line_pattern)
    else:
        whole = lines.str.count_matches(layout.separator, literal=True) == len(layout.names) - 1
    return whole & (lines != "") if len(layout.names) == 1 else whole


def _fields(text: bytes, layout: Layout, wanted: Sequence[str]) -> pl.DataFrame:
    """Polars' reading of lines that are all whole."""
    if not text:
        return pl.DataFrame(schema=dict.fromkeys(wanted, pl.String))
    separator = layout.separator
    if len(separator.encode()) > 1:
        separator = next((letter for letter in STAND_INS if letter.encode() not in text), "")
        text = text.replace(layout.separator.encode(), separator.encode()) if separator else text
    if not separator:
        return _split(split_lines(text), layout, wanted)
    names = [f"column_{number}" for number in range(len(layout.names))]
    found = [layout.names.index(column) for column in wanted]
    frame = pl.read_csv(
        text, has_header=False, separator=separator, quote_char='"' if layout.quotes and b'"' in text else None,
        schema=dict.fromkeys(names, pl.String), columns=sorted(set(found)),
    )
    return frame.select(_filled(names[place]).alias(column) for place, column in zip(found, wanted, strict=True))


def _split(lines: Sequence[str], layout: Layout, wanted: Sequence[str]) -> pl.DataFrame:
    rows = [line.split(layout.separator) for line in lines]
    places = {column: layout.names.index(column) for column in wanted}
    return pl.DataFrame(
        {column: [row[place] or None for row in rows] for column, place in places.items()},
        schema=dict.fromkeys(wanted, pl.String),
    )


def _filled(column: str) -> pl.Expr:
    return pl.when(pl.col(column) != "").then(pl.col(column))


@dataclass(frozen=True)
class _Odd:
    """A record that is not one whole line: where it begins, the lines it takes, and its fields or what is wrong."""

    start: int
    n_lines: int
    fields: list[str] | None
    reason: str | None


def _mixed(
    lines: list[str], readable: pl.Series, is_whole: pl.Series, layout: Layout, wanted: Sequence[str]
) -> Records:
    """`readable` has the lines that are text; those that are not are empty there."""
    whole = is_whole.to_numpy().copy()
    odd = _odd_records(lines, whole, layout)
    starts = np.sort(np.concatenate([np.flatnonzero(whole), np.array([record.start for record in odd], np.int64)]))
    numbers = {record.start: int(np.searchsorted(starts, record.start)) + 1 for record in odd}
    lengths = {numbers[record.start]: record.n_lines for record in odd}

    def show(wanted_numbers: Sequence[int]) -> list[str]:
        spans = ((int(starts[number - 1]), lengths.get(number, 1)) for number in wanted_numbers)
        return [shown("\n".join(lines[start : start + n_lines])) for start, n_lines in spans]

    bad = [(numbers[record.start], record.reason) for record in odd if record.reason]
    unreadable = [(number, reason, raw) for (number, reason), raw in zip(bad, show([n for n, _ in bad]), strict=True)]
    frame = pl.concat([
        _whole_frame(readable, whole, starts, layout, wanted),
        _odd_frame([record for record in odd if record.reason is None], numbers, layout, wanted),
    ])
    return Records(frame.sort(RECORD), unreadable_frame(unreadable), show)


def _odd_records(lines: list[str], whole: np.ndarray, layout: Layout) -> list[_Odd]:
    """All records but the whole lines; `whole` loses the lines that lie inside of these."""
    found: list[_Odd] = []
    after = 0
    for start in np.flatnonzero(~whole).tolist():
        if start < after or not lines[start]:
            continue
        record = _odd(lines, start, layout)
        found.append(record)
        after = start + record.n_lines
        whole[start:after] = False
    return found


def _odd(lines: list[str], start: int, layout: Layout) -> _Odd:
    if is_broken(lines[start]):
        return _Odd(start, 1, None, "bad_encoding")
    if not layout.quotes:
        fields, n_lines = layout.split(lines[start]), 1
    else:
        record = read_record(lines, start, layout.separator)
        fields, n_lines = record.fields, record.n_lines
    if fields is None:
        return _Odd(start, 1, None, "malformed")
    missing = len(layout.names) - len(fields)
    reason = "too_few_fields" if missing > 0 else "too_many_fields" if missing < 0 else None
    return _Odd(start, n_lines, fields, reason)


def _whole_frame(
    readable: pl.Series, whole: np.ndarray, starts: IntArray, layout: Layout, wanted: Sequence[str]
) -> pl.DataFrame:
    text = readable.filter(pl.Series(whole)).str.join("\n").item()
    numbers = pl.Series(RECORD, np.searchsorted(starts, np.flatnonzero(whole)) + 1, dtype=pl.Int64)
    return _fields(text.encode(), layout, wanted).select(numbers, *wanted)


def _odd_frame(
    records: list[_Odd], numbers: dict[int, int], layout: Layout, wanted: Sequence[str]
) -> pl.DataFrame:
    chosen = [layout.names.index(column) for column in wanted]
    rows = [
        [numbers[record.start], *((record.fields or [])[place] or None for place in chosen)] for record in records
    ]
    return pl.DataFrame(rows, schema={RECORD: pl.Int64, **dict.fromkeys(wanted, pl.String)}, orient="row")
