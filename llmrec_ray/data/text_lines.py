"""Lines of text and where records of CSV begin and end among them, wherever reading starts.

A quoted field may span lines. A quote that never closes, or not within MAX_RECORD_LINES, spoils only the line it
stands on. Since no record is longer than that, readers that start at different lines soon agree on where records begin:
that is how files are cut without reading them from their beginning. Knows no files.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "MAX_RECORD_LINES", "Record", "is_broken", "read_record", "record_start", "shown", "split_lines", "walk",
]

MAX_RECORD_LINES = 100
QUOTE = '"'


@dataclass(frozen=True)
class Record:
    """One record: its fields, None when they cannot be told apart, and how many lines it takes."""

    fields: list[str] | None
    n_lines: int


def split_lines(text: bytes) -> list[str]:
    """Lines of UTF-8 without their ends; bytes that are no UTF-8 become surrogates, see `is_broken`."""
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def is_broken(line: str) -> bool:
    """Whether bytes of the line were not of the encoding that was promised."""
    if line.isascii():
        return False
    try:
        line.encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(text: str) -> str:
    """The text for people, with U+FFFD for bytes that are no text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_record(lines: Sequence[str], start: int, separator: str) -> Record:
    """The record that begins at line `start`, double quotes being special where a field begins."""
    line = lines[start]
    if is_broken(line):
        return Record(None, 1)
    if QUOTE not in line:
        return Record(line.split(separator), 1)
    csv.field_size_limit(sys.maxsize)
    parts: list[str] = []
    for line in lines[start : start + MAX_RECORD_LINES]:
        if is_broken(line):
            break
        parts.append(line)
        if len(parts) > 1 and QUOTE not in line:
            continue
        try:
            return Record(next(csv.reader(["\n".join(parts)], delimiter=separator, strict=True), []), len(parts))
        except csv.Error as error:
            if "unexpected end" not in str(error):
                break
    return Record(None, 1)


def record_start(lines: Sequence[str], separator: str) -> int | None:
    """A line that begins a record however the lines before these were read; None when these do not tell.

    One of any MAX_RECORD_LINES lines begins a record. Reading goes on from each of the first ones until all readers
    have met at one line.
    """
    if len(lines) < MAX_RECORD_LINES:
        return None
    readers = set(range(MAX_RECORD_LINES))
    while len(readers) > 1:
        last = min(readers)
        after = walk(lines, last, separator, steps=1)
        if after == last:
            return None
        readers.remove(last)
        readers.add(after)
    return readers.pop()


def walk(lines: Sequence[str], start: int, separator: str, steps: int | None = None) -> int:
    """The line that the reader at `start` comes to after so many records, or where it needs lines not there yet."""
    while start < len(lines) and steps != 0:
        if QUOTE in lines[start] and start + MAX_RECORD_LINES > len(lines):
            break
        start += read_record(lines, start, separator).n_lines
        steps = None if steps is None else steps - 1
    return start
