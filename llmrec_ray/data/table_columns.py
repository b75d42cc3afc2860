"""A table as its file has it -> the columns that the recipe calls by name: renamed, cut out of others, lists spelt out.

Knows `TableConfig.columns` and no file format.
"""

from __future__ import annotations

import polars as pl

from llmrec_ray.config import TableColumn, TableConfig
from llmrec_ray.errors import ConfigError
from llmrec_ray.text import TextTemplate

__all__ = ["file_columns", "named_columns"]

BETWEEN_VALUES = ", "


def file_columns(table: TableConfig) -> list[str]:
    """The columns of the file that id, title, template and attributes are made from, each once."""
    return list(dict.fromkeys(_made_from(name, table).column for name in _names(table)))


def named_columns(frame: pl.DataFrame, table: TableConfig) -> pl.DataFrame:
    """The rows of a table with the columns that the recipe names, in place of those of `file_columns`.

    Columns of `frame` that are none of the file's stay. What is cut out, split or may be missing becomes text without
    white space around, null where nothing is left; all else keeps its type. Raises ConfigError for a pattern that
    Polars, whose regular expressions are those of Rust, does not know.
    """
    known = set(file_columns(table))
    made = [_made(_made_from(name, table)).alias(name) for name in _names(table)]
    try:
        return frame.select(pl.exclude(known) if known else pl.all(), *made)
    except pl.exceptions.ComputeError as error:
        patterns = ", ".join(repr(column.pattern) for column in table.columns.values() if column.pattern)
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"A pattern of columns ({patterns}) cannot be used ({reason}): write it without look-around and without "
            "references back."
        ) from None


def _names(table: TableConfig) -> list[str]:
    title = [table.title] if table.title else []
    return list(dict.fromkeys([table.id, *title, *TextTemplate(table.template).fields, *table.attributes]))


def _made_from(name: str, table: TableConfig) -> TableColumn:
    return table.columns.get(name) or TableColumn(column=name)


def _made(column: TableColumn) -> pl.Expr:
    value = pl.col(column.column)
    if not (column.pattern or column.separator or column.missing):
        return value
    text = value.cast(pl.String).str.strip_chars()
    if column.pattern:
        text = text.str.extract(column.pattern, 1).str.strip_chars()
    known = pl.when(~text.is_in(["", *column.missing])).then(text)
    return _spelt_out(known, column.separator) if column.separator else known


def _spelt_out(text: pl.Expr, separator: str) -> pl.Expr:
    values = text.str.split(separator).list.eval(pl.element().str.strip_chars())
    filled = values.list.eval(pl.element().filter(pl.element() != ""))
    joined = filled.list.join(BETWEEN_VALUES)
    return pl.when(joined != "").then(joined)
