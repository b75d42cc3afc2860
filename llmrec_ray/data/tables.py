"""Rows of an item or user table and a vocabulary -> one title, text and set of attributes per vocabulary row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from llmrec_ray.config import TableConfig
from llmrec_ray.data.parse import natural_types
from llmrec_ray.errors import DataError
from llmrec_ray.text import TextTemplate, clean_text
from llmrec_ray.types import Columns
from llmrec_ray.vocab import Vocabulary

__all__ = ["Descriptions", "describe"]


@dataclass(frozen=True)
class Descriptions:
    """texts: row, title, text; attributes: row and the recipe's attribute columns; both one per vocabulary
    row.

    unused: ids of the table that the vocabulary does not have.
    """

    texts: pl.DataFrame
    attributes: pl.DataFrame
    unused: int

    @property
    def without_text(self) -> int:
        """Rows whose text is empty; they are kept, and text says nothing about them."""
        return int((self.texts[Columns.TEXT] == "").sum())


def describe(
    vocabulary: Vocabulary, row: str, config: TableConfig | None, frame: pl.DataFrame
) -> Descriptions:
    """Fill title and text for every id; of several table rows with one id the last one counts.

    `row` names the column of vocabulary rows in both results. Raises DataError when the table has none of the
    ids, which means that log and table do not speak of the same things.
    """
    ids = pl.Series(list(vocabulary), dtype=pl.String)
    rows = pl.Series(row, range(len(ids)), dtype=pl.Int64)
    if config is None:
        return Descriptions(_texts(rows, ids.to_list(), [""] * len(ids)), rows.to_frame(), 0)
    known = natural_types(frame.unique(config.id, keep="last", maintain_order=True), config.id)
    shared = known.filter(pl.col(config.id).is_in(ids.implode()))
    _check_overlap(shared, known, config, ids, row)
    joined = ids.to_frame(config.id).join(shared, on=config.id, how="left", maintain_order="left")
    titles, texts = _fill(joined, config, set(shared[config.id]))
    attributes = [joined[name] for name in dict.fromkeys(config.attributes)]
    unused = len(known) - len(shared)
    return Descriptions(_texts(rows, titles, texts), pl.DataFrame([rows, *attributes]), unused)


def _check_overlap(
    shared: pl.DataFrame, known: pl.DataFrame, config: TableConfig, ids: pl.Series, row: str
) -> None:
    if len(shared):
        return
    table = row.removesuffix("_row") + "s"
    raise DataError(
        f"None of the {len(known)} ids in data.{table} occurs in the log: the table has ids such as "
        f"{known[config.id][0]!r}, the log such as {ids[0]!r}. Correct data.{table}.id, or the log's column "
        "names."
    )


def _fill(joined: pl.DataFrame, config: TableConfig, described: set[str]) -> tuple[list[str], list[str]]:
    template = TextTemplate(config.template)
    titles, texts = [], []
    for record in joined.iter_rows(named=True):
        id_ = record[config.id]
        title = record[config.title] if config.title else None
        titles.append(clean_text(str(title)) or id_ if title is not None else id_)
        texts.append(template.fill(record) if id_ in described else "")
    return titles, texts


def _texts(rows: pl.Series, titles: Sequence[str], texts: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({rows.name: rows, Columns.TITLE: titles, Columns.TEXT: texts})
