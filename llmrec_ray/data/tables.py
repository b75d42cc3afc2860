"""Rows of an item or user table + a vocabulary -> one text, title and attributes per row of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from llmrec_ray.config import TableConfig
from llmrec_ray.text import TextTemplate, clean_text
from llmrec_ray.types import Columns
from llmrec_ray.vocab import Vocabulary

__all__ = ["Descriptions", "describe"]


@dataclass(frozen=True)
class Descriptions:
    """texts: row, title, text, one per vocabulary row; attributes: row and the attribute columns, likewise."""

    texts: pl.DataFrame
    attributes: pl.DataFrame

    @property
    def without_text(self) -> int:
        """Rows whose text is empty; they are kept, and text signals know nothing about them."""
        return int((self.texts[Columns.TEXT] == "").sum())


def describe(vocabulary: Vocabulary, row: str, config: TableConfig | None, frame: pl.DataFrame) -> Descriptions:
    """Fill the template for every id. Of several table rows with one id the last is used; strangers are ignored."""
    ids = list(vocabulary)
    rows = pl.Series(row, range(len(ids)), dtype=pl.Int64)
    if config is None:
        return Descriptions(_texts(rows, ids, [""] * len(ids)), rows.to_frame())
    known = frame.unique(config.id, keep="last", maintain_order=True)
    joined = pl.DataFrame({config.id: ids}).join(known, on=config.id, how="left", maintain_order="left")
    template = TextTemplate(config.template)
    found = joined.select(list(dict.fromkeys([*template.fields, *([config.title] if config.title else [])])))
    records = found.to_dicts()
    known_ids = set(known[config.id])
    texts = [template.fill(record) if id_ in known_ids else "" for id_, record in zip(ids, records, strict=True)]
    titles = [
        clean_text(str(record[config.title])) if config.title and record[config.title] is not None else ""
        for record in records
    ]
    attributes = joined.select(_typed(joined[name]) for name in dict.fromkeys(config.attributes))
    titled = [title or id_ for title, id_ in zip(titles, ids, strict=True)]
    return Descriptions(_texts(rows, titled, texts), pl.DataFrame([rows, *attributes.get_columns()]))


def _texts(rows: pl.Series, titles: list[str], texts: list[str]) -> pl.DataFrame:
    return pl.DataFrame([
        rows, pl.Series(Columns.TITLE, titles, dtype=pl.String), pl.Series(Columns.TEXT, texts, dtype=pl.String),
    ])


def _typed(column: pl.Series) -> pl.Series:
    """Text that is nothing but whole numbers becomes int64 ("05201" stays text); everything else keeps its type."""
    if column.dtype != pl.String:
        return column
    numbers = column.cast(pl.Int64, strict=False)
    unchanged = numbers.cast(pl.String).eq_missing(column)
    return numbers if unchanged.all() and numbers.len() > numbers.null_count() else column
