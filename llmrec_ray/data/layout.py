"""A section of the recipe and the first line of a file -> how its text is split into fields.

Polars splits at single bytes: longer separators are replaced by a control character that the text does not have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmrec_ray.config.data import FileSection
from llmrec_ray.data.text_lines import QUOTE, is_broken, read_record, shown
from llmrec_ray.errors import DataError, MissingInputError

__all__ = ["Layout", "layout_of", "require", "separation"]

SEPARATORS = {"csv": ",", "tsv": "\t"}
USUAL_SEPARATORS = (",", ";", "\t", "|", "::", " ")
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Layout:
    """names: of the columns, in order. separator: between fields; of several characters, or when `quotes` is false,
    double quotes are letters like others. header_lines: lines before the first record."""

    names: tuple[str, ...]
    separator: str
    quotes: bool
    header_lines: int = 0

    @property
    def line_pattern(self) -> str:
        """Regular expression of a line that is a whole record with all its fields, each wholly quoted or not at all."""
        separator = re.escape(self.separator)
        field = rf'(?:"(?:[^"]|"")*"|[^"\r{separator}]*)'
        return rf"^{field}(?:{separator}{field}){{{len(self.names) - 1}}}$"

    def split(self, line: str) -> list[str] | None:
        """Fields of a line without quotes that matter; None when its bytes are no text."""
        return None if is_broken(line) else line.split(self.separator)


def layout_of(section: FileSection, lines: Sequence[str], wanted: Sequence[str], name: str) -> Layout:
    """How to split a file that begins with `lines`.

    Raises MissingInputError naming the file and a wanted column that it lacks, DataError when it has no header.
    """
    layout = separation(section)
    separator = layout.separator
    blank = next((number for number, line in enumerate(lines) if line), len(lines))
    if section.header:
        require(wanted, section.header, name)
        _check_width(lines[blank:], section.header, separator, name)
        return replace(layout, names=section.header)
    if blank == len(lines):
        raise DataError(f"{name} has no readable header: its first line must name the columns.")
    fields, used = _first_fields(lines, blank, layout)
    _check_separator(wanted, fields or [], lines[blank], separator, name)
    if fields is None:
        raise DataError(_why_unreadable(lines[blank], section, name))
    if "\r" in lines[blank]:
        raise DataError(
            f"The lines of {name} end in carriage returns alone, as on old Macintoshes: convert them to line feeds."
        )
    require(wanted, fields, name)
    return replace(layout, names=tuple(fields), header_lines=blank + used)


def separation(section: FileSection) -> Layout:
    """How fields are told apart, whatever they are called."""
    separator = section.separator or SEPARATORS[section.format]
    return Layout((), separator, section.quotes and len(separator) == 1)


def require(wanted: Sequence[str], known: Sequence[str], name: str, hint: str = "correct the recipe's columns") -> None:
    """Raise MissingInputError for the first wanted column that is not there."""
    for column in wanted:
        if column not in known:
            others = ", ".join(known)
            others = others if len(others) <= SHOWN_CHARACTERS else others[:SHOWN_CHARACTERS] + "…"
            raise MissingInputError(f"{name} has no column {column!r}, only {others}: {hint}.")


def _first_fields(lines: Sequence[str], start: int, layout: Layout) -> tuple[list[str] | None, int]:
    if not layout.quotes or QUOTE not in lines[start]:
        return layout.split(lines[start]), 1
    record = read_record(lines, start, layout.separator)
    return record.fields, record.n_lines


def _why_unreadable(line: str, section: FileSection, name: str) -> str:
    if is_broken(line):
        looks = "; it looks like utf-16" if line.startswith(("\udcff\udcfe", "\udcfe\udcff")) else ""
        return (
            f"The first line of {name} is not {section.encoding} text{looks}: set `encoding`, or `format` if it is no "
            "text at all."
        )
    return f"{name} has no readable header, its first line is {shown(line)[:SHOWN_CHARACTERS]!r}: correct the line."


def _check_separator(wanted: Sequence[str], fields: Sequence[str], line: str, separator: str, name: str) -> None:
    """Whether another separator finds the columns that this one does not."""
    for other in USUAL_SEPARATORS:
        others = [field.strip(QUOTE) for field in line.split(other)]
        if other != separator and set(wanted) - set(fields) and set(wanted) <= set(others):
            hint = f"its fields look separated by {other!r}, so set separator: {other!r}"
            require(wanted, fields or [line], name, hint)


def _check_width(lines: Sequence[str], header: Sequence[str], separator: str, name: str) -> None:
    """The first line tells whether the separator is another, when nothing names the columns."""
    found = len(lines[0].split(separator)) if lines else len(header)
    for other in USUAL_SEPARATORS:
        if other != separator and found == 1 < len(header) == len(lines[0].split(other)):
            raise DataError(
                f"The first line of {name} has 1 field instead of {len(header)} with the separator {separator!r}, and "
                f"{len(header)} with {other!r}: set separator: {other!r}."
            )
