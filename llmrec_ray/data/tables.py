"""Rows of item or user tables and ids in row order -> one title, text and set of attributes per row.

Knows how ids of domains begin, and no files. Whole columns at a time: a million items take seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from llmrec_ray.config import TableConfig
from llmrec_ray.errors import DataError
from llmrec_ray.text import TextTemplate, clean_column
from llmrec_ray.types import Columns

__all__ = ["Descriptions", "describe", "natural_types"]

ID = "__id__"
DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"


@dataclass(frozen=True)
class Descriptions:
    """texts: row, title, text; attributes: row and the recipe's attribute columns; both one per row.

    unused: how many ids of the tables nothing refers to.
    """

    texts: pl.DataFrame
    attributes: pl.DataFrame
    unused: int

    @property
    def without_text(self) -> int:
        """Rows whose text is empty; they are kept, and text says nothing about them."""
        return int((self.texts[Columns.TEXT] == "").sum())


def describe(
    ids: pl.Series, row: str, tables: Sequence[tuple[TableConfig, pl.DataFrame]],
    domains: Collection[str] = (),
) -> Descriptions:
    """Fill title, text and attributes for every id from the tables that describe it.

    ids: String, distinct, in row order. `row` names the column of rows in both results. Of several rows of a table with
    one id the last one counts; of several tables with one id each value comes from the last that gives it. Attributes
    are those of all tables, cleaned as texts are, null where there are none. With domains, those of the tables and
    `domains`, there is an attribute `domain`: what the id begins with. Raises DataError for a table that has none of
    the ids, which means that log and table do not speak of the same things.
    """
    ids = ids.alias(ID)
    described = []
    for place, (config, frame) in enumerate(tables):
        known = _known(config, frame)
        _check_overlap(known, ids, _section(row, place, len(tables)))
        described.append(_described(config, known.filter(known[ID].is_in(ids.implode()))))
    joined = ids.to_frame().join(_merged(described), on=ID, how="left", maintain_order="left")
    rows = pl.int_range(len(ids), dtype=pl.Int64, eager=True).alias(row)
    texts = pl.DataFrame([
        rows, joined[Columns.TITLE].fill_null(ids).alias(Columns.TITLE), joined[Columns.TEXT].fill_null("")
    ])
    named = dict.fromkeys(name for config, _ in tables for name in config.attributes)
    attributes = [joined[_attribute(name)].alias(name) for name in named]
    own = [domain for config, _ in tables if (domain := config.domain)]
    kept = [rows, *attributes, *_domains(ids, {*domains, *own})]
    return Descriptions(texts, pl.DataFrame(kept), _unused(tables, ids))


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


def _known(config: TableConfig, frame: pl.DataFrame) -> pl.DataFrame:
    """One row per id, with the id as text in ID too; text clean, null where it is empty."""
    last = frame.unique(config.id, keep="last", maintain_order=True)
    cleaned = last.with_columns(_given(column) for column in last if column.dtype == pl.String)
    return natural_types(cleaned.with_columns(last[config.id].cast(pl.String).alias(ID)), ID)


def _given(column: pl.Series) -> pl.Series:
    cleaned = clean_column(column)
    return cleaned.set(cleaned == "", None)


def _section(row: str, place: int, n_tables: int) -> str:
    """What the recipe calls a table."""
    name = f"data.{row.removesuffix('_row')}s"
    return name if n_tables == 1 else f"{name}[{place}]"


def _check_overlap(known: pl.DataFrame, ids: pl.Series, section: str) -> None:
    if known[ID].is_in(ids.implode()).any() or not len(known):
        return
    raise DataError(
        f"None of the {len(known)} ids in {section} occurs in the log: the table has ids such as {known[ID][0]!r}, "
        f"the log such as {ids[0]!r}. Correct {section}.id, or the log's column names."
    )


def _described(config: TableConfig, known: pl.DataFrame) -> pl.DataFrame:
    """ID, title, text and attributes; text is null where nothing fills it."""
    text = TextTemplate(config.template).fill_frame(known)
    title = pl.col(config.title).cast(pl.String) if config.title else pl.lit(None, dtype=pl.String)
    return known.select(
        ID, title.alias(Columns.TITLE), text.set(text == "", None).alias(Columns.TEXT),
        *(_number(known[name]).alias(_attribute(name)) for name in dict.fromkeys(config.attributes)),
    )


def _number(column: pl.Series) -> pl.Series:
    """Decimals as numbers, which the text keeps as they are written; "05.5" and "1e5" are no decimals."""
    if column.dtype != pl.String or not len(given := column.drop_nulls()):
        return column
    return column.cast(pl.Float64) if given.str.contains(DECIMAL).all() else column


def _attribute(name: str) -> str:
    """Column of an attribute beside title and text, which may have the same name."""
    return f"attribute {name}"


def _merged(described: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One row per id of all tables."""
    nothing = pl.DataFrame(schema={ID: pl.String, Columns.TITLE: pl.String, Columns.TEXT: pl.String})
    stacked = pl.concat([nothing, *described], how="diagonal_relaxed")
    if stacked[ID].is_unique().all():
        return stacked
    return stacked.group_by(ID, maintain_order=True).agg(pl.all().drop_nulls().last())


def _domains(ids: pl.Series, domains: Collection[str]) -> list[pl.Series]:
    if not domains:
        return []
    begins = ids.str.extract(r"^([A-Za-z0-9_-]{1,32}):")
    return [begins.set(~begins.is_in(list(domains)), None).alias(Columns.DOMAIN)]


def _unused(tables: Sequence[tuple[TableConfig, pl.DataFrame]], ids: pl.Series) -> int:
    """How many different ids of the tables nothing refers to."""
    known = pl.concat([ids.clear(), *(frame[config.id].cast(pl.String).alias(ID) for config, frame in tables)])
    return int((~known.unique().is_in(ids.implode())).sum())
