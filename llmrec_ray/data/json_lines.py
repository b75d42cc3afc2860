"""Blocks of JSON lines -> fields as columns of text, and the lines nobody can read.

Polars reads all lines it can; only in a stretch it refuses are lines looked at one by one. A line counts as Polars
reads it alone, so that nothing depends on how the text came in blocks. Lines of white space are no records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from llmrec_ray.data.records import RECORD, Records, unreadable_frame
from llmrec_ray.data.text_lines import is_broken, shown, split_lines

__all__ = ["read_json_lines"]

STRETCH_LINES = 250
BLANKS = " \t\r"
DECODER = json.JSONDecoder(parse_int=str)  # as a number, Python refuses integers of thousands of digits
BETWEEN_VALUES = ", "


def read_json_lines(text: bytes, wanted: Sequence[str], *, join_lists: bool) -> Records:
    """The wanted fields of every record, all String: numbers, truth values and objects as JSON writes them.

    join_lists: lists of nothing but single values become these, joined by ", ".
    """
    try:
        text.decode()
        frame = _polars(text, wanted)
    except (UnicodeDecodeError, pl.exceptions.PolarsError):
        return _mixed(_records(text), wanted, join_lists=join_lists)
    frame = frame.with_row_index(RECORD, offset=1).with_columns(pl.col(RECORD).cast(pl.Int64))
    if join_lists and _may_have_lists(frame, wanted):
        frame = _with_joined_lists(frame, _records(text), wanted)
    return Records(
        frame, unreadable_frame(),
        lambda numbers: _of(_records(text), numbers),
    )


def _records(text: bytes) -> list[str]:
    return [line for line in split_lines(text) if line.strip(BLANKS)]


def _of(lines: list[str], numbers: Sequence[int]) -> list[str]:
    return [lines[number - 1] for number in numbers]


def _polars(text: bytes, wanted: Sequence[str]) -> pl.DataFrame:
    """Raises PolarsError for lines that are no JSON objects."""
    schema = dict.fromkeys(wanted, pl.String)
    return pl.read_ndjson(text, schema=schema) if text.strip() else pl.DataFrame(schema=schema)


def _mixed(lines: list[str], wanted: Sequence[str], *, join_lists: bool) -> Records:
    frames, unreadable = [], []
    for first in range(0, len(lines), STRETCH_LINES):
        good, bad = _stretch(lines, range(first, min(first + STRETCH_LINES, len(lines))), wanted)
        frames.append(good)
        unreadable += bad
    frame = pl.concat([pl.DataFrame(schema={RECORD: pl.Int64, **dict.fromkeys(wanted, pl.String)}), *frames])
    if join_lists and _may_have_lists(frame, wanted):
        frame = _with_joined_lists(frame, lines, wanted)
    rows = [(place + 1, reason, shown(lines[place])) for place, reason in unreadable]
    return Records(
        frame, unreadable_frame(rows),
        lambda numbers: [shown(lines[number - 1]) for number in numbers],
    )


def _stretch(
    lines: list[str], places: range, wanted: Sequence[str]
) -> tuple[pl.DataFrame, list[tuple[int, str]]]:
    broken = {place for place in places if is_broken(lines[place])}
    kept, frame = _readable(lines, [place for place in places if place not in broken], wanted)
    good = set(kept)
    bad = [(place, "bad_encoding" if place in broken else "malformed") for place in places if place not in good]
    numbers = pl.Series(RECORD, [place + 1 for place in kept], dtype=pl.Int64)
    return frame.select(numbers, *wanted), bad


def _readable(lines: list[str], places: list[int], wanted: Sequence[str]) -> tuple[list[int], pl.DataFrame]:
    """Those of the places whose lines Polars reads, and what it reads."""
    kept = places
    for looks_good in (None, _looks_good, _is_read):
        kept = [place for place in kept if looks_good is None or looks_good(lines[place])]
        try:
            return kept, _polars("\n".join(lines[place] for place in kept).encode(), wanted)
        except pl.exceptions.PolarsError:
            continue
    raise AssertionError("Polars refuses lines together that it reads one by one. This is a bug.")


def _looks_good(line: str) -> bool:
    """A quick look, which lets some bad lines pass, and no good one fail: Polars is stricter than Python."""
    try:
        return isinstance(DECODER.decode(line), dict)
    except RecursionError:
        return _is_read(line)
    except ValueError:
        return False


def _is_read(line: str) -> bool:
    if not line.strip(BLANKS).startswith("{"):
        return False
    try:
        return len(pl.read_ndjson(line.encode(), schema={"\0": pl.String})) == 1
    except pl.exceptions.PolarsError:
        return False


def _may_have_lists(frame: pl.DataFrame, wanted: Sequence[str]) -> bool:
    return bool(wanted) and any(frame[column].str.starts_with("[").any() for column in wanted)


def _with_joined_lists(frame: pl.DataFrame, lines: list[str], wanted: Sequence[str]) -> pl.DataFrame:
    """Text that begins with "[" is a list unless the line says that it is text."""
    joined = {}
    for column in wanted:
        values = frame[column].to_list()
        for place in frame[column].str.starts_with("[").fill_null(False).arg_true():
            values[place] = _joined(values[place], column, lines[frame[RECORD][place] - 1])
        joined[column] = pl.Series(column, values, dtype=pl.String)
    return frame.with_columns(**joined)


def _joined(text: str, column: str, line: str) -> str | None:
    try:
        if '"[' in line and isinstance(json.loads(line).get(column), str):
            return text
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if any(isinstance(value, list | dict) for value in values):
        return text
    return BETWEEN_VALUES.join(_words(values)) or None


def _words(values: list[Any]) -> Iterator[str]:
    return (value if isinstance(value, str) else json.dumps(value) for value in values if value is not None)
