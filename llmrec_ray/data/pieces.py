"""Files -> pieces of them that tasks can read apart, each from a record's first byte (or row group) to another's.

Where a file is cut never changes what is read from it: text is cut only where a record begins however the lines before
are read. Compressed files and UTF-16 stay whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec_ray.data.blocks import can_cut, next_cut
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.errors import DataError

__all__ = ["NO_STARTS", "Piece", "cut_pieces", "digest", "estimated_rows", "open_parquet"]

PIECE_BYTES = 64 * 1024 * 1024
PIECE_ROWS = 1_000_000
READ_BYTES = 4 * 1024 * 1024
PACKED = 4
BYTES_A_RECORD = 40
NO_STARTS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Piece:
    """A stretch of one file.

    number: place among all pieces, in the order of files and then of places in the file. start, stop: bytes of a text
    file as it is stored, or row groups of a Parquet file.
    """

    source: SourceFile
    number: int
    start: int
    stop: int


def cut_pieces(
    sources: Sequence[SourceFile], *, piece_bytes: int = PIECE_BYTES, piece_rows: int = PIECE_ROWS,
    starts: Mapping[str, int] = NO_STARTS,
) -> list[Piece]:
    """Pieces of about `piece_bytes` of text, or of `piece_rows` rows of Parquet, at least one a file.

    An endpoint's log ends with its last whole line: nobody was told that the torn one is safe, and it may still grow.

    starts: name of a file that has grown -> the byte to go on from. Raises MissingInputError and DataError naming a
    file that cannot be read.
    """
    cuts = (
        (source, start, stop) for source in sources
        for start, stop in _cuts(source, piece_bytes, piece_rows, starts.get(source.name, 0))
    )
    return [Piece(source, number, start, stop) for number, (source, start, stop) in enumerate(cuts)]


def digest(piece: Piece) -> str:
    """SHA-256 of the piece's share of the bytes of its file; the shares of all its pieces make up the file."""
    start, stop = _share(piece) if piece.source.config.format == "parquet" else (piece.start, piece.stop)
    sha256 = hashlib.sha256()
    for chunk in piece.source.stored_bytes(start, stop):
        sha256.update(chunk)
    return sha256.hexdigest()


def estimated_rows(piece: Piece) -> int:
    """About how many records the piece has, exact for Parquet."""
    if piece.source.config.format == "parquet":
        metadata = open_parquet(piece.source).metadata
        return sum(metadata.row_group(group).num_rows for group in range(piece.start, piece.stop))
    packed = PACKED if piece.source.is_compressed else 1
    return (piece.stop - piece.start) * packed // BYTES_A_RECORD + 1


def open_parquet(source: SourceFile) -> pq.ParquetFile:
    """The file with its row groups known. Raises MissingInputError, and DataError when it is no whole Parquet file."""
    try:
        return pq.ParquetFile(source.open_raw())
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"{source.name} is not a Parquet file ({reason}): correct `format`, or restore the file."
        raise DataError(message) from None


def _cuts(source: SourceFile, piece_bytes: int, piece_rows: int, start: int) -> Iterator[tuple[int, int]]:
    if source.config.format == "parquet":
        yield from _row_group_cuts(open_parquet(source).metadata, piece_rows)
        return
    stop = _end(source)
    if start >= stop and source.may_grow:
        return
    target = start + piece_bytes
    while can_cut(source) and target < stop:
        cut = next_cut(source, target)
        if cut is not None and cut < stop:
            yield start, cut
            start = target = cut
        target += piece_bytes
    yield start, stop


def _row_group_cuts(metadata: pq.FileMetaData, piece_rows: int) -> Iterator[tuple[int, int]]:
    start, rows = 0, 0
    for group in range(metadata.num_row_groups):
        more = metadata.row_group(group).num_rows
        if rows and rows + more > piece_rows:
            yield start, group
            start, rows = group, 0
        rows += more
    yield start, metadata.num_row_groups


def _end(source: SourceFile) -> int:
    start = source.size_bytes
    while source.may_grow and start > 0:
        stop, start = start, max(0, start - READ_BYTES)
        last = b"".join(source.stored_bytes(start, stop)).rfind(b"\n")
        if last >= 0:
            return start + last + 1
    return start


def _share(piece: Piece) -> tuple[int, int]:
    """From the first byte of its first row group to that of the next piece's; the ends of the file belong to them."""
    metadata = open_parquet(piece.source).metadata
    first = _first_byte(metadata, piece.start) if piece.start else 0
    return first, _first_byte(metadata, piece.stop) if piece.stop < metadata.num_row_groups else piece.source.size_bytes


def _first_byte(metadata: pq.FileMetaData, group: int) -> int:
    row_group = metadata.row_group(group)
    columns = (row_group.column(index) for index in range(row_group.num_columns))
    return min(int(column.dictionary_page_offset or column.data_page_offset) for column in columns)
