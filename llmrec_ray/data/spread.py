"""Parsing one file -> parsing many, by Ray Data or in this process.

The only place in `data` that knows Ray. A result travels as one row per file that holds serialised Polars
frames, so that neither the block layout nor the order of completion can reach the Dataset.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl
from tqdm import tqdm

from llmrec_ray import errors
from llmrec_ray.data.parse import ParsedFile, parse_file
from llmrec_ray.data.sources import SourceFile

__all__ = ["parse_files"]


def parse_files(
    sources: Sequence[SourceFile], *, use_ray: bool, num_blocks: int | None = None
) -> list[ParsedFile]:
    """Parse every file; the answer is in the order of `sources`.

    With `use_ray`, Ray Data runs `num_blocks` blocks of files (one block per file when None) on the Ray that
    is connected. Raises what parse_file raises for the first file that fails.
    """
    if use_ray:
        rows = list(_progress(_on_ray(sources, num_blocks or len(sources)), len(sources)))
        return [_unpack(source, row) for source, row in zip(sources, sorted(rows, key=_number), strict=True)]
    return [parse_file(source) for source in _progress(sources, len(sources))]


def _progress(files: Iterable[Any], total: int) -> Iterable[Any]:
    return tqdm(files, total=total, desc="ingest", unit="file", disable=None)


def _on_ray(sources: Sequence[SourceFile], num_blocks: int) -> Iterable[dict[str, Any]]:
    import ray.data

    def parse(row: dict[str, Any]) -> dict[str, Any]:
        return _pack(int(row["item"]), sources[int(row["item"])])

    blocks = min(num_blocks, len(sources))
    numbers = ray.data.from_items(list(range(len(sources))), override_num_blocks=blocks)
    numbers.context.enable_progress_bars = False
    rows: Iterable[dict[str, Any]] = numbers.map(parse).iter_rows()
    return rows


def _number(row: dict[str, Any]) -> int:
    return int(row["number"])


def _pack(number: int, source: SourceFile) -> dict[str, Any]:
    """An error that a person must read travels as a value; Ray would wrap it in a stack of its own."""
    try:
        parsed = parse_file(source)
    except errors.LlmrecError as error:
        return _row(number, error=type(error).__name__, message=str(error))
    return _row(number, parsed.sha256, _to_bytes(parsed.good), _to_bytes(parsed.quarantine))


def _row(
    number: int,
    sha256: str = "",
    good: bytes = b"",
    quarantine: bytes = b"",
    *,
    error: str = "",
    message: str = "",
) -> dict[str, Any]:
    return {
        "number": number, "sha256": sha256, "good": good, "quarantine": quarantine,
        "error": error, "message": message,
    }


def _unpack(source: SourceFile, row: dict[str, Any]) -> ParsedFile:
    if row["error"]:
        raise getattr(errors, row["error"])(row["message"])
    return ParsedFile(source, row["sha256"], pl.read_ipc(row["good"]), pl.read_ipc(row["quarantine"]))


def _to_bytes(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc(buffer)
    return buffer.getvalue()
