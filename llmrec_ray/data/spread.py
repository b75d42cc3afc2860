"""A function of one file -> its results for many files, by Ray Data or in this process.

The only place in `data` that knows Ray. Results come back as serialised Polars frames, one row per file, so that
no block layout and no order of completion can reach the result.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import polars as pl

from llmrec_ray.config import DataConfig
from llmrec_ray.data.parse import ParsedFile, parse_file
from llmrec_ray.data.sources import SourceFile

__all__ = ["parse_files"]


def parse_files(
    sources: Sequence[SourceFile], data: DataConfig, *, use_ray: bool, num_blocks: int | None = None
) -> list[ParsedFile]:
    """Parse every file, in the order of `sources`. With `use_ray` Ray must be running; errors are those of parse_file."""
    if not use_ray:
        return [parse_file(source, data) for source in sources]
    import ray.data

    paths = ray.data.from_items(list(range(len(sources))), override_num_blocks=num_blocks or len(sources))
    parsed = paths.map(lambda row: _pack(row["item"], parse_file(sources[row["item"]], data)))
    rows = sorted(parsed.take_all(), key=lambda row: int(row["number"]))
    return [_unpack(sources[int(row["number"])], row) for row in rows]


def _pack(number: int, parsed: ParsedFile) -> dict[str, Any]:
    return {
        "number": number, "sha256": parsed.sha256,
        "good": _to_bytes(parsed.good), "quarantine": _to_bytes(parsed.quarantine),
    }


def _unpack(source: SourceFile, row: dict[str, Any]) -> ParsedFile:
    return ParsedFile(source, row["sha256"], pl.read_ipc(row["good"]), pl.read_ipc(row["quarantine"]))


def _to_bytes(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc(buffer)
    return buffer.getvalue()
