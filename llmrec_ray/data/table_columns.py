"""A table as its file has it -> the columns that the recipe calls by name: renamed, cut out of others, lists spelt out.

Knows `TableConfig.columns` and no file format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from llmrec_ray.config import TableColumn, TableConfig
from llmrec_ray.errors import ConfigError
from llmrec_ray.text import TextTemplate

__all__ = ["file_columns", "named_columns"]

BETWEEN_VALUES = ", "


def file_columns(table: TableConfig) -> list[str]:
    """The columns of the file that id, title, template and attributes are made from, each once."""
    sources = (_made_from(name, table) for name in _names(table))
    return list(dict.fromkeys(name for source in sources for name in source.flags or [source.column or ""]))


def named_columns(frame: pl.DataFrame, table: TableConfig) -> pl.DataFrame:
    """The rows of a table with the columns that the recipe names, in place of those of `file_columns`.

    Columns of `frame` that are none of the file's stay. What is cut out, split, translated or made of flags becomes
    text without white space around, null where nothing is left; all else keeps its type. Raises ConfigError for a
    pattern that Polars, whose regular expressions are those of Rust, does not know.
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


def _made(made: TableColumn) -> pl.Expr:
    if made.flags:
        return _flagged(made.flags, made.values)
    value = pl.col(made.column or "")
    if not (made.pattern or made.separator or made.values):
        return value
    text = value.cast(pl.String).str.strip_chars()
    if made.pattern:
        text = text.str.extract(made.pattern, 1).str.strip_chars()
    if made.separator is None:
        return _filled(_translated(text, made.values))
    each = _translated(pl.element().str.strip_chars(), made.values)
    values = text.str.split(made.separator).list.eval(_filled(each).drop_nulls())
    return _filled(values.list.join(BETWEEN_VALUES))


def _flagged(flags: Sequence[str], values: Mapping[str, str]) -> pl.Expr:
    words = {flag: values.get(flag, flag) for flag in flags}
    named = [pl.when(_is_set(flag)).then(pl.lit(word)) for flag, word in words.items() if word]
    return _filled(pl.concat_str(named, separator=BETWEEN_VALUES, ignore_nulls=True)) if named else pl.lit(None)


def _is_set(flag: str) -> pl.Expr:
    return pl.col(flag).cast(pl.String).str.strip_chars().str.to_lowercase().is_in(["1", "1.0", "true"])


def _translated(text: pl.Expr, values: Mapping[str, str]) -> pl.Expr:
    return text.replace(dict(values)) if values else text


def _filled(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)
