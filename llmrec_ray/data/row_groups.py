"""Row groups of a Parquet file -> blocks of rows with the types the file has.

Polars reads files of this machine by their path, PyArrow those of object stores; both only the wanted columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_ray.data.layout import require
from llmrec_ray.data.pieces import Piece, open_parquet
from llmrec_ray.data.records import RECORD, Records, unreadable_frame
from llmrec_ray.errors import DataError

__all__ = ["BLOCK_ROWS", "read_row_groups"]

BLOCK_ROWS = 1_000_000
SHOWN_AT_ONCE = 8_192


def read_row_groups(piece: Piece, wanted: Sequence[str], block_rows: int = BLOCK_ROWS) -> Iterator[Records]:
    """The wanted columns of the piece, at most `block_rows` rows at a time; one empty block when it has no rows.

    Raises MissingInputError naming file and column when a column is not there, DataError when the file is damaged.
    """
    with open_parquet(piece.source) as file:
        known = file.schema_arrow.names
        require(wanted, known, piece.source.name)
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        first, n_rows = sum(groups[: piece.start]), sum(groups[piece.start : piece.stop])
        frames = _from_path(piece, wanted, first, n_rows, block_rows)
        if not piece.source.is_local:
            frames = _from_store(file, piece, wanted, block_rows)
        before = 0
        for frame in frames:
            numbered = frame.with_row_index(RECORD, offset=1).with_columns(pl.col(RECORD).cast(pl.Int64))
            is_all = len(wanted) == len(known)
            yield Records(numbered, unreadable_frame(), _Rows(piece, before, frame if is_all else None))
            before += len(frame)


class _Rows:
    """Shows rows of a block with all their columns, also those that nobody asked for."""

    def __init__(self, piece: Piece, before: int, frame: pl.DataFrame | None) -> None:
        self._piece, self._before, self._frame = piece, before, frame

    def __call__(self, numbers: Sequence[int]) -> list[str]:
        if self._frame is not None:
            return _in_json(self._frame[[number - 1 for number in numbers]])
        return [text for batch in self._batches(numbers) for text in _in_json(batch)]

    def _batches(self, numbers: Sequence[int]) -> Iterator[pl.DataFrame]:
        places = pl.Series([self._before + number - 1 for number in numbers], dtype=pl.Int64)
        row = 0
        with _explained(self._piece), open_parquet(self._piece.source) as file:
            groups = list(range(self._piece.start, self._piece.stop))
            for batch in file.iter_batches(SHOWN_AT_ONCE, row_groups=groups, use_threads=False):
                here = places.filter(places.is_between(row, row + len(batch), closed="left")) - row
                if len(here):
                    yield _frame_of(batch)[here]
                row += len(batch)
                if row > int(places[-1]):
                    return


def _from_path(
    piece: Piece, wanted: Sequence[str], first: int, n_rows: int, block_rows: int
) -> Iterator[pl.DataFrame]:
    rows = pl.scan_parquet(piece.source.path, glob=False, hive_partitioning=False).select(wanted)
    for before in range(0, max(n_rows, 1), block_rows):
        with _explained(piece):
            yield rows.slice(first + before, min(block_rows, n_rows - before)).collect()


def _from_store(
    file: pq.ParquetFile, piece: Piece, wanted: Sequence[str], block_rows: int
) -> Iterator[pl.DataFrame]:
    groups = list(range(piece.start, piece.stop))
    with _explained(piece):
        is_empty = True
        for batch in file.iter_batches(block_rows, row_groups=groups, columns=list(wanted), use_threads=False):
            is_empty = False
            yield _frame_of(batch).select(wanted)
        if is_empty:
            yield _frame_of(file.schema_arrow.empty_table()).select(wanted)


@contextmanager
def _explained(piece: Piece) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{piece.source.name} is damaged ({reason}; row groups {piece.start + 1} to {piece.stop}): restore it."
        ) from None


def _frame_of(batch: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _in_json(frame: pl.DataFrame) -> list[str]:
    return [json.dumps(row, default=str, ensure_ascii=False) for row in frame.iter_rows(named=True)]
