"""A search for a word in everything that a folder holds, whatever it is packed in."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

__all__ = ["found_in"]


def found_in(folder: Path, word: str) -> list[str]:
    """Files in which a word stands, in their bytes, in what these unpack to, or in their names."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [
        str(file.relative_to(folder)) for file in files
        if word in str(file.relative_to(folder)) or any(word.encode() in content for content in _contents(file))
    ]


def _contents(file: Path) -> Iterator[bytes]:
    yield file.read_bytes()
    if file.suffix == ".parquet":
        yield _written(pl.read_parquet(file))
    elif file.suffix == ".arrow":
        with pa.ipc.open_file(str(file)) as reader:
            yield str(reader.schema).encode()
            yield _written(pl.from_arrow(reader.read_all()))
    elif file.suffix == ".gz":
        yield gzip.decompress(file.read_bytes())
    elif file.suffix == ".sqlite":
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as view:
            yield "\n".join(view.iterdump()).encode()


def _written(table: pl.DataFrame) -> bytes:
    return table.write_ndjson().encode()
