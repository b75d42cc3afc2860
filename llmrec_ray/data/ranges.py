"""Events -> Arrow files with one record batch per range of user ids, and back: all events of the users of one range.

Ranges are cut at splitters, ids in order of their bytes: range r holds the users from splitter r - 1 up to, but not,
splitter r. What is made of all ranges in their order does not depend on where they were cut. This module does not know
what the columns mean, but for the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from llmrec_ray.types import Columns

__all__ = ["choose_splitters", "number_texts", "read_fragment", "read_range", "sample_fragment", "write_fragment"]

SAMPLED_EVERY = 256


def choose_splitters(users: pl.Series, n_ranges: int) -> list[str]:
    """Ids that cut a sample of users, repeats included, into about equal ranges; at most `n_ranges` of them."""
    ordered = users.drop_nulls().sort()
    if n_ranges < 2 or not len(ordered):
        return []
    places = np.arange(1, n_ranges) * len(ordered) // n_ranges
    return ordered.gather(places).unique(maintain_order=True).to_list()


def write_fragment(events: pl.DataFrame, splitters: Sequence[str], path: Path) -> None:
    """Write the events as one record batch per range, each in the order they have now, compressed by LZ4."""
    numbers = pl.Series(splitters, dtype=pl.String).search_sorted(events[Columns.USER_ID], side="right")
    ordered = events.with_columns(numbers.cast(pl.UInt32).alias("__range__")).sort("__range__", maintain_order=True)
    counts = np.bincount(ordered["__range__"].to_numpy(), minlength=len(splitters) + 1)
    whole = ordered.drop("__range__").rechunk()  # or the bytes depend on the threads that sorted
    table = _with_short_offsets(whole.to_arrow(compat_level=pl.CompatLevel.oldest()))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        start = 0
        for count in counts.tolist():
            writer.write_batch(_one_batch(table.slice(start, count)))
            start += count


def read_range(fragments: Sequence[Path], number: int) -> pa.Table:
    """All events of one range, in the order of the files; a column that a file lacks is null there."""
    batches = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(number) for path in fragments]
    return pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")


def number_texts(texts: pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """Each text's place among the different ones in their order, [E] UInt32, and those texts.

    Arrow's dictionary takes half the time of Polars' unique, sort and Enum, and the texts are never copied.
    """
    if not len(texts):
        return pl.Series(dtype=pl.UInt32), pl.Series(dtype=pl.String)
    encoded = texts.dictionary_encode()
    distinct = pl.Series(encoded.chunk(0).dictionary, dtype=pl.String)
    order = distinct.arg_sort()
    places = np.empty(len(order), np.uint32)
    places[order.to_numpy()] = np.arange(len(order), dtype=np.uint32)
    numbers = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    return pl.Series(places[numbers]), distinct.gather(order)


def read_fragment(path: Path) -> pl.DataFrame:
    """All events of one fragment, those of a range in their order."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return pl.concat([_frame(reader.get_batch(number)) for number in range(reader.num_record_batches)])


def sample_fragment(path: Path) -> pl.Series:
    """The users of every so many events of one fragment, the first included."""
    return read_fragment(path)[Columns.USER_ID].gather_every(SAMPLED_EVERY)


def _with_short_offsets(table: pa.Table) -> pa.Table:
    """With 32-bit offsets of texts, a block of which is far from 2 GiB."""
    fields = [
        pa.field(field.name, pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema
    ]
    return table.cast(pa.schema(fields)).replace_schema_metadata(None)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame
