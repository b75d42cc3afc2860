"""Files on disk -> what ingest reads from them, in pieces and blocks of any size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from llmrec_ray.config import DataConfig
from llmrec_ray.data.blocks import BLOCK_BYTES
from llmrec_ray.data.parse import ParsedBlock, parse_piece
from llmrec_ray.data.pieces import PIECE_BYTES, PIECE_ROWS, Piece, cut_pieces
from llmrec_ray.data.readers import read_piece
from llmrec_ray.data.records import RECORD
from llmrec_ray.data.row_groups import BLOCK_ROWS
from llmrec_ray.data.sources import SourceFile, find_sources

ITEMS = {"id": "id", "template": "{name}"}


def log_file(path: Path | str, **log: Any) -> SourceFile:
    """The one file of a log."""
    data = DataConfig.model_validate({"interactions": {"paths": [str(path)], **log}})
    (source,) = find_sources(data, Path("/nowhere"))
    return source


def items_file(path: Path | str, **items: Any) -> SourceFile:
    """The one file of a table of items."""
    tree = {"interactions": {"paths": [str(path)]}, "items": {"paths": [str(path)], **ITEMS, **items}}
    return find_sources(DataConfig.model_validate(tree), Path("/nowhere"))[1]


def whole(source: SourceFile) -> Piece:
    """The only piece of a small file."""
    (piece,) = cut_pieces([source])
    return piece


def parsed(
    source: SourceFile, *, piece_bytes: int = PIECE_BYTES, piece_rows: int = PIECE_ROWS
) -> ParsedBlock:
    """All blocks of all pieces as one; the law of rows holds for each."""
    rows, good, quarantine, dropped = 0, [], [], {}
    for piece in cut_pieces([source], piece_bytes=piece_bytes, piece_rows=piece_rows):
        for block in parse_piece(piece):
            assert block.rows == len(block.good) + len(block.quarantine) + sum(block.dropped.values())
            assert block.quarantine["position"].is_between(1, block.rows).all()
            good.append(block.good)
            quarantine.append(block.quarantine.with_columns(pl.col("position") + rows))
            rows += block.rows
            dropped |= {name: dropped.get(name, 0) + count for name, count in block.dropped.items()}
    return ParsedBlock(rows, pl.concat(good, how="vertical_relaxed"), pl.concat(quarantine), dropped)


def records(
    source: SourceFile, columns: Sequence[str], *, piece_bytes: int = PIECE_BYTES, block_bytes: int = BLOCK_BYTES,
    piece_rows: int = PIECE_ROWS, block_rows: int = BLOCK_ROWS, **options: Any,
) -> list[tuple[Any, ...]]:
    """(number, reason or None, text of the record, its wanted fields) of every record of the file."""
    found: list[tuple[Any, ...]] = []
    for piece in cut_pieces([source], piece_bytes=piece_bytes, piece_rows=piece_rows):
        blocks = read_piece(piece, columns, block_bytes=block_bytes, block_rows=block_rows, **options)
        for block in blocks:
            before = len(found)
            numbers = block.frame[RECORD]
            good = zip(numbers, block.raw(numbers), block.frame.select(columns).rows(), strict=True)
            found += [(before + number, None, raw, fields) for number, raw, fields in good]
            found += [(before + number, reason, raw, None) for number, reason, raw in block.unreadable.rows()]
            found[before:] = sorted(found[before:], key=lambda record: record[0])
    assert [record[0] for record in found] == list(range(1, len(found) + 1))
    return found
