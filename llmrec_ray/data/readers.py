"""A piece of a file of any format -> blocks of records with the wanted columns.

Columns that stand in the names of folders count as if each record had them. This module knows which format is read by
whom, and not what columns mean.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence

import polars as pl

from llmrec_ray.data.blocks import BLOCK_BYTES, first_lines, text_blocks
from llmrec_ray.data.delimited import read_delimited
from llmrec_ray.data.json_lines import read_json_lines
from llmrec_ray.data.layout import Layout, layout_of
from llmrec_ray.data.pieces import Piece
from llmrec_ray.data.records import Records
from llmrec_ray.data.row_groups import BLOCK_ROWS, read_row_groups
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.errors import MissingInputError

__all__ = ["read_piece"]


def read_piece(
    piece: Piece, columns: Sequence[str], *, optional: Collection[str] = (), join_lists: bool = False,
    block_bytes: int = BLOCK_BYTES, block_rows: int = BLOCK_ROWS,
) -> Iterator[Records]:
    """The wanted columns, block by block; text formats give String columns, Parquet the types it has.

    optional: fields that JSON lines need not have. join_lists: lists of single values become text. Raises
    MissingInputError naming file and column when a column is not there, DataError when the file is not of this format.
    """
    source = piece.source
    in_path = {name: value for name, value in source.partitions.items() if name in columns}
    wanted = [column for column in dict.fromkeys(columns) if column not in in_path]
    assert wanted, f"All of {columns} stand in the path of {source.name}. This is a bug."
    if source.config.format == "parquet":
        blocks = read_row_groups(piece, wanted, block_rows)
    elif source.config.format == "jsonl":
        blocks = _json_blocks(piece, wanted, set(wanted) - set(optional), block_bytes, join_lists=join_lists)
    else:
        blocks = _delimited_blocks(piece, wanted, block_bytes)
    parts = [pl.lit(value, pl.String).alias(name) for name, value in in_path.items()]
    for records in blocks:
        yield Records(records.frame.with_columns(parts), records.unreadable, records.show)


def _delimited_blocks(piece: Piece, wanted: Sequence[str], block_bytes: int) -> Iterator[Records]:
    source = piece.source
    layout = layout_of(source.config, first_lines(source), wanted, source.name)
    texts = text_blocks(source, piece.start, piece.stop, layout, block_bytes)
    for number, text in enumerate(texts):
        is_first = number == piece.start == 0
        yield read_delimited(_without_header(text, layout) if is_first else text, layout, wanted)


def _without_header(text: bytes, layout: Layout) -> bytes:
    start = 0
    for _ in range(layout.header_lines):
        start = text.find(b"\n", start) + 1 or len(text)
    return text[start:]


def _json_blocks(
    piece: Piece, wanted: Sequence[str], required: Collection[str], block_bytes: int, *, join_lists: bool
) -> Iterator[Records]:
    for number, text in enumerate(text_blocks(piece.source, piece.start, piece.stop, None, block_bytes)):
        records = read_json_lines(text, wanted, join_lists=join_lists)
        if number == piece.start == 0:
            _check_fields(records.frame.select(sorted(required)), piece.source)
        yield records


def _check_fields(frame: pl.DataFrame, source: SourceFile) -> None:
    """A field that is empty at first must at least be named somewhere in the file."""
    for column in frame.columns if len(frame) else ():
        if frame[column].null_count() == len(frame) and not _is_named(column, source):
            raise MissingInputError(f"No record of {source.name} has a field {column!r}: correct the recipe's columns.")


def _is_named(field: str, source: SourceFile) -> bool:
    names = {json.dumps(field).encode(), json.dumps(field, ensure_ascii=False).encode()}
    texts = text_blocks(source, 0, source.size_bytes, None)
    return any(name in text for text in texts for name in names)
